"""MaxBoxAcc, the WSOL benchmark's score: localization at the data set's best threshold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from camtrain.localization.boxes import box_iou_inclusive
from camtrain.localization.pictures import check_batch, check_iou_threshold, pictures_with_boxes
from camtrain.localization.wsol import (
    THRESHOLDS,
    inclusive_boxes,
    largest_contour_boxes,
    levels_of_thresholds,
    quantized,
    score_map,
)


def hits_at_thresholds(
    class_map: Tensor, boxes_xyxy: Tensor, size_hw: tuple[int, int], iou_threshold: float = 0.5
) -> Tensor:
    """Whether the box of a class map meets any truth box, at each of the benchmark's thresholds.

    Args:
        class_map: (h, w), signed and unnormalized; it covers the whole picture.
        boxes_xyxy: (n, 4), n > 0, half-open xyxy in pixels of the picture, on the CPU.
        size_hw: The picture's (H, W), in pixels.
        iou_threshold: The least IoU of a hit, on inclusive pixels at 224 x 224.

    Returns:
        (1000,) bool.
    """
    levels = quantized(score_map(class_map))
    iou = box_iou_inclusive(largest_contour_boxes(levels), inclusive_boxes(boxes_xyxy, size_hw))
    hits = iou.amax(dim=1) >= iou_threshold  # (256,)
    return hits[torch.from_numpy(levels_of_thresholds(levels))]


class MaxBoxAcc(Metric):
    """Part of the pictures whose one box is right, at the one threshold that is best for them all.

    max over 1,000 thresholds t of mean over pictures of [IoU(box at t, any truth box) >= the IoU
    threshold], exactly as the benchmark computes it (Choe et al., arXiv 2007.04178, section 3.2;
    the protocol is in ``wsol.py``). Pictures without boxes are not counted. Memory is constant.

    Example:
        >>> class_map = torch.zeros(1, 14, 14)
        >>> class_map[0, 4:10, 2:8] = 1.0
        >>> boxes_xyxy, sizes_hw = [torch.tensor([[40, 60, 160, 140]])], torch.tensor([[200, 280]])
        >>> metric = MaxBoxAcc()
        >>> metric.update(class_map, boxes_xyxy, sizes_hw)
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
        >>> metric.best_threshold()
        0.091
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    hits: Tensor
    count: Tensor

    def __init__(self, iou_threshold: float = 0.5) -> None:
        """Start with nothing counted.

        Args:
            iou_threshold: The least IoU of a hit, in (0, 1].
        """
        super().__init__()
        self.iou_threshold = check_iou_threshold(iou_threshold)
        hits = torch.zeros(len(THRESHOLDS), dtype=torch.int64)
        self.add_state("hits", hits, dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: Tensor, boxes_xyxy: Sequence[Tensor], sizes_hw: Tensor) -> None:
        """Count a batch.

        Args:
            maps: (B, h, w), a class map per picture, signed and unnormalized; it covers the whole
                picture.
            boxes_xyxy: Per picture (n, 4), half-open xyxy in pixels of the picture.
            sizes_hw: (B, 2) int, the pictures' (H, W), in pixels.
        """
        check_batch("maps", maps, "B h w", len(boxes_xyxy))
        maps = maps.detach().cpu()
        for index, boxes, size_hw in pictures_with_boxes(boxes_xyxy, sizes_hw):
            hits = hits_at_thresholds(maps[index], boxes, size_hw, self.iou_threshold)
            self.hits += hits.to(self.hits.device)
            self.count += 1

    def compute(self) -> Tensor:
        """The accuracy at the best threshold, a float64 scalar; NaN when nothing was counted."""
        return self.hits.amax().double() / self.count

    def best_threshold(self) -> float:
        """The first of the best thresholds, in [0, 1), a part of the map's maximum after min-max.

        It is that of all processes together; NaN when nothing was counted.
        """
        with self.sync_context():
            return float(THRESHOLDS[int(self.hits.argmax())]) if self.count else float("nan")
