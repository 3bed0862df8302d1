"""GT-known, top-1 and top-5 localization and classification by the rule of ILSVRC."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from camtrain.header import DEFAULT_THRESHOLD, check_threshold
from camtrain.localization.boxes import box_iou, boxes_from_heatmap
from camtrain.localization.pictures import (
    check_batch,
    check_iou_threshold,
    one_map_each,
    pictures_with_boxes,
)
from camtrain.maps import heatmaps

_LOCALIZATION = ("gt_known", "top1", "top5")
_CLASSIFICATION = ("cls_top1", "cls_top5")


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
    """GT-known, top-1, top-5 localization at a fixed threshold of the heatmap, and classification.

    The box of a picture surrounds the largest component of its heatmap (the class map at the
    picture's size, min-max normalized) above threshold x maximum. It is right when its IoU with
    *any* truth box reaches the IoU threshold: exactly 0.5 counts, on inclusive pixels (the rule of
    ILSVRC), which for boxes of integer edges is the half-open IoU (see ``box_iou_inclusive``).

    * ``gt_known``: the box of the true class's map is right.
    * ``top1`` (``top5``): moreover the true class is the best (among the min(5, K) best) of the
      guesses. A guess of another class is wrong whatever its box, so no other map matters.
    * ``cls_top1`` (``cls_top5``): the true class is the best (among the min(5, K) best), over *all*
      pictures.

    Of equal logits the lower class number is guessed first; a class whose logit is NaN is no right
    guess. Pictures without boxes, and those of a blacklist, are not counted for localization. From
    a file of predictions the same is computed by ``flat_errors``, as 1 - error.

    Example:
        >>> maps = torch.zeros(1, 3, 4)
        >>> maps[0, 0, 0] = 1.0
        >>> logits, labels = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2])
        >>> boxes_xyxy, sizes_hw = [torch.tensor([[0, 0, 16, 18]])], torch.tensor([[30, 40]])
        >>> metric = LocalizationAccuracy()
        >>> metric.update(maps, logits, labels, boxes_xyxy, sizes_hw)
        >>> {name: score.item() for name, score in metric.compute().items()}
        {'gt_known': 1.0, 'top1': 0.0, 'top5': 1.0, 'cls_top1': 0.0, 'cls_top5': 1.0}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    gt_known: Tensor
    top1: Tensor
    top5: Tensor
    count: Tensor
    cls_top1: Tensor
    cls_top5: Tensor
    cls_count: Tensor
    class_right: Tensor
    class_count: Tensor

    def __init__(
        self,
        threshold: float = DEFAULT_THRESHOLD,
        iou_threshold: float = 0.5,
        num_classes: int | None = None,
    ) -> None:
        """Start with nothing counted.

        Args:
            threshold: Part of the heatmap's maximum that a pixel must exceed, in [0, 1).
            iou_threshold: The least IoU of a right box, in (0, 1].
            num_classes: K, to count GT-known for each class too; None counts all together only.
        """
        super().__init__()
        self.threshold = check_threshold(threshold)
        self.iou_threshold = check_iou_threshold(iou_threshold)
        for name in (*_LOCALIZATION, "count", *_CLASSIFICATION, "cls_count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("class_right", "class_count"):
            zeros = torch.zeros(num_classes or 0, dtype=torch.int64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(
        self,
        maps: Tensor | Sequence[Tensor],
        logits: Tensor,
        labels: Tensor,
        boxes_xyxy: Sequence[Tensor],
        sizes_hw: Tensor,
        blacklisted: Tensor | None = None,
    ) -> None:
        """Count a batch.

        Args:
            maps: (B, h, w), or B maps (h, w) of any sizes: the class map of each picture's *true*
                class; it covers the whole picture.
            logits: (B, K).
            labels: (B,) int, the true classes.
            boxes_xyxy: Per picture (n, 4), half-open xyxy in pixels of the picture.
            sizes_hw: (B, 2) int, the pictures' (H, W), in pixels.
            blacklisted: (B,) bool: pictures that are left out of localization (ILSVRC has such a
                list, of pictures whose objects cannot be boxed); not out of classification.
        """
        maps = one_map_each(maps, len(boxes_xyxy))
        check_batch("logits", logits, "B K", len(boxes_xyxy))
        check_batch("labels", labels, "B", len(boxes_xyxy))
        if blacklisted is None:
            blacklisted = torch.zeros(len(boxes_xyxy), dtype=torch.bool)
        check_batch("blacklisted", blacklisted, "B", len(boxes_xyxy))
        ranks = ranks_of_labels(logits.detach().cpu(), labels.cpu()).tolist()
        is_left_out = blacklisted.tolist()
        self.cls_top1 += sum(rank < 1 for rank in ranks)
        self.cls_top5 += sum(rank < min(5, logits.shape[1]) for rank in ranks)
        self.cls_count += len(ranks)
        for index, boxes, size_hw in pictures_with_boxes(boxes_xyxy, sizes_hw):
            if is_left_out[index]:
                continue
            heatmap = heatmaps(maps[index][None, None], size=size_hw)[0, 0]
            largest_box = boxes_from_heatmap(heatmap, self.threshold)[:1]
            is_right = bool((box_iou(largest_box, boxes) >= self.iou_threshold).any())
            self.gt_known += is_right
            self.top1 += is_right and ranks[index] < 1
            self.top5 += is_right and ranks[index] < min(5, logits.shape[1])
            self.count += 1
            if len(self.class_count):
                self.class_right[int(labels[index])] += is_right
                self.class_count[int(labels[index])] += 1

    def by_class(self) -> tuple[Tensor, Tensor]:
        """Pictures of each class whose box is right, and that have boxes, (K,) int64 each.

        Of all processes; empty where the number of classes was not given.
        """
        with self.sync_context():
            return self.class_right.cpu().clone(), self.class_count.cpu().clone()

    def compute(self) -> dict[str, Tensor]:
        """The fractions by name, float64 scalars; NaN when nothing was counted."""
        right = {name: self._right(name) / self.count for name in _LOCALIZATION}
        return right | {name: self._right(name) / self.cls_count for name in _CLASSIFICATION}

    def _right(self, name: str) -> Tensor:
        """How many pictures are right, float64."""
        number: Tensor = getattr(self, name)
        return number.double()
