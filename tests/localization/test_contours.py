"""Contours of all foregrounds: those of the plain loop, box for box, and of the benchmark."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from camtrain.localization import contours as module
from camtrain.localization.contours import contour_boxes, levels_of_thresholds, quantize

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=16)
PLATEAUS = hnp.arrays(np.float64, SHAPES, elements=st.sampled_from([0, 0.01, 0.3, 0.99, 1]))
MAPS = hnp.arrays(np.float64, SHAPES, elements=st.floats(0, 1))


def plain(levels: NDArray[np.uint8], level: int) -> tuple[list[list[int]], int]:
    """The boxes of the contours above a level, and which one is the largest."""
    height, width = levels.shape
    _, foreground = cv2.threshold(levels, level, 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(foreground, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return [[0, 0, 0, 0]], 0
    rectangles = [cv2.boundingRect(contour) for contour in contours]
    boxes = [[x, y, min(x + w, width - 1), min(y + h, height - 1)] for x, y, w, h in rectangles]
    areas = [cv2.contourArea(contour) for contour in contours]
    return boxes, areas.index(max(areas))


def assert_contours_are_those_of_the_plain_loop(scores: NDArray[np.float64]) -> None:
    levels = quantize(scores)
    contours = contour_boxes(scores)
    assert contours.values.tolist() == [*sorted({*levels.ravel().tolist()} - {0}), 256]
    ends = np.append(contours.starts[1:], len(contours.boxes_xyxy))
    for value, start, end, largest in zip(
        contours.values.tolist(), contours.starts, ends, contours.largest, strict=True
    ):
        boxes, first_largest = plain(levels, value - 1)
        assert contours.boxes_xyxy[start:end].tolist() == boxes
        assert largest == start + first_largest


@given(scores=PLATEAUS | MAPS)
def test_contours_are_those_of_the_plain_loop(scores: NDArray[np.float64]) -> None:
    assert_contours_are_those_of_the_plain_loop(scores)


@given(scores=PLATEAUS | MAPS, sigma=st.sampled_from([0.5, 1.0, 3.0]), factor=st.integers(1, 3))
def test_contours_of_smooth_maps_too(
    scores: NDArray[np.float64], sigma: float, factor: int
) -> None:
    scores = cv2.GaussianBlur(scores, (5, 5), sigma)
    height, width = scores.shape
    larger = cv2.resize(scores, (factor * width, factor * height), interpolation=cv2.INTER_CUBIC)
    larger -= larger.min()
    assert_contours_are_those_of_the_plain_loop(larger / (larger.max() or 1))


def distance(height: int, width: int, y: int, x: int) -> NDArray[np.float64]:
    rows, columns = np.indices((height, width))
    return np.hypot(rows - y, columns - x)


@pytest.mark.parametrize(
    "scores",
    [
        np.indices((23, 30)).sum(axis=0) % 2 * 1.0,  # checkerboard
        (np.indices((23, 30)) % 2).prod(axis=0) * np.linspace(0.1, 1, 30),  # dots
        np.cos(distance(40, 60, 20, 25)) / 2 + 0.5,  # rings
        1 - distance(40, 60, 0, 59) / 100,  # one hill on the frame
        np.minimum(distance(40, 60, 20, 30) / 30, 1),  # one hole
        np.maximum(1 - distance(40, 60, 10, 9) / 20, 0.8 - distance(40, 60, 22, 40) / 20).clip(0),
        np.maximum(1 - distance(40, 60, 10, 9) / 9, 0) + (distance(40, 60, 20, 30) > 28) * 0.0,
        np.kron(np.arange(12).reshape(3, 4) / 11, np.ones((9, 7))),  # steps
        np.zeros((5, 8)),
        np.full((5, 8), 0.5),
        np.ones((1, 1)),
        np.ones((1, 9)),
        np.eye(9, 13)[::-1],
    ],
)
def test_contours_of_named_maps_too(scores: NDArray[np.float64]) -> None:
    assert_contours_are_those_of_the_plain_loop(scores)


def test_foregrounds_with_a_provably_single_contour_are_not_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = []
    find = module._find_contours

    def counting(*arguments: NDArray[np.int64]) -> module._ContourBoxes:
        searched.extend(arguments[-1].tolist())
        return find(*arguments)

    monkeypatch.setattr(module, "_find_contours", counting)
    hill = 1 - distance(224, 224, 100, 70) / 200
    assert len(contour_boxes(hill).values) > 200
    assert len(searched) == 1
    two_hills = np.maximum(hill, 0.8 - distance(224, 224, 150, 190) / 200)
    values = contour_boxes(two_hills).values
    assert 1 < len(searched) < 0.3 * len(values)
    assert_contours_are_those_of_the_plain_loop(two_hills)


def test_the_first_contour_wins_a_tie_and_the_box_stops_at_the_last_pixel() -> None:
    scores = np.zeros((20, 30))
    scores[2:6, 2:6] = scores[16:20, 26:30] = 1.0
    contours = contour_boxes(scores)
    assert contours.boxes_xyxy.tolist() == [[26, 16, 29, 19], [2, 2, 6, 6], [0, 0, 0, 0]]
    assert contours.starts.tolist() == contours.largest.tolist() == [0, 2]


def test_the_border_of_a_hole_is_a_contour() -> None:
    scores = np.zeros((20, 30))
    scores[2:12, 3:20] = 1.0
    scores[5:8, 7:11] = 0.0
    contours = contour_boxes(scores)
    assert contours.boxes_xyxy.tolist() == [[3, 2, 20, 12], [6, 4, 12, 9], [0, 0, 0, 0]]


def test_the_largest_polygon_is_not_the_largest_box() -> None:
    scores = np.zeros((20, 30))
    scores[1:16, 1:16] = np.eye(15)  # a polygon without area
    scores[10:13, 20:23] = 1.0
    contours = contour_boxes(scores)
    assert contours.boxes_xyxy[contours.largest[0]].tolist() == [20, 10, 23, 13]


def test_scores_are_truncated_to_levels() -> None:
    assert quantize(np.array([0, 0.9999, 1 / 255, 0.5, 1.0])).tolist() == [0, 254, 1, 127, 255]


def test_thresholds_become_integer_levels_of_the_maximum() -> None:
    levels = levels_of_thresholds(200)
    assert levels.shape == (1000,)
    assert levels[[0, 4, 5, 500, 999]].tolist() == [0, 0, 1, 100, 199]


def test_contours_are_those_of_the_benchmark_at_every_threshold(shared: Path) -> None:
    folder = shared / "oracles" / "wsol_metrics"
    expected = np.load(folder / "expected.npz")
    for index, scores in enumerate(np.load(folder / "inputs.npz")["scoremaps_u16"] / 65535):
        contours = contour_boxes(scores)
        levels = levels_of_thresholds(int(quantize(scores).max()))
        foregrounds = np.searchsorted(contours.values, levels, side="right")
        boxes = contours.boxes_xyxy[contours.largest[foregrounds]]
        np.testing.assert_array_equal(boxes, expected["box_0.001"][index])
        counts = np.diff(np.append(contours.starts, len(contours.boxes_xyxy)))[foregrounds]
        # The benchmark counts the box of zeros, too, as one.
        np.testing.assert_array_equal(counts, np.maximum(expected["ncontours_0.001"][index], 1))
