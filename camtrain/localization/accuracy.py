"""GT-known, top-1 and top-5 localization, and the score of a box that looks at nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from camtrain.errors import CamtrainValueError
from camtrain.localization.boxes import box_iou, boxes_from_heatmap, check_threshold
from camtrain.localization.pictures import check_batch, check_iou_threshold, pictures_with_boxes


def ranks_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes are guessed before the label.

    Args:
        logits: (B, K).
        labels: (B,) int.

    Returns:
        (B,) int64 in [0, K]: 0 for the best guess; of equal logits the lower class number is
        guessed first; K where the label's logit is NaN.

    Example:
        >>> ranks_of_labels(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([2]))
        tensor([1])
    """
    classes, labels = torch.arange(logits.shape[1], device=logits.device), labels[:, None]
    own = logits.gather(1, labels)  # (B, 1)
    not_before = (logits < own) | ((logits == own) & (classes >= labels))
    return logits.shape[1] - not_before.sum(dim=1)


class LocalizationAccuracy(Metric):
    """GT-known, top-1 and top-5 localization at a fixed threshold of the heatmap.

    The box of a picture surrounds the largest component of its heatmap (the class map at the
    picture's size, min-max normalized) above threshold x maximum. It is right when its IoU with
    *any* truth box reaches the IoU threshold: exactly 0.5 counts, on inclusive pixels (the rule of
    ILSVRC), which for boxes of integer edges is the half-open IoU (see ``box_iou_inclusive``).

    * ``gt_known``: the box of the true class's map is right.
    * ``top1`` (``top5``): moreover the true class is the best (among the min(5, K) best) of the
      guesses. A guess of another class is wrong whatever its box, so no other map matters.

    Of equal logits the lower class number is guessed first; a class whose logit is NaN is no right
    guess. Pictures without boxes are not counted.

    Example:
        >>> maps = torch.zeros(1, 3, 4)
        >>> maps[0, 0, 0] = 1.0
        >>> logits, labels = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2])
        >>> boxes_xyxy, sizes_hw = [torch.tensor([[0, 0, 16, 18]])], torch.tensor([[30, 40]])
        >>> metric = LocalizationAccuracy()
        >>> metric.update(maps, logits, labels, boxes_xyxy, sizes_hw)
        >>> {name: score.item() for name, score in metric.compute().items()}
        {'gt_known': 1.0, 'top1': 0.0, 'top5': 1.0}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    gt_known: Tensor
    top1: Tensor
    top5: Tensor
    count: Tensor

    def __init__(self, threshold: float = 0.2, iou_threshold: float = 0.5) -> None:
        """Start with nothing counted.

        Args:
            threshold: Part of the heatmap's maximum that a pixel must exceed, in [0, 1).
            iou_threshold: The least IoU of a right box, in (0, 1].
        """
        super().__init__()
        self.threshold = check_threshold(threshold)
        self.iou_threshold = check_iou_threshold(iou_threshold)
        for name in ("gt_known", "top1", "top5", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        maps: Tensor,
        logits: Tensor,
        labels: Tensor,
        boxes_xyxy: Sequence[Tensor],
        sizes_hw: Tensor,
    ) -> None:
        """Count a batch.

        Args:
            maps: (B, h, w), the class map of each picture's *true* class; it covers the whole
                picture.
            logits: (B, K).
            labels: (B,) int, the true classes.
            boxes_xyxy: Per picture (n, 4), half-open xyxy in pixels of the picture.
            sizes_hw: (B, 2) int, the pictures' (H, W), in pixels.
        """
        check_batch("maps", maps, "B h w", len(boxes_xyxy))
        check_batch("logits", logits, "B K", len(boxes_xyxy))
        check_batch("labels", labels, "B", len(boxes_xyxy))
        maps = maps.detach().cpu()
        ranks = ranks_of_labels(logits.detach().cpu(), labels.cpu()).tolist()
        for index, boxes, size_hw in pictures_with_boxes(boxes_xyxy, sizes_hw):
            found = boxes_from_heatmap(_heatmap(maps[index], size_hw), self.threshold)[:1]
            is_right = bool((box_iou(found, boxes) >= self.iou_threshold).any())
            self.gt_known += is_right
            self.top1 += is_right and ranks[index] < 1
            self.top5 += is_right and ranks[index] < min(5, logits.shape[1])
            self.count += 1

    def compute(self) -> dict[str, Tensor]:
        """The fractions by name, float64 scalars; NaN when nothing was counted."""
        right = {"gt_known": self.gt_known, "top1": self.top1, "top5": self.top5}
        return {name: number.double() / self.count for name, number in right.items()}


class CentreBoxAcc(Metric):
    """Part of the pictures that a fixed box in the centre gets right: what localizers must beat.

    Pictures without boxes are not counted.

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

    def __init__(self, side: float = 0.75, iou_threshold: float = 0.5) -> None:
        """Start with nothing counted.

        Args:
            side: Part of the picture's width and of its height that the box takes, in (0, 1].
            iou_threshold: The least IoU with any truth box, in (0, 1].
        """
        super().__init__()
        if not 0 < side <= 1:
            raise CamtrainValueError(f"side must lie in (0, 1], got {side}.")
        self.side = side
        self.iou_threshold = check_iou_threshold(iou_threshold)
        for name in ("hits", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, boxes_xyxy: Sequence[Tensor], sizes_hw: Tensor) -> None:
        """Count a batch.

        Args:
            boxes_xyxy: Per picture (n, 4), half-open xyxy in pixels of the picture.
            sizes_hw: (B, 2) int, the pictures' (H, W), in pixels.
        """
        low, high = (1 - self.side) / 2, (1 + self.side) / 2
        for _, boxes, (height, width) in pictures_with_boxes(boxes_xyxy, sizes_hw):
            centre = [[low * width, low * height, high * width, high * height]]
            iou = box_iou(torch.tensor(centre, dtype=torch.float64), boxes)
            self.hits += bool((iou >= self.iou_threshold).any())
            self.count += 1

    def compute(self) -> Tensor:
        """The fraction, a float64 scalar; NaN when nothing was counted."""
        return self.hits.double() / self.count


def _heatmap(class_map: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """The heatmap (H, W), float32, of a class map (h, w); zeros where constant or not finite."""
    values = class_map.float()
    low, high = values.aminmax()
    # Judged before the upsampling, whose rounding would be blown up to a full heatmap.
    if not torch.isfinite(high - low) or low == high:
        return torch.zeros(size_hw)
    heatmap = functional.interpolate(
        values[None, None], size=size_hw, mode="bilinear", align_corners=False
    )[0, 0]
    heatmap = heatmap - heatmap.amin()
    return heatmap / heatmap.amax()
