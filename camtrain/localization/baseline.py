"""What scores without looking: the box and the map in the centre that every localizer must beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from camtrain.errors import CamtrainValueError
from camtrain.localization.boxes import box_iou
from camtrain.localization.pictures import check_iou_threshold, pictures_with_boxes


class CentreBoxAcc(Metric):
    """Part of the pictures that a fixed box in the centre gets right: what localizers must beat.

    With one IoU threshold it is the baseline of ``MaxBoxAcc`` and of the GT-known localization of
    ``LocalizationAccuracy``; with several, of which the mean is taken, that of ``MaxBoxAccV2``:
    ``CentreBoxAcc(iou_threshold=(0.3, 0.5, 0.7))``. Boxes are compared in pixels of the picture,
    without the rounding to 224 x 224 of the WSOL protocol. Pictures without boxes are not counted.

    Example:
        >>> metric = CentreBoxAcc()
        >>> metric.update([torch.tensor([[5, 10, 35, 70]])], torch.tensor([[80, 40]]))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    hits: Tensor
    count: Tensor

    def __init__(self, side: float = 0.75, iou_threshold: float | Sequence[float] = 0.5) -> None:
        """Start with nothing counted.

        Args:
            side: Part of the picture's width and of its height that the box takes, in (0, 1].
            iou_threshold: The least IoU with any truth box, in (0, 1]; of several, the accuracies'
                mean is computed.
        """
        super().__init__()
        if not 0 < side <= 1:
            raise CamtrainValueError(f"side must lie in (0, 1], got {side}.")
        self.side = side
        several = [iou_threshold] if isinstance(iou_threshold, (int, float)) else iou_threshold
        self.iou_thresholds = tuple(check_iou_threshold(threshold) for threshold in several)
        if not self.iou_thresholds:
            raise CamtrainValueError("iou_threshold must lie in (0, 1], got none.")
        hits = torch.zeros(len(self.iou_thresholds), dtype=torch.int64)
        self.add_state("hits", hits, dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, boxes_xyxy: Sequence[Tensor], sizes_hw: Tensor) -> None:
        """Count a batch.

        Args:
            boxes_xyxy: Per picture (n, 4), half-open xyxy in pixels of the picture.
            sizes_hw: (B, 2) int, the pictures' (H, W), in pixels.
        """
        low, high = (1 - self.side) / 2, (1 + self.side) / 2
        for _, boxes, (height, width) in pictures_with_boxes(boxes_xyxy, sizes_hw):
            centre = [[low * width, low * height, high * width, high * height]]
            iou = box_iou(torch.tensor(centre, dtype=torch.float64), boxes).max().item()
            hits = [iou >= threshold for threshold in self.iou_thresholds]
            self.hits += torch.tensor(hits, device=self.hits.device)
            self.count += 1

    def compute(self) -> Tensor:
        """The fraction, a float64 scalar; NaN when nothing was counted."""
        return (self.hits.double() / self.count).mean()


def centre_map(height: int = 56, width: int = 56) -> Tensor:
    """A Gaussian in the centre: as a class map of every picture, the baseline of metrics of maps.

    The "center Gaussian" of the WSOL benchmark (Choe et al., arXiv 2007.04178, section 5). Scored
    by ``PxAP``, ``MaxBoxAcc`` or ``MaxBoxAccV2`` in place of the class maps, with the metric's own
    choice of the threshold, it tells what the place alone earns. Its width hardly matters, since
    the metrics see only which pixels exceed a level. (A *constant* map earns in ``PxAP`` the share
    of positive pixels.)

    Args:
        height: Of the map, at least 1.
        width: Of the map, at least 1.

    Returns:
        (height, width) float32: exp(-(u^2 + v^2) / 2), u and v from -1 to 1 at the edges.

    Example:
        >>> centre_map(1, 3)
        tensor([[0.8007, 1.0000, 0.8007]])
    """
    if height < 1 or width < 1:
        raise CamtrainValueError(f"height and width must be at least 1, got {height}, {width}.")
    v, u = ((torch.arange(side).double() + 0.5) * 2 / side - 1 for side in (height, width))
    return torch.exp(-(v[:, None] ** 2 + u**2) / 2).float()
