"""Everything measured on a split: loss, accuracy, and localization where pictures have boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from camtrain.data import Batch
from camtrain.model.camnet import Task
from camtrain.training.box_scores import BoxScores, WholeMaps
from camtrain.training.multilabel import MeanAveragePrecision, loss_of, multi_hot

SCORES = {
    "loss": "cross-entropy",
    "acc1": "accuracy, top-1",
    "acc5": "accuracy, top-5",
    "map": "mean average precision",
    "loc_gt_known": "GT-known localization",
    "loc_top1": "top-1 localization",
    "loc_top5": "top-5 localization",
    "max_box_acc": "MaxBoxAcc, oracle threshold",
    "box_acc_calibrated": "threshold calibrated on val",
    "box_acc_fixed": "threshold 0.2",
    "max_box_acc_v2": "MaxBoxAccV2, oracle thresholds",
    "px_ap": "PxAP, of the masks",
    "pointing": "pointing game",
    "mosaic_peak": "mosaics, peak (chance 25 %)",
    "mosaic_energy": "mosaics, energy (chance 25 %)",
    "centre_box_acc": "centre box, MaxBoxAcc and GT-known",
    "centre_box_acc_v2": "centre box, MaxBoxAccV2",
    "constant_px_ap": "constant map, PxAP",
    "centre_pointing": "centre, pointing game",
}
# Those that are not computed after every epoch of a training.
_NOT_BY_EPOCH = {"box_acc_calibrated", "mosaic_peak", "mosaic_energy"}


def score_names(num_classes: int, task: Task) -> list[str]:
    """The scores that a split can have after an epoch."""
    absent = _NOT_BY_EPOCH | ({"acc1", "acc5"} if task == "multilabel" else {"map"})
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
        self.boxes = BoxScores()

    def update(
        self, logits: Tensor, maps: WholeMaps | None, labels: Tensor, batch: Batch | None = None
    ) -> None:
        """Count a batch.

        Args:
            logits: (B, K).
            maps: Of each picture's true class; None where a picture has several, and no
                localization is measured.
            labels: (B,), int64; for multi-label also (B, K), multi-hot.
            batch: Where the boxes are, if there are any.
        """
        if len(labels):  # nothing is left of a batch of repeats
            self.loss.update(loss_of(logits, labels, self.task, reduction="none").double())
            if self.acc1 is not None:
                self.acc1.update(logits, labels)
            if self.acc5 is not None:
                self.acc5.update(logits, labels)
            if self.map is not None:
                self.map.update(logits, multi_hot(labels, self.num_classes))
        if maps is not None and batch is not None:
            self.boxes.update(maps, logits, labels, batch)

    def compute(self, calibrated: float | None = None) -> dict[str, Tensor]:
        """Scores by name, of all processes; localization only where pictures had boxes or masks.

        Args:
            calibrated: A map threshold that was chosen on other pictures, to be scored too.
        """
        scores = {"loss": self.loss.compute()}
        for name, metric in (("acc1", self.acc1), ("acc5", self.acc5), ("map", self.map)):
            if metric is not None:
                scores[name] = metric.compute()
        return scores | self.boxes.compute(calibrated)

    def reset(self) -> None:
        """Forget what was counted."""
        for metric in self.children():
            assert isinstance(metric, (Metric, BoxScores))
            metric.reset()
