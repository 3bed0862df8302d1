"""Boxes and IoUs by hand, as properties, and against the programs of ILSVRC, WSOL and CAM."""

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

from camtrain.errors import CamtrainError, CamtrainValueError
from camtrain.localization import (
    auto_threshold,
    box_iou,
    box_iou_inclusive,
    boxes_from_heatmap,
    dt_boxes,
)
from camtrain.localization.boxes import FALLBACK_LEVELS, inclusive_boxes

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


def test_truth_boxes_are_scaled_as_in_the_benchmark(shared: Path) -> None:
    inputs = np.load(shared / "oracles" / "wsol_metrics" / "inputs.npz")
    original = torch.from_numpy(inputs["boxes_imgidx_x0y0x1y1"])
    for (index, *box), (_, *expected) in zip(
        original.tolist(), inputs["boxes224_imgidx_x0y0x1y1"].tolist(), strict=True
    ):
        width, height = inputs["image_sizes_wh"][index].tolist()
        half_open = torch.tensor([box]) + torch.tensor([0, 0, 1, 1])
        assert inclusive_boxes(half_open, (height, width)).tolist() == [expected]


def test_every_box_of_the_authors_program(shared: Path) -> None:
    folder = shared / "oracles" / "zhou_bbox"
    maps = np.load(folder / "heatmaps.npz")
    cases = json.loads((folder / "expected.json").read_text())["cases"]
    assert cases
    for case in cases:
        boxes, expected = dt_boxes(maps[case["map"]], case["params"]).tolist(), case["boxes_xywh"]
        if case["area_tie"]:  # the program's sort leaves boxes of one area in any order
            assert [w * h for _, _, w, h in boxes] == [w * h for _, _, w, h in expected]
            boxes, expected = sorted(boxes), sorted(expected)
        assert boxes == expected, case


def rectangles(*boxes_xywh: tuple[int, int, int, int], value: int = 50) -> NDArray[np.uint8]:
    """A map (60, 90) of rectangles that, by default, only the lowest level sees."""
    heatmap = np.zeros((60, 90), dtype=np.uint8)
    for x, y, w, h in boxes_xywh:
        heatmap[y : y + h, x : x + w] = value
    return heatmap


def test_rectangles_are_found_once_and_the_largest_comes_first() -> None:
    boxes = dt_boxes(rectangles((4, 6, 10, 8), (40, 20, 16, 30)))
    assert boxes.dtype == torch.int64
    assert boxes.tolist() == [[40, 20, 16, 30], [4, 6, 10, 8]]


def test_a_hole_gives_a_box_one_pixel_larger_than_itself() -> None:
    heatmap = rectangles((10, 10, 40, 30))
    heatmap[20:30, 20:32] = 0
    assert dt_boxes(heatmap).tolist()[:2] == [[10, 10, 40, 30], [19, 19, 14, 12]]


def test_boxes_keep_away_from_the_right_and_lower_edge() -> None:
    assert dt_boxes(rectangles((70, 40, 20, 20))).tolist() == [[70, 40, 15, 15]]
    assert dt_boxes(rectangles((0, 0, 20, 20))).tolist() == [[0, 0, 20, 20]]
    assert dt_boxes(rectangles((87, 57, 3, 3))).tolist() == [[85, 55, -2, -2]]


def test_what_is_at_a_level_is_background() -> None:
    assert dt_boxes(rectangles((4, 6, 10, 8), value=20)).shape == (0, 4)
    assert dt_boxes(rectangles((4, 6, 10, 8), value=21)).tolist() == [[4, 6, 10, 8]]


def test_thin_parts_of_a_thick_blob_are_worn_away() -> None:
    heatmap = np.zeros((120, 160), dtype=np.uint8)
    heatmap[10:90, 10:90] = 50  # its largest distance is 40, so what is nearer than 2 goes
    heatmap[50, 90:150] = 50
    assert dt_boxes(heatmap).tolist() == [[11, 11, 78, 78]]


def test_the_box_after_an_erased_one_is_skipped() -> None:
    # Every level gives the same box: the second is erased, the third is not compared.
    heatmap = rectangles((20, 20, 30, 20), value=255)
    assert dt_boxes(heatmap).tolist() == [[20, 20, 30, 20]] * 2


def test_invalid_levels_silently_become_the_fallback() -> None:
    heatmap = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    expected = dt_boxes(heatmap, FALLBACK_LEVELS)
    for levels in ((0, 1, 2), (20, 20, 30), (5, 4, 9), (20, 100, 255)):
        assert torch.equal(dt_boxes(heatmap, levels), expected)


def test_floats_are_quantized_as_the_paper_saved_its_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(1, 1, 5, 7, generator=generator)
    heatmap = torch.nn.functional.interpolate(small, size=(80, 110), mode="bilinear")[0, 0]
    levels = (heatmap / heatmap.max() * 255 + 0.5).floor().byte()
    expected = dt_boxes(levels)
    assert len(expected) > 1
    for same in (heatmap, heatmap.double() * 0.3, heatmap.numpy(), levels.numpy()):
        assert torch.equal(dt_boxes(same), expected)


@pytest.mark.parametrize(
    "heatmap",
    [
        torch.zeros(9, 14),
        torch.full((9, 14), -1.0),
        torch.full((9, 14), torch.nan),
        torch.full((9, 14), torch.inf),
        torch.zeros(9, 14, dtype=torch.uint8),
    ],
)
def test_dt_boxes_of_a_heatmap_without_foreground_are_none(heatmap: torch.Tensor) -> None:
    boxes = dt_boxes(heatmap)
    assert boxes.shape == (0, 4)
    assert boxes.dtype == torch.int64


def test_a_constant_heatmap_is_one_box() -> None:
    assert dt_boxes(torch.full((9, 14), 0.3)).tolist()[0] == [0, 0, 9, 4]


@given(
    heatmap=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30)),
    levels=st.tuples(*[st.integers(-1, 256)] * 3),
)
def test_any_map_has_an_answer(heatmap: NDArray[np.uint8], levels: tuple[int, int, int]) -> None:
    boxes = dt_boxes(heatmap, levels)
    areas = (boxes[:, 2] * boxes[:, 3]).tolist()
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize(
    ("heatmap", "message"),
    [
        (torch.rand(1, 4, 5), "got shape (1, 4, 5)"),
        (torch.rand(0, 5), "got shape (0, 5)"),
        (torch.ones(4, 5, dtype=torch.int64), "uint8 or float in [0, 1], got torch.int64"),
    ],
)
def test_bad_heatmaps_of_dt_boxes_are_named(heatmap: torch.Tensor, message: str) -> None:
    with pytest.raises(CamtrainError) as error:
        dt_boxes(heatmap)
    assert message in str(error.value)


@given(
    heatmap=hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12)
    ).filter(lambda pixels: pixels.max() > 0)
)
def test_the_automatic_threshold_is_a_part_of_opencv_s_otsu(heatmap: NDArray[np.uint8]) -> None:
    values = heatmap / heatmap.max()
    bins = np.minimum(values * 256, 255).astype(np.uint8)
    otsu, _ = cv2.threshold(bins, 0, 255, cv2.THRESH_OTSU)

    def variance(threshold: float) -> float:
        """Between the pixels up to a level and those above it."""
        low, high = bins[bins <= threshold], bins[bins > threshold]
        return len(low) * len(high) * (high.mean() - low.mean()) ** 2 if len(low) * len(high) else 0

    ours = round(auto_threshold(values) / 0.65 * 256) - 1
    assert variance(ours) == pytest.approx(variance(otsu))  # of equally good ones either


def test_the_automatic_threshold_of_maps_without_two_classes() -> None:
    assert auto_threshold(torch.zeros(3, 4)) == 0.0
    assert auto_threshold(torch.tensor([[0.5, torch.nan]])) == 0.0
    assert 0 <= auto_threshold(torch.full((3, 4), 0.3)) < 1
    assert boxes_from_heatmap(torch.zeros(3, 4), "auto").shape == (0, 4)
    assert boxes_from_heatmap(torch.full((3, 4), 0.3), "auto").tolist() == [[0, 0, 4, 3]]


@given(heatmap=HEATMAPS, scale=st.sampled_from([0.5, 4.0]))
def test_the_automatic_threshold_is_a_number_that_may_be_given(
    heatmap: NDArray[np.float32], scale: float
) -> None:
    threshold = auto_threshold(heatmap)
    boxes = boxes_from_heatmap(heatmap, "auto")
    assert torch.equal(boxes, boxes_from_heatmap(heatmap, threshold))
    assert auto_threshold(heatmap * scale) == threshold


def test_an_unknown_word_is_no_threshold() -> None:
    with pytest.raises(CamtrainValueError, match=r"in \[0, 1\) or be auto, got 'otsu'"):
        boxes_from_heatmap(torch.ones(2, 2), "otsu")  # type: ignore[arg-type]
