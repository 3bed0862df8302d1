"""Everything measured on a split: loss, accuracy, and localization where pictures have boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from camtrain.data import Batch
from camtrain.inference.bundle import DEFAULT_THRESHOLD
from camtrain.inference.heatmap import whole_picture_maps
from camtrain.localization import CentreBoxAcc, LocalizationAccuracy, MaxBoxAcc
from camtrain.model.camnet import Task
from camtrain.preprocessing import Preprocessing
from camtrain.training.multilabel import MeanAveragePrecision, loss_of, multi_hot

# Cropped or padded maps are moved onto the picture at the resolution of the WSOL benchmark.
_MOVED_SIZE = (224, 224)

SCORES = {
    "loss": "cross-entropy",
    "acc1": "accuracy, top-1",
    "acc5": "accuracy, top-5",
    "map": "mean average precision",
    "loc_gt_known": "GT-known localization",
    "loc_top1": "top-1 localization",
    "loc_top5": "top-5 localization",
    "max_box_acc": "MaxBoxAcc, best threshold",
    "centre_box_acc": "centre box, for comparison",
}


def score_names(num_classes: int, task: Task) -> list[str]:
    """The scores that a split can have."""
    absent = {"acc1", "acc5"} if task == "multilabel" else {"map"}
    if num_classes <= 5:  # the five best of five classes are always right
        absent.add("acc5")
    return [name for name in SCORES if name not in absent]


class Evaluation(nn.Module):
    """The metrics of one split, under the names they are logged with."""

    def __init__(self, num_classes: int, task: Task = "multiclass") -> None:
        super().__init__()
        self.num_classes = num_classes
        self.task: Task = task
        names = score_names(num_classes, task)
        self.loss = MeanMetric().set_dtype(torch.float64)
        self.acc1 = MulticlassAccuracy(num_classes, average="micro") if "acc1" in names else None
        self.acc5 = (
            MulticlassAccuracy(num_classes, top_k=5, average="micro") if "acc5" in names else None
        )
        self.map = MeanAveragePrecision(num_classes) if "map" in names else None
        self.localization = LocalizationAccuracy(threshold=DEFAULT_THRESHOLD)
        self.max_box_acc = MaxBoxAcc()
        self.centre_box_acc = CentreBoxAcc()

    def update(
        self,
        logits: Tensor,
        maps: Tensor | None,
        labels: Tensor,
        batch: Batch | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        """Count a batch.

        Args:
            logits: (B, K).
            maps: (B, h, w), the class map of each picture's true class, covering the network's
                input; None where a picture has several, and no localization is measured.
            labels: (B,), int64; for multi-label also (B, K), multi-hot.
            batch: Where the boxes are, if there are any.
            preprocessing: How the pictures became the input; only the pictures of a batch need it.
        """
        self.loss.update(loss_of(logits, labels, self.task, reduction="none").double())
        if self.acc1 is not None:
            self.acc1.update(logits, labels)
        if self.acc5 is not None:
            self.acc5.update(logits, labels)
        if self.map is not None:
            self.map.update(logits, multi_hot(labels, self.num_classes))
        if maps is None:
            return
        # Without boxes nothing is counted; yet every process updates, for they synchronize later.
        boxes = [torch.zeros(0, 4)] * len(labels) if batch is None else batch.boxes_xyxy
        sizes_hw = torch.zeros(len(labels), 2) if batch is None else batch.sizes_hw
        if any(map(len, boxes)) and preprocessing and preprocessing.resize_mode != "squash":
            maps = torch.stack(
                [
                    whole_picture_maps(one[None], preprocessing, (height, width), _MOVED_SIZE)[0]
                    for one, (height, width) in zip(maps, sizes_hw.tolist(), strict=True)
                ]
            )
        self.localization.update(maps, logits, labels, boxes, sizes_hw)
        self.max_box_acc.update(maps, boxes, sizes_hw)
        self.centre_box_acc.update(boxes, sizes_hw)

    def compute(self) -> dict[str, Tensor]:
        """Scores by name, of all processes; localization only where a picture had boxes."""
        scores = {"loss": self.loss.compute()}
        for name, metric in (("acc1", self.acc1), ("acc5", self.acc5), ("map", self.map)):
            if metric is not None:
                scores[name] = metric.compute()
        if not self.max_box_acc.update_called:  # no picture had one true class
            return scores
        max_box_acc = self.max_box_acc.compute()
        if not max_box_acc.isnan():
            found = self.localization.compute()
            scores |= {f"loc_{name}": found[name] for name in ("gt_known", "top1", "top5")}
            scores["max_box_acc"] = max_box_acc
            scores["centre_box_acc"] = self.centre_box_acc.compute()
        return scores

    def best_threshold(self) -> float:
        """The map threshold that gave ``max_box_acc``; 0.2 where no picture had boxes."""
        best = self.max_box_acc.best_threshold()
        return DEFAULT_THRESHOLD if best != best else best  # NaN: nothing was counted

    def reset(self) -> None:
        """Forget what was counted."""
        for metric in self.children():
            assert isinstance(metric, Metric)
            metric.reset()
