"""boxes_from_heatmap and the IoUs: by hand, as properties, and against ILSVRC's own program."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from camtrain.errors import CamtrainValueError
from camtrain.localization import box_iou, box_iou_inclusive, boxes_from_heatmap

HEATMAPS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]),
)


@given(heatmap=HEATMAPS, threshold=st.sampled_from([0.0, 0.2, 0.25, 0.9]))
def test_boxes_are_tight_ordered_and_cover_the_foreground(
    heatmap: NDArray[np.float32], threshold: float
) -> None:
    foreground = heatmap > threshold * heatmap.max()
    boxes = boxes_from_heatmap(heatmap, threshold)
    assert boxes.dtype == torch.int64
    covered = np.zeros_like(foreground)
    for x0, y0, x1, y1 in boxes.tolist():
        assert 0 <= x0 < x1 <= heatmap.shape[1]
        assert 0 <= y0 < y1 <= heatmap.shape[0]
        for edge in (foreground[y0, x0:x1], foreground[y1 - 1, x0:x1]):
            assert edge.any()
        for edge in (foreground[y0:y1, x0], foreground[y0:y1, x1 - 1]):
            assert edge.any()
        covered[y0:y1, x0:x1] = True
    assert covered[foreground].all()
    x0, y0, x1, y1 = boxes.T
    assert ((x1 - x0) * (y1 - y0)).sum() >= foreground.sum()


@given(
    rectangles=st.lists(st.tuples(*[st.integers(1, 6)] * 2), min_size=1, max_size=4),
    gap=st.integers(1, 3),
)
def test_planted_rectangles_are_recovered_largest_first(
    rectangles: list[tuple[int, int]], gap: int
) -> None:
    heatmap, planted, left = torch.zeros(9, 40), [], 1
    for width, height in rectangles:
        heatmap[2 : 2 + height, left : left + width] = 1.0
        planted.append([left, 2, left + width, 2 + height])
        left += width + gap
    planted.sort(key=lambda box: (-(box[2] - box[0]) * (box[3] - box[1]), box[1], box[0]))
    assert boxes_from_heatmap(heatmap).tolist() == planted
    transposed = [[y0, x0, y1, x1] for x0, y0, x1, y1 in boxes_from_heatmap(heatmap.T).tolist()]
    assert sorted(transposed) == sorted(planted)


@pytest.mark.parametrize("noise", [0, 2, 30, 400])
def test_parts_within_the_holes_of_others_are_counted_apart(noise: int) -> None:
    """Few and many parts, apart or in one another's boxes: always those that labelling finds."""
    foreground = np.zeros((60, 90), np.uint8)
    for margin, level in ((5, 1), (9, 0), (14, 1), (18, 0), (22, 1)):  # rings around a square
        foreground[margin:-margin, margin : 90 - margin] = level
    ys, xs = np.random.default_rng(noise).integers(0, (60, 90), (noise, 2)).T
    foreground[ys, xs] = 1
    _, _, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    order = sorted(stats[1:].tolist(), key=lambda part: (-part[4], part[1], part[0]))
    expected = [[x, y, x + width, y + height] for x, y, width, height, _ in order]
    assert boxes_from_heatmap(foreground).tolist() == expected


def test_diagonal_neighbours_are_connected() -> None:
    assert boxes_from_heatmap(torch.eye(3)).tolist() == [[0, 0, 3, 3]]


def test_order_is_by_pixels_not_by_area_of_the_box() -> None:
    heatmap = torch.zeros(6, 12)
    heatmap[:4, :4] = torch.eye(4)  # 4 pixels in a box of 16
    heatmap[1:4, 6:8] = 1.0  # 6 pixels in a box of 6
    assert boxes_from_heatmap(heatmap).tolist() == [[6, 1, 8, 4], [0, 0, 4, 4]]


def test_ties_go_to_the_upper_then_to_the_left_box() -> None:
    heatmap = torch.zeros(5, 7)
    heatmap[3, 0] = heatmap[1, 6] = heatmap[1, 2] = 1.0
    assert boxes_from_heatmap(heatmap).tolist() == [[2, 1, 3, 2], [6, 1, 7, 2], [0, 3, 1, 4]]


def test_pixels_at_the_threshold_are_background() -> None:
    heatmap = torch.tensor([[1.0, 0.5, 0.0, 0.75]])
    assert boxes_from_heatmap(heatmap, 0.5).tolist() == [[0, 0, 1, 1], [3, 0, 4, 1]]
    assert boxes_from_heatmap(heatmap, 0).tolist() == [[0, 0, 2, 1], [3, 0, 4, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.uint8])
def test_every_numeric_type_works(dtype: torch.dtype) -> None:
    heatmap = torch.tensor([[0, 4, 8, 2, 1]]).to(dtype)
    assert boxes_from_heatmap(heatmap, 0.25).tolist() == [[1, 0, 3, 1]]


def test_a_constant_positive_heatmap_is_one_box() -> None:
    assert boxes_from_heatmap(np.full((3, 5), 0.7)).tolist() == [[0, 0, 5, 3]]


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf, -torch.inf])
def test_a_heatmap_without_foreground_has_no_box(value: float) -> None:
    heatmap = torch.zeros(3, 5)
    heatmap[1, 2] = value
    boxes = boxes_from_heatmap(heatmap)
    assert boxes.shape == (0, 4)
    assert boxes.dtype == torch.int64


@pytest.mark.parametrize(
    ("heatmap", "threshold", "message"),
    [
        (torch.ones(2, 2), 1.0, "threshold must lie in"),
        (torch.ones(2, 2), -0.1, "threshold must lie in"),
        (torch.ones(2, 2), torch.nan, "threshold must lie in"),
        (torch.ones(1, 2, 2), 0.2, "got shape (1, 2, 2)"),
        (torch.ones(0, 2), 0.2, "got shape (0, 2)"),
    ],
)
def test_bad_arguments_are_named(heatmap: torch.Tensor, threshold: float, message: str) -> None:
    with pytest.raises(CamtrainValueError) as error:
        boxes_from_heatmap(heatmap, threshold)
    assert message in str(error.value)


CORNERS = hnp.arrays(np.int64, (5, 2), elements=st.integers(0, 5000))


@given(mins=CORNERS, sides=CORNERS)
def test_half_open_and_inclusive_iou_agree_on_integer_boxes(
    mins: NDArray[np.int64], sides: NDArray[np.int64]
) -> None:
    half_open = torch.from_numpy(np.hstack((mins, mins + sides + 1)))
    inclusive = half_open - torch.tensor([0, 0, 1, 1])
    assert torch.equal(
        box_iou(half_open, half_open[:2]), box_iou_inclusive(inclusive, inclusive[:2])
    )


def test_exactly_one_half_is_told_from_a_little_less() -> None:
    box, half = torch.tensor([[0, 0, 10_000, 8_000]]), torch.tensor([[0, 0, 5_000, 8_000]])
    assert box_iou(box, half).item() == 0.5
    assert box_iou(box + torch.tensor([0, 0, 1, 0]), half).item() < 0.5


def test_inclusive_iou_gives_the_official_ilsvrc_errors(shared: Path) -> None:
    folder = shared / "oracles" / "ilsvrc_eval"
    data = {name: torch.from_numpy(values) for name, values in np.load(folder / "data.npz").items()}
    guesses = data["pred"].reshape(-1, 5, 5)  # label, xmin, ymin, xmax, ymax, inclusive
    guesses_right = guesses[:, :, 0] == data["labels"][:, None]
    for row, (labels_right, boxes) in enumerate(zip(guesses_right, guesses[:, :, 1:], strict=True)):
        truth = data["gt_boxes"][data["gt_boxes"][:, 0] == row, 1:]
        labels_right &= (box_iou_inclusive(boxes, truth) >= 0.5).any(dim=1)
    expected = json.loads((folder / "expected.json").read_text())["no_blacklist"]
    for k, errors in enumerate(expected, start=1):
        error = 1 - guesses_right[:, :k].any(dim=1).double().mean().item()
        assert error == pytest.approx(errors["clsloc_error"], abs=1e-12)
