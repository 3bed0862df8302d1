"""Every contour of every foreground of a score map, in a few calls of OpenCV.

The WSOL benchmark asks OpenCV for the contours at each of 1,000 thresholds. After quantization at
most 255 foregrounds differ. Foregrounds that provably have a single contour are not traced: their
box is that of the foreground. The others are stacked into tall pictures, several per call, because
a call costs as much as tracing a small contour, and because short calls of two threads slow each
other down. The tests compare every contour, in OpenCV's order, with the plain loop.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

NUM_LEVELS = 256
THRESHOLDS: NDArray[np.float64] = np.arange(0, 1, 0.001)  # (1000,), parts of a map's maximum
_PER_CALL = 16  # foregrounds; fewer would need more calls, more would not fit into the cache


def quantize(scores: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A score map in [0, 1] as 8-bit levels, truncated."""
    return (scores * 255).astype(np.uint8)


def levels_of_thresholds(peak: int) -> NDArray[np.int64]:
    """The level above which a map's foreground lies at each threshold, (1000,) int64.

    ``peak`` is the map's highest level.
    """
    return (THRESHOLDS * peak).astype(np.int64)


class Contours(NamedTuple):
    """The boxes around all contours of all F different foregrounds of a quantized map.

    Attributes:
        values: (F,) int64, ascending. Foreground f is the pixels whose level is at least
            ``values[f]``. The last value, 256, stands for the empty foreground, whose one box is
            all zeros.
        boxes_xyxy: (N, 4) int64, inclusive xyxy in pixels of the map, foreground by foreground, in
            OpenCV's order. As in the benchmark a max edge is min + side, at most the last pixel:
            one pixel too large for an inclusive box.
        starts: (F,) int64. The boxes of foreground f are ``boxes_xyxy[starts[f]:starts[f + 1]]``.
        largest: (F,) int64. ``boxes_xyxy[largest[f]]`` is the box of the contour with the largest
            polygon area; of equal areas the first contour.
    """

    values: NDArray[np.int64]
    boxes_xyxy: NDArray[np.int64]
    starts: NDArray[np.int64]
    largest: NDArray[np.int64]


class _ContourBoxes(NamedTuple):
    """The foreground, box and area of each of n contours."""

    foregrounds: NDArray[np.int64]
    boxes_xyxy: NDArray[np.int64]  # half-open
    areas: NDArray[np.int64]  # twice the polygon's


def contour_boxes(scores: NDArray[np.float64]) -> Contours:
    """All contours of a score map (H, W) in [0, 1] at all thresholds, those of holes included.

    Example:
        >>> scores = np.zeros((224, 224))
        >>> scores[10:30, 30:50] = 0.5
        >>> scores[15:20, 35:40] = 1.0
        >>> contours = contour_boxes(scores)
        >>> contours.values.tolist()
        [127, 255, 256]
        >>> contours.boxes_xyxy.tolist()
        [[30, 10, 50, 30], [35, 15, 40, 20], [0, 0, 0, 0]]
    """
    levels = quantize(scores)
    values = np.flatnonzero(_histogram(levels)[1:]) + 1
    extents = _extents(levels, values)
    is_follower = _is_follower(scores, levels, values)
    leaders, followers = np.flatnonzero(~is_follower), np.flatnonzero(is_follower)
    leader_contours = _find_contours(levels, values, extents, leaders)
    # A follower has one contour if the next higher leader (no follower) has one.
    next_leaders = leaders[np.searchsorted(leaders, followers)]
    is_single = np.bincount(leader_contours.foregrounds, minlength=len(values))[next_leaders] == 1
    singles = followers[is_single]
    groups = (
        leader_contours,
        _find_contours(levels, values, extents, followers[~is_single]),
        _ContourBoxes(singles, extents[singles], np.zeros(len(singles), dtype=np.int64)),
        # the empty foreground
        _ContourBoxes(np.array([len(values)]), np.zeros((1, 4), dtype=np.int64), np.array([0])),
    )
    foregrounds, boxes_xyxy, areas = map(np.concatenate, zip(*groups, strict=True))

    order = np.argsort(foregrounds, kind="stable")  # OpenCV's order within each foreground
    counts = np.bincount(foregrounds)
    starts = np.cumsum(counts) - counts
    areas = areas[order]
    is_best = np.flatnonzero(areas == np.repeat(np.maximum.reduceat(areas, starts), counts))
    last_y, last_x = levels.shape[0] - 1, levels.shape[1] - 1
    return Contours(
        values=np.append(values, NUM_LEVELS),
        boxes_xyxy=np.minimum(boxes_xyxy[order], [last_x, last_y, last_x, last_y]),
        starts=starts,
        largest=is_best[np.searchsorted(is_best, starts)],
    )


def _is_follower(
    scores: NDArray[np.float64], levels: NDArray[np.uint8], values: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each foreground is a follower: has one contour if the next higher one has, (F,) bool.

    Every component of a foreground holds a local maximum of the scores. If the next higher
    foreground is one component, and none of the pixels added to it is a local maximum, there is
    still one component. If its Euler number (components - holes) is then 1, it has no hole, and its
    only contour is that of the component.

    The Euler number of a foreground (8-connected) is 1 - that of the background (4-connected, in a
    frame of zeros), since the holes of one are components of the other. That of the background is
    pixels - pairs of neighbours + squares of four (Gray, IEEE Trans. Computers C-20, 1971). A pair
    or a square lies in the background if its highest pixel does.
    """
    framed = cv2.copyMakeBorder(levels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    across = np.maximum(framed[:, 1:], framed[:, :-1])
    down = np.maximum(framed[1:], framed[:-1])
    squares = np.maximum(across[1:], across[:-1])
    terms = _histogram(framed) - _histogram(across) - _histogram(down) + _histogram(squares)
    euler = 1 - np.cumsum(terms)[values - 1]

    is_peak = scores == cv2.dilate(scores, np.ones((3, 3), dtype=np.uint8))
    has_peak = np.bincount(levels[is_peak], minlength=NUM_LEVELS)[values] > 0
    # A foreground whose Euler number is not 1 has more than one contour.
    is_one = euler == 1
    is_follower: NDArray[np.bool_] = is_one & np.append(is_one[1:], False) & ~has_peak
    return is_follower


def _find_contours(
    levels: NDArray[np.uint8],
    values: NDArray[np.int64],
    extents: NDArray[np.int64],
    foregrounds: NDArray[np.int64],
) -> _ContourBoxes:
    """The contours of the given foregrounds (ascending numbers), by OpenCV."""
    contours: list[NDArray[Any]] = []
    calls = []
    for start in range(0, len(foregrounds), _PER_CALL):
        batch = foregrounds[start : start + _PER_CALL]
        left, top, right, bottom = extents[batch[0]].tolist()  # the first is the largest
        # A row of background separates the foregrounds. OpenCV surrounds a picture with background
        # and scans row by row, so each foreground gives the same contours as alone, in this order.
        stack = np.empty((len(batch), bottom - top + 1, right - left), dtype=np.uint8)
        stack[:, -1] = 0
        at_least = values[batch].astype(np.uint8)[:, None, None]
        np.greater_equal(levels[top:bottom, left:right], at_least, out=stack[:, :-1].view(np.bool_))
        stack = stack.reshape(-1, right - left)
        outlines, _ = cv2.findContours(
            stack, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE, offset=(left, 0)
        )
        contours.extend(outlines)
        calls.append((len(outlines), start, top, bottom - top + 1))
    if not contours:
        return _ContourBoxes(
            np.zeros(0, np.int64), np.zeros((0, 4), np.int64), np.zeros(0, np.int64)
        )
    counts, *columns = np.array(calls).T
    starts, tops, heights = (np.repeat(column, counts) for column in columns)
    boxes_xyxy, areas = _boxes_and_areas(contours)
    places = boxes_xyxy[:, 1] // heights
    boxes_xyxy[:, 1::2] += (tops - places * heights)[:, None]
    return _ContourBoxes(foregrounds[starts + places], boxes_xyxy, areas)


def _boxes_and_areas(
    contours: list[NDArray[Any]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Half-open boxes (n, 4) and twice the polygon areas (n,) of contours of shape (points, 1, 2).

    ``cv2.boundingRect`` and ``cv2.contourArea`` give the same numbers, but need a call per contour.
    """
    sizes = np.fromiter(map(len, contours), np.int64, len(contours))
    ends = np.cumsum(sizes) - 1
    starts = ends - sizes + 1
    x, y = np.ascontiguousarray(np.concatenate(contours)[:, 0].T)
    # The shoelace formula; the last point of a contour is followed by its first.
    crosses = np.empty_like(x)
    crosses[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]
    crosses[ends] = x[ends] * y[starts] - x[starts] * y[ends]
    mins = np.minimum.reduceat(x, starts), np.minimum.reduceat(y, starts)
    maxs = np.maximum.reduceat(x, starts) + 1, np.maximum.reduceat(y, starts) + 1
    areas: NDArray[np.int64] = np.abs(np.add.reduceat(crosses, starts, dtype=np.int64))
    return np.stack((*mins, *maxs), axis=1).astype(np.int64), areas


def _extents(levels: NDArray[np.uint8], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The half-open xyxy around all pixels whose level is at least each of the values, (F, 4)."""
    edges = []
    for maxima in (levels.max(axis=0), levels.max(axis=1)):
        edges.append(np.searchsorted(np.maximum.accumulate(maxima), values))
        from_end = np.searchsorted(np.maximum.accumulate(maxima[::-1]), values)
        edges.append(len(maxima) - from_end)
    left, right, top, bottom = edges
    return np.stack((left, top, right, bottom), axis=1)


def _histogram(levels: NDArray[Any]) -> NDArray[np.int64]:
    """The number of pixels of each 8-bit level, (256,)."""
    counts = cv2.calcHist([levels], [0], None, [NUM_LEVELS], [0, NUM_LEVELS])
    return counts.ravel().astype(np.int64)  # (256,) or (256, 1) by the version of OpenCV
