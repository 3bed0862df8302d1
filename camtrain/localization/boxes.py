"""Boxes from heatmaps, the intersection over union of boxes, and the box tool of CAM's authors."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.localization.peaks import split_components
from camtrain.maps import SIDE, parts_of_range
from camtrain.thresholds import AUTO, DEFAULT_THRESHOLD, Threshold, check_any_threshold

_AUTO_FACTOR = 0.65  # chosen on animals3 and imagenet_val300, see tests/benchmarks/README.md
_BINS = 256
_MAX_TRACED = 100  # with more outlines (a noisy map) labelling every pixel is faster

# Constants of the tool that ``dt_boxes`` repeats.
DEFAULT_LEVELS = (20, 100, 110)
FALLBACK_LEVELS = (30, 90, 150)  # replace invalid levels without a message
LEAST_DISTANCE = 10  # of 255, the largest distance of the level
MARGIN = 5  # pixels that boxes leave at the right and at the lower edge

BoxXYWH = tuple[int, int, int, int]


def boxes_from_heatmap(
    heatmap: Tensor | NDArray[Any],
    threshold: Threshold = DEFAULT_THRESHOLD,
    *,
    split: bool = False,
) -> Tensor:
    """Boxes around the connected parts of a heatmap, the largest part first.

    The rule of Zhou et al. (arXiv 1512.04150, section 3.2): keep the pixels above a fraction of the
    maximum, and box their connected components (8-connected; pixels are compared in float64).

    Args:
        heatmap: (H, W), nonnegative, of any numeric type, on any device.
        threshold: Part of the maximum that a pixel must exceed, in [0, 1); ``auto`` takes
            ``auto_threshold``.
        split: Cut a component where two peaks stand out, for pictures with several things, see
            ``camtrain.localization.peaks``. Of a single thing it may leave a part.

    Returns:
        (n, 4) int64 on the heatmap's device: half-open xyxy in pixels of the heatmap, ordered by
        the number of pixels (descending), then by the top edge, then by the left edge. (0, 4) where
        nothing is above the threshold (a map of zeros), and where a value is NaN or infinite.

    Raises:
        CamtrainValueError: ``threshold`` lies outside [0, 1) and is not ``auto``, or ``heatmap`` is
            not a non-empty (H, W).

    Example:
        >>> heatmap = torch.zeros(4, 6)
        >>> heatmap[1, 0] = 0.5
        >>> heatmap[1:3, 3:6] = 1.0
        >>> boxes_from_heatmap(heatmap).tolist()
        [[3, 1, 6, 3], [0, 1, 1, 2]]
    """
    heatmap = _check_heatmap(heatmap)
    check_any_threshold(threshold)
    values = heatmap.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        return torch.zeros(0, 4, dtype=torch.int64, device=heatmap.device)
    part = otsu_part(values) if threshold == AUTO else float(threshold)
    foreground = (values > part * values.max()).astype(np.uint8)
    components = split_components(foreground, values, part) if split else _components(foreground)
    x, y, width, height, pixels = components.T
    order = np.lexsort((width, height, x, y, -pixels))
    boxes_xyxy = np.stack((x, y, x + width, y + height), axis=1)[order]
    return torch.from_numpy(boxes_xyxy).to(heatmap.device)


def auto_threshold(heatmap: Tensor | NDArray[Any]) -> float:
    """A heatmap's own threshold: 0.65 x Otsu's, as a part of its maximum, in [0, 1).

    Otsu's threshold (IEEE Trans. Systems, Man, and Cybernetics, 1979) divides the pixels into two
    classes whose means lie as far apart as their numbers allow. It is found on 256 equally wide
    bins from 0 to the maximum. 0 for a map without a positive value, and where a value is NaN or
    infinite.

    Args:
        heatmap: (H, W), nonnegative, at the size of the picture, of any numeric type and device.

    Raises:
        CamtrainValueError: ``heatmap`` is not a non-empty (H, W).

    Example:
        >>> heatmap = torch.full((4, 6), 0.25)
        >>> heatmap[1:3, 3:6] = 1.0
        >>> round(auto_threshold(heatmap), 3)
        0.165
    """
    values = _check_heatmap(heatmap).detach().cpu().double().numpy()
    return otsu_part(values) if np.isfinite(values).all() else 0.0


def otsu_part(values: NDArray[np.float64]) -> float:
    """The ``auto_threshold`` of finite values (H, W)."""
    if values.max() <= 0:
        return 0.0
    parts = parts_of_range(torch.from_numpy(values), 0.0, torch.tensor(values.max()))
    bins = (parts * _BINS).clamp(0, _BINS - 1).byte().numpy()
    counts = np.bincount(bins.ravel(), minlength=_BINS).astype(np.float64)
    below, sums = counts.cumsum(), (counts * np.arange(_BINS)).cumsum()
    total, whole = below[-1], sums[-1]
    # The variance between the classes, times total^2; 0 where one of them is empty.
    products = below * (total - below)
    variance = (whole * below - sums * total) ** 2 / np.where(products > 0, products, np.inf)
    return _AUTO_FACTOR * (int(variance.argmax()) + 1) / _BINS


def _check_heatmap(heatmap: Tensor | NDArray[Any]) -> Tensor:
    """The heatmap as a tensor; raise CamtrainValueError unless it is a non-empty (H, W)."""
    heatmap = torch.as_tensor(heatmap)
    if heatmap.ndim != 2 or heatmap.numel() == 0:
        raise CamtrainValueError(
            f"heatmap must be one map of shape (H, W), got shape {tuple(heatmap.shape)}."
        )
    return heatmap


def _components(foreground: NDArray[np.uint8]) -> NDArray[np.int64]:
    """x, y, width, height and number of pixels of each 8-connected component, (n, 5), in any order.

    Tracing the outlines and counting pixels in the boxes around them takes a tenth of the time of
    labelling every pixel. It is right where the boxes have no foreground pixel in common.
    """
    contours, nesting = cv2.findContours(foreground, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    components = []
    for number, contour in enumerate(contours if len(contours) <= _MAX_TRACED else []):
        if nesting[0][number][3] < 0:  # the outline of a component, not of a hole
            x, y, width, height = cv2.boundingRect(contour)
            pixels = cv2.countNonZero(foreground[y : y + height, x : x + width])
            components.append((x, y, width, height, pixels))
    if sum(component[4] for component in components) == cv2.countNonZero(foreground):
        return np.array(components, np.int64).reshape(-1, 5)
    _, _, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    return stats[1:].astype(np.int64)  # row 0 is the background


def box_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union (n, m) of half-open xyxy boxes (n, 4) and (m, 4).

    It is computed in float64, so that exactly one half is exactly 0.5.

    Example:
        >>> box_iou(torch.tensor([[0, 0, 4, 2]]), torch.tensor([[0, 0, 2, 2]]))
        tensor([[0.5000]], dtype=torch.float64)
    """
    iou: Tensor = torchvision.ops.box_iou(boxes_a.double(), boxes_b.double())
    return iou


def box_iou_inclusive(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union (n, m) of inclusive xyxy boxes (n, 4) and (m, 4), in float64.

    Inclusive boxes contain their max edges, as in ILSVRC and WSOL: a side is max - min + 1 pixels
    long. A half-open box with integer edges covers the same pixels as the inclusive box whose max
    edges are one less, so both notations give the same IoU.

    Example:
        >>> box_iou_inclusive(torch.tensor([[0, 0, 3, 1]]), torch.tensor([[0, 0, 1, 1]]))
        tensor([[0.5000]], dtype=torch.float64)
    """
    last_pixel = torch.tensor([0, 0, 1, 1], device=boxes_a.device)
    return box_iou(boxes_a + last_pixel, boxes_b + last_pixel)


def inclusive_boxes(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Boxes as the WSOL benchmark stores them, (n, 4) int64: inclusive xyxy at 224 x 224.

    ``boxes_xyxy`` is (n, 4), half-open xyxy in pixels of a picture of the size (H, W).

    Example:
        >>> inclusive_boxes(torch.tensor([[50, 0, 100, 80]]), size_hw=(80, 100)).tolist()
        [[112, 0, 221, 221]]
    """
    height, width = size_hw
    inclusive = boxes_xyxy.double() - torch.tensor([0, 0, 1, 1])
    return (inclusive * SIDE / torch.tensor([width, height, width, height])).long()


def dt_boxes(
    heatmap: Tensor | NDArray[Any], levels: tuple[int, int, int] = DEFAULT_LEVELS
) -> Tensor:
    """Boxes of the tool ``dt_box``, with which the authors of CAM made theirs; the largest first.

    Zhou et al., arXiv 1512.04150; the tests compare every box with the output of their program.

    At each level the pixels *above* it are foreground. The tool keeps those that lie far enough
    from the background (exact Euclidean distance, at least 10.5/255 of the level's largest; the
    frame of the picture is no background). Every outer contour (8-connected) and every contour of a
    hole (grown by one pixel) gives a box. The boxes of all levels are sorted by area, and a box is
    erased if its intersection with a larger one exceeds half the larger area. As in the tool, the
    box after an erased one is not compared, so it may remain.

    ``torchvision.ops.box_convert(boxes, "xywh", "xyxy")`` makes the boxes half-open xyxy. The
    authors' guesses were the first or the second box.

    Args:
        heatmap: (H, W), uint8, or float in [0, 1], on any device. Floats are quantized as the paper
            saved its maps: divided by the maximum, times 255, rounded half up.
        levels: Three levels, 0 < t0 < t1 < t2 < 255; invalid levels become (30, 90, 150) without a
            message, as in the tool.

    Returns:
        (n, 4) int64 on the heatmap's device: x, y, width, height in pixels of the heatmap, in the
        order in which the tool prints them (of equal areas the lower level first, where the tool's
        own order is arbitrary). (0, 4) where nothing is above the first level, and where a value is
        NaN or infinite. A box in the last five rows or columns can have a side of 0 or less.

    Raises:
        CamtrainTypeError: ``heatmap`` is neither uint8 nor float.
        CamtrainValueError: ``heatmap`` is not a non-empty (H, W).

    Example:
        >>> heatmap = torch.zeros(60, 80, dtype=torch.uint8)
        >>> heatmap[10:30, 20:50], heatmap[40:50, 10:25] = 105, 80
        >>> dt_boxes(heatmap).tolist()
        [[20, 10, 30, 20], [10, 40, 15, 10]]
    """
    heatmap = _check_heatmap(heatmap)
    device, heatmap = heatmap.device, heatmap.detach().cpu()
    if heatmap.dtype != torch.uint8:
        if not heatmap.is_floating_point():
            raise CamtrainTypeError(
                f"heatmap must be uint8 or float in [0, 1], got {heatmap.dtype}."
            )
        values = torch.where(heatmap.isfinite().all(), heatmap.double(), 0.0).clamp_min(0)
        heatmap = (parts_of_range(values, 0.0, values.amax()) * 255 + 0.5).floor().byte()
    if not 0 < levels[0] < levels[1] < levels[2] < 255:
        levels = FALLBACK_LEVELS
    boxes = [box for level in levels for box in _boxes_above(heatmap.numpy(), level)]
    boxes.sort(key=lambda box: -box[2] * box[3])
    _erase_overlapping(boxes)
    return torch.tensor(boxes, dtype=torch.int64, device=device).reshape(-1, 4)


def _boxes_above(pixels: NDArray[np.uint8], level: int) -> list[BoxXYWH]:
    """The boxes of one level, in the order of OpenCV's contours."""
    height, width = pixels.shape
    foreground = (pixels > level).astype(np.uint8)
    # Without background there is no distance to it, and the tool keeps every pixel.
    if foreground.any() and not foreground.all():
        distance = cv2.distanceTransform(foreground, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        scaled = distance * (255 / float(distance.max()))
        foreground = (np.floor(scaled + 0.5) > LEAST_DISTANCE).astype(np.uint8)
    contours, _ = cv2.findContours(foreground, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    right, bottom = width - MARGIN, height - MARGIN
    return [
        (min(x, right), min(y, bottom), min(w, right - x), min(h, bottom - y))
        for x, y, w, h in map(cv2.boundingRect, contours)
    ]


def _erase_overlapping(boxes: list[BoxXYWH]) -> None:
    """Erase from boxes sorted by area those that a larger box covers too much."""
    first = 0
    while first < len(boxes):
        x, y, w, h = boxes[first]
        second = first + 1
        while second < len(boxes):
            x2, y2, w2, h2 = boxes[second]
            width = min(x + w, x2 + w2) - max(x, x2)
            height = min(y + h, y2 + h2) - max(y, y2)
            intersection = max(width, 0) * max(height, 0)
            if intersection > int(0.5 * max(w * h, w2 * h2)):
                del boxes[second]
            second += 1  # also after an erasure: the box that moved up here is skipped
        first += 1
