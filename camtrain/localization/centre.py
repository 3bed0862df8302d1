"""Baselines that know only the middle of the picture: a fixed box and a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.localization.boxes import box_iou
from camtrain.localization.metric import (
    PictureMetric,
    SizeHW,
    check_iou_threshold,
    pictures_with_boxes,
)


def centre_iou(boxes_xyxy: Tensor, size_hw: SizeHW, side: float = 0.75) -> float:
    """The best IoU of truth boxes (n, 4) with the box in the centre of their picture."""
    (height, width), low, high = size_hw, (1 - side) / 2, (1 + side) / 2
    centre = [[low * width, low * height, high * width, high * height]]
    return float(box_iou(torch.tensor(centre, dtype=torch.float64), boxes_xyxy).max())


class CentreBoxAcc(PictureMetric):
    """Part of the pictures for which a fixed box in the centre is right: the baseline to beat.

    With one IoU threshold it is the baseline of ``MaxBoxAcc`` and of the GT-known localization of
    ``LocalizationAccuracy``; with three that of ``MaxBoxAccV2``:
    ``CentreBoxAcc(iou_threshold=(0.3, 0.5, 0.7))``. Boxes are compared in pixels of the picture,
    without the rounding to 224 x 224 of the benchmark. Pictures without boxes are not counted.

    Args:
        side: Part of the picture's width and of its height that the box takes, in (0, 1].
        iou_threshold: The least IoU with any truth box, in (0, 1]; of several thresholds, the mean
            of the accuracies is computed.

    Example:
        >>> metric = CentreBoxAcc()
        >>> metric.update([torch.tensor([[5, 10, 35, 70]])], torch.tensor([[80, 40]]))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    def __init__(self, side: float = 0.75, iou_threshold: float | Sequence[float] = 0.5) -> None:
        super().__init__()
        if not 0 < side <= 1:
            raise CamtrainValueError(f"side must lie in (0, 1], got {side}.")
        self.side = side
        thresholds = [iou_threshold] if isinstance(iou_threshold, (int, float)) else iou_threshold
        self.iou_thresholds = tuple(check_iou_threshold(threshold) for threshold in thresholds)
        if not self.iou_thresholds:
            raise CamtrainValueError("iou_threshold must lie in (0, 1], got none.")
        self.add_sums("hits", shape=(len(self.iou_thresholds),), dtype=torch.int64)
        self.add_sums("count", dtype=torch.int64)

    def update(self, boxes_xyxy: Sequence[Tensor], sizes_hw: Tensor) -> None:
        """Count a batch.

        Args:
            boxes_xyxy: Per picture (n, 4), half-open xyxy in pixels of the picture.
            sizes_hw: (B, 2) int, the pictures' (H, W), in pixels.
        """
        for _, boxes, size_hw in pictures_with_boxes(boxes_xyxy, sizes_hw):
            iou = centre_iou(boxes, size_hw, self.side)
            hits = [iou >= threshold for threshold in self.iou_thresholds]
            self.hits += torch.tensor(hits, device=self.hits.device)
            self.count += 1

    def compute(self) -> Tensor:
        """The fraction, a float64 scalar; NaN when nothing was counted."""
        return (self.hits.double() / self.count).mean()


def centre_map(height: int = 56, width: int = 56) -> Tensor:
    """A Gaussian in the centre: as the class map of every picture it is a baseline for metrics.

    This is the "center Gaussian" of the WSOL benchmark (Choe et al., section 5). Its score in
    ``PxAP``, ``MaxBoxAcc`` or ``MaxBoxAccV2``, at the best threshold, is what the place alone
    gives. The width of the Gaussian hardly matters, since these metrics see only which pixels
    exceed a level. (A *constant* map scores in ``PxAP`` the share of positive pixels.)

    Returns:
        (height, width) float32: exp(-(u^2 + v^2) / 2), u and v from -1 to 1 at the edges.

    Raises:
        CamtrainValueError: ``height`` or ``width`` is less than 1.

    Example:
        >>> centre_map(1, 3)
        tensor([[0.8007, 1.0000, 0.8007]])
    """
    if height < 1 or width < 1:
        raise CamtrainValueError(f"height and width must be at least 1, got {height}, {width}.")
    v, u = ((torch.arange(side).double() + 0.5) * 2 / side - 1 for side in (height, width))
    return torch.exp(-(v[:, None] ** 2 + u**2) / 2).float()
