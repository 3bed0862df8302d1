"""The WSOL benchmark's way from a class map to boxes, number for number.

Choe et al., arXiv 2007.04178; held box for box against the evaluator of its authors
(github.com/clovaai/wsolevaluation, evaluation.py). Everything happens at 224 x 224. The score map
is quantized to 8 bit and cut strictly above integer levels, so that a map has at most 256
foregrounds, whatever the number of thresholds. Boxes of this file are *inclusive* xyxy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIDE = 224
NUM_LEVELS = 256
THRESHOLDS: NDArray[np.float64] = np.arange(0, 1, 0.001)  # (1000,), parts of a map's maximum


def score_map(class_map: Tensor) -> NDArray[np.float64]:
    """A class map resized (bicubic) and min-max normalized, in float64.

    We differ from the benchmark in one case: it judges whether a map is constant after the resize,
    which leaves a constant map with rounding noise, and then stretches the noise to [0, 1].

    Args:
        class_map: (h, w), of any numeric type, on any device; it covers the whole picture.

    Returns:
        (224, 224) in [0, 1]; zeros where the map is constant or not finite.
    """
    values = class_map.detach().cpu().double().numpy()
    if not np.isfinite(values).all() or values.min() == values.max():
        return np.zeros((SIDE, SIDE))
    resized = cv2.resize(values, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    scores: NDArray[np.float64] = resized - resized.min()
    peak = scores.max()
    return scores / peak if peak > 0 else scores


def quantized(scores: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A score map in [0, 1] as 8-bit levels, truncated."""
    return (scores * 255).astype(np.uint8)


def levels_of_thresholds(levels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The integer level that each of the ``THRESHOLDS`` means for a quantized map, (1000,)."""
    return (THRESHOLDS * int(levels.max())).astype(np.int64)


def contours_at_levels(levels: NDArray[np.uint8]) -> Iterator[tuple[slice, Sequence[NDArray[Any]]]]:
    """The contours of every distinct foreground of a quantized map, the largest foreground first.

    Only the rectangle that holds the foreground is searched. OpenCV surrounds what it searches with
    background and scans it row by row, so neither the contours nor their order change.

    Args:
        levels: (H, W), the quantized map.

    Yields:
        The range of L for which the foreground ``levels > L`` is the same, and its contours in
        OpenCV's order (borders of holes are among them), in pixels of the whole map. Where there is
        no foreground, nothing is yielded.
    """
    values = np.flatnonzero(np.bincount(levels.ravel(), minlength=NUM_LEVELS)[1:]) + 1
    rows, columns = _extents(levels.max(axis=1), values), _extents(levels.max(axis=0), values)
    start = 0
    for value, (top, bottom), (left, right) in zip(values.tolist(), rows, columns, strict=True):
        crop = levels[top:bottom, left:right]
        _, foreground = cv2.threshold(crop, value - 1, 255, cv2.THRESH_BINARY)
        contours, _ = cv2.findContours(
            foreground, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top)
        )
        yield slice(start, value), contours
        start = value


def largest_contour_boxes(levels: NDArray[np.uint8]) -> Tensor:
    """The box of the foreground ``levels > L`` for every level L.

    It bounds the contour of the largest polygon area; the first one wins a tie. As in the benchmark
    its max edges are min + side, at most the last pixel: one pixel too large for an inclusive box.

    Args:
        levels: (H, W), the quantized map.

    Returns:
        (256, 4) int64, inclusive xyxy in pixels of the map; zeros where there is no foreground.

    Example:
        >>> levels = np.zeros((224, 224), dtype=np.uint8)
        >>> levels[10:20, 30:50] = 200
        >>> largest_contour_boxes(levels)[[0, 199, 200]].tolist()
        [[30, 10, 50, 20], [30, 10, 50, 20], [0, 0, 0, 0]]
    """
    last_y, last_x = levels.shape[0] - 1, levels.shape[1] - 1
    boxes_xyxy = np.zeros((NUM_LEVELS, 4), dtype=np.int64)
    for same_foreground, contours in contours_at_levels(levels):
        largest = contours[0] if len(contours) == 1 else max(contours, key=cv2.contourArea)
        x, y, width, height = cv2.boundingRect(largest)
        boxes_xyxy[same_foreground] = x, y, min(x + width, last_x), min(y + height, last_y)
    return torch.from_numpy(boxes_xyxy)


def inclusive_boxes(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """A picture's half-open boxes as the benchmark's inclusive ones at 224 x 224, truncated.

    Args:
        boxes_xyxy: (n, 4) half-open xyxy in pixels of the picture.
        size_hw: The picture's (H, W), in pixels.

    Returns:
        (n, 4) int64, inclusive xyxy.

    Example:
        >>> inclusive_boxes(torch.tensor([[50, 0, 100, 80]]), size_hw=(80, 100)).tolist()
        [[112, 0, 221, 221]]
    """
    height, width = size_hw
    inclusive = boxes_xyxy.double() - torch.tensor([0, 0, 1, 1])
    return (inclusive * SIDE / torch.tensor([width, height, width, height])).long()


def _extents(maxima: NDArray[np.uint8], values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Per value the half-open range of the rows (or columns) whose maxima reach it."""
    starts = np.searchsorted(np.maximum.accumulate(maxima), values)
    ends = len(maxima) - np.searchsorted(np.maximum.accumulate(maxima[::-1]), values)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))
