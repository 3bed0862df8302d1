"""Boxes around what a heatmap shows, and how well two sets of boxes overlap."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.header import DEFAULT_THRESHOLD, check_threshold

_FEW = 100  # outlines; the many of a noisy map are better labelled


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
    one = torch.tensor([0, 0, 1, 1], device=boxes_a.device)
    return box_iou(boxes_a + one, boxes_b + one)
