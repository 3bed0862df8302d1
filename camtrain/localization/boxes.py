"""Boxes from heatmaps, the intersection over union of boxes, and the CAM authors' box tool."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.header import DEFAULT_THRESHOLD, check_threshold
from camtrain.maps import SIDE, parts_of_range

_FEW = 100  # outlines; the many of a noisy map are better labelled

# Of ``dt_boxes``.
DEFAULT_LEVELS = (20, 100, 110)
FALLBACK_LEVELS = (30, 90, 150)  # what the tool takes, without a word, where levels are invalid
LEAST_DISTANCE = 10  # of 255, the largest distance of the level
MARGIN = 5  # pixels that boxes leave at the right and at the lower edge

BoxXYWH = tuple[int, int, int, int]


def boxes_from_heatmap(
    heatmap: Tensor | NDArray[Any], threshold: float = DEFAULT_THRESHOLD
) -> Tensor:
    """Boxes around the connected parts of a heatmap, the largest part first.

    The rule of Zhou et al. (arXiv 1512.04150, section 3.2): keep the pixels above a fraction of the
    maximum, box the connected components. Here the 8 pixels around a pixel are its neighbours, and
    pixels are compared in float64.

    Args:
        heatmap: (H, W), nonnegative, of any numeric type, on any device.
        threshold: Part of the maximum that a pixel must exceed, in [0, 1).

    Returns:
        (n, 4) int64 on the heatmap's device: half-open xyxy in pixels of the heatmap, ordered by
        the number of pixels (descending), then by the top edge, then by the left edge. (0, 4) where
        nothing is above the threshold: a map of zeros, or one that holds NaN or infinity.

    Raises:
        CamtrainValueError: ``threshold`` lies outside [0, 1).
        CamtrainValueError: ``heatmap`` is not a non-empty (H, W).

    Example:
        >>> heatmap = torch.zeros(4, 6)
        >>> heatmap[1, 0] = 0.5
        >>> heatmap[1:3, 3:6] = 1.0
        >>> boxes_from_heatmap(heatmap).tolist()
        [[3, 1, 6, 3], [0, 1, 1, 2]]
    """
    heatmap = torch.as_tensor(heatmap)
    check_threshold(threshold)
    if heatmap.ndim != 2 or heatmap.numel() == 0:
        raise CamtrainValueError(
            f"heatmap must be one map of shape (H, W), got shape {tuple(heatmap.shape)}."
        )
    values = heatmap.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        return torch.zeros(0, 4, dtype=torch.int64, device=heatmap.device)
    foreground = (values > threshold * values.max()).astype(np.uint8)
    x, y, width, height, pixels = _components(foreground).T
    order = np.lexsort((width, height, x, y, -pixels))
    boxes_xyxy = np.stack((x, y, x + width, y + height), axis=1)[order]
    return torch.from_numpy(boxes_xyxy).to(heatmap.device)


def _components(foreground: NDArray[np.uint8]) -> NDArray[np.int64]:
    """x, y, width, height and number of pixels of each 8-connected part, (n, 5), in any order.

    To trace the outlines and count in the boxes around them takes a tenth of the time of labelling
    every pixel; it is enough where no pixel lies in two boxes.
    """
    contours, nesting = cv2.findContours(foreground, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for number, contour in enumerate(contours if len(contours) <= _FEW else []):
        if nesting[0][number][3] < 0:  # of a part, not of a hole
            x, y, width, height = cv2.boundingRect(contour)
            pixels = cv2.countNonZero(foreground[y : y + height, x : x + width])
            parts.append((x, y, width, height, pixels))
    if sum(part[4] for part in parts) == cv2.countNonZero(foreground):
        return np.array(parts, np.int64).reshape(-1, 5)
    _, _, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    return stats[1:].astype(np.int64)  # row 0 is the background


def box_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union of half-open boxes, in float64: exactly one half is exactly 0.5.

    Args:
        boxes_a: (n, 4) half-open xyxy.
        boxes_b: (m, 4) half-open xyxy.

    Returns:
        (n, m) float64 in [0, 1].

    Example:
        >>> box_iou(torch.tensor([[0, 0, 4, 2]]), torch.tensor([[0, 0, 2, 2]]))
        tensor([[0.5000]], dtype=torch.float64)
    """
    iou: Tensor = torchvision.ops.box_iou(boxes_a.double(), boxes_b.double())
    return iou


def box_iou_inclusive(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union of boxes that own their max edges (a side is max - min + 1 pixels).

    This is how ILSVRC and the WSOL benchmark count. A half-open box of integer edges covers the
    pixels of the inclusive box whose max edges are one less: written either way, two boxes have the
    same IoU.

    Args:
        boxes_a: (n, 4) inclusive xyxy.
        boxes_b: (m, 4) inclusive xyxy.

    Returns:
        (n, m) float64 in [0, 1].

    Example:
        >>> box_iou_inclusive(torch.tensor([[0, 0, 3, 1]]), torch.tensor([[0, 0, 1, 1]]))
        tensor([[0.5000]], dtype=torch.float64)
    """
    last_pixel = torch.tensor([0, 0, 1, 1], device=boxes_a.device)
    return box_iou(boxes_a + last_pixel, boxes_b + last_pixel)


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


def dt_boxes(
    heatmap: Tensor | NDArray[Any], levels: tuple[int, int, int] = DEFAULT_LEVELS
) -> Tensor:
    """Boxes of the tool ``dt_box``, with which the authors of CAM made theirs; the largest first.

    Zhou et al., arXiv 1512.04150; held box for box against the output of their program.

    At each level the pixels *above* it are foreground. Those that lie far enough from the
    background (exact Euclidean distance, at least 10.5/255 of the level's largest; the picture's
    frame is no background) are kept, and every outer contour (8-connected) and every contour of a
    hole (grown by one pixel) gives a box. Of all levels' boxes, sorted by area, a box is erased
    whose intersection with a larger one exceeds half the larger area. Kept from the tool, as it
    decides which boxes remain: the box that follows an erased one is not compared.

    ``torchvision.ops.box_convert(boxes, "xywh", "xyxy")`` makes the boxes half-open xyxy. The
    tool's users took the first or the second box for their guesses.

    Args:
        heatmap: (H, W), uint8, or float in [0, 1], on any device. Floats are quantized as the paper
            did when it saved its maps: divided by the maximum, times 255, rounded half up.
        levels: Three levels, 0 < t0 < t1 < t2 < 255; any others silently become (30, 90, 150), as
            in the tool.

    Returns:
        (n, 4) int64 on the heatmap's device: x, y, width, height in pixels of the heatmap, in the
        order in which the tool prints them (of equal areas the lower level comes first; there the
        tool's own order is arbitrary). (0, 4) where nothing is above the first level, or the
        heatmap holds NaN or infinity. A box in the last five rows or columns can have a side of 0
        or less.

    Raises:
        CamtrainTypeError: ``heatmap`` is neither uint8 nor float.
        CamtrainValueError: ``heatmap`` is not a non-empty (H, W).

    Example:
        >>> heatmap = torch.zeros(60, 80, dtype=torch.uint8)
        >>> heatmap[10:30, 20:50], heatmap[40:50, 10:25] = 105, 80
        >>> dt_boxes(heatmap).tolist()
        [[20, 10, 30, 20], [10, 40, 15, 10]]
    """
    heatmap = torch.as_tensor(heatmap)
    if heatmap.ndim != 2 or heatmap.numel() == 0:
        raise CamtrainValueError(
            f"heatmap must be one map of shape (H, W), got shape {tuple(heatmap.shape)}."
        )
    device, heatmap = heatmap.device, heatmap.detach().cpu()
    if heatmap.dtype != torch.uint8 and not heatmap.is_floating_point():
        raise CamtrainTypeError(f"heatmap must be uint8 or float in [0, 1], got {heatmap.dtype}.")
    pixels = heatmap.numpy() if heatmap.dtype == torch.uint8 else _levels_of_peak(heatmap)
    if not 0 < levels[0] < levels[1] < levels[2] < 255:
        levels = FALLBACK_LEVELS
    boxes = [box for level in levels for box in _boxes_above(pixels, level)]
    boxes.sort(key=lambda box: -box[2] * box[3])
    _erase_overlapping(boxes)
    return torch.tensor(boxes, dtype=torch.int64, device=device).reshape(-1, 4)


def _levels_of_peak(heatmap: Tensor) -> NDArray[np.uint8]:
    """A float heatmap (H, W) in 8 bit as the CAM paper saved its maps: the maximum becomes 255.

    Values are rounded half up. All zeros where nothing is positive, or where a value is NaN or
    infinite.
    """
    values = heatmap.double().clamp_min(0)
    if not heatmap.isfinite().all():
        return np.zeros(values.shape, dtype=np.uint8)
    levels: NDArray[np.float64] = (parts_of_range(values, 0.0, values.amax()) * 255).numpy()
    return np.floor(levels + 0.5).astype(np.uint8)


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
    boxes = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        boxes.append(
            (
                min(x, width - MARGIN),
                min(y, height - MARGIN),
                min(w, width - MARGIN - x),
                min(h, height - MARGIN - y),
            )
        )
    return boxes


def _erase_overlapping(boxes: list[BoxXYWH]) -> None:
    """Erase in place, from boxes sorted by area, those that a larger one covers too much."""
    first = 0
    while first < len(boxes):
        other = first + 1
        while other < len(boxes):
            areas = [box[2] * box[3] for box in (boxes[first], boxes[other])]
            if _intersection(boxes[first], boxes[other]) > int(0.5 * max(areas)):
                del boxes[other]
            other += 1  # also after an erasure: the box that moved up here is skipped
        first += 1


def _intersection(a: BoxXYWH, b: BoxXYWH) -> int:
    """Pixels that two boxes share."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0
