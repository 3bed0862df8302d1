"""The tool that the authors of CAM made their boxes with: three levels, all contours, one list.

Zhou et al., arXiv 1512.04150; the tool is the program ``dt_box`` of the authors' released code.
Held box for box against its own output.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.maps import levels_of_peak

DEFAULT_LEVELS = (20, 100, 110)
FALLBACK_LEVELS = (30, 90, 150)  # what the tool takes, without a word, where levels are invalid
LEAST_DISTANCE = 10  # of 255, the largest distance of the level
MARGIN = 5  # pixels that boxes leave at the right and at the lower edge

BoxXYWH = tuple[int, int, int, int]


def dt_boxes(
    heatmap: Tensor | NDArray[Any], levels: tuple[int, int, int] = DEFAULT_LEVELS
) -> Tensor:
    """Boxes of the CAM authors' three-level tool, the largest first.

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
    pixels = heatmap.numpy() if heatmap.dtype == torch.uint8 else levels_of_peak(heatmap)
    if not 0 < levels[0] < levels[1] < levels[2] < 255:
        levels = FALLBACK_LEVELS
    boxes = [box for level in levels for box in _boxes_above(pixels, level)]
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
