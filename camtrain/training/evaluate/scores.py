"""The scores of a split, by name: loss, accuracy, and localization where pictures have boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from camtrain.data import Batch
from camtrain.header import DEFAULT_THRESHOLD
from camtrain.labels import Task, multi_hot
from camtrain.localization import MapStatistics
from camtrain.preprocessing import Preprocessing
from camtrain.training.evaluate.average_precision import MeanAveragePrecision
from camtrain.training.evaluate.box_scores import BoxScores, WholeMaps
from camtrain.training.learn.losses import loss_of

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
    "cam_energy_in_box": "heatmap energy inside the boxes",
    "cam_area": "heatmap area above 0.2",
    "cam_entropy": "heatmap entropy",
    "mosaic_peak": "mosaics, peak (chance 25 %)",
    "mosaic_energy": "mosaics, energy (chance 25 %)",
    "centre_box_acc": "centre box, MaxBoxAcc and GT-known",
    "centre_box_acc_v2": "centre box, MaxBoxAccV2",
    "constant_px_ap": "constant map, PxAP",
    "centre_pointing": "centre, pointing game",
}
# Those that are not computed after every epoch of a training.
_NOT_BY_EPOCH = {"box_acc_calibrated", "mosaic_peak", "mosaic_energy"}
_MAX_CONFUSION_CLASSES = 2000  # they take 32 MB


def score_names(num_classes: int, task: Task) -> list[str]:
    """The scores that a split can have after an epoch."""
    absent = _NOT_BY_EPOCH | ({"acc1", "acc5"} if task == "multilabel" else {"map"})
    if num_classes <= 5:  # the five best of five classes are always right
        absent.add("acc5")
    return [name for name in SCORES if name not in absent]


@dataclass(frozen=True, eq=False)
class ClassScores:
    """The scores of each class, of all processes.

    Attributes:
        confusion: (K, K) int64, pictures by true class (rows) and predicted class (columns); None
            for multi-label and above 2,000 classes.
        average_precision: (K,) float64, NaN for classes without a picture; None unless multi-label.
        boxes_right: (K,) int64, pictures that count for GT-known localization.
        boxes_seen: (K,) int64, pictures with boxes.
    """

    confusion: Tensor | None
    average_precision: Tensor | None
    boxes_right: Tensor
    boxes_seen: Tensor


class Evaluation(nn.Module):
    """The metrics of one split, under the names they are logged with."""

    def __init__(self, num_classes: int, task: Task = "multiclass") -> None:
        super().__init__()
        self.num_classes = num_classes
        self.task: Task = task
        self.loss = MeanMetric().set_dtype(torch.float64)
        self.ranked = _ranking_metrics(num_classes, task)
        self.confusion = None
        if task == "multiclass" and num_classes <= _MAX_CONFUSION_CLASSES:
            self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.statistics = MapStatistics(threshold=DEFAULT_THRESHOLD)
        self.boxes = BoxScores(num_classes)

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
            is_multilabel = self.task == "multilabel"
            targets = multi_hot(labels, self.num_classes) if is_multilabel else labels
            self.ranked.update(logits, targets)
            if self.confusion is not None:
                self.confusion.update(logits, labels)
        if maps is not None and batch is not None:
            self.boxes.update(maps, logits, labels, batch)

    def update_statistics(
        self, maps: Tensor, batch: Sequence[Any], preprocessing: Preprocessing | None
    ) -> None:
        """Count how the maps of a batch look, over what the network saw.

        Args:
            maps: (B, h, w), of each picture's true class.
            batch: Where they are from; with boxes if it is a ``Batch``.
            preprocessing: Of the network.
        """
        images, size_hw = batch[0], (batch[0].shape[-2], batch[0].shape[-1])
        boxes = [torch.zeros(0, 4)] * len(maps)
        if isinstance(batch, Batch):
            boxes = batch.input_boxes_xyxy
        if isinstance(batch, Batch) and batch.is_cached:
            assert preprocessing is not None
            size_hw = preprocessing.size
            # Where only the pooled vector is cached, it is spread over a map that shows nothing.
            is_map = (images != images[..., :1, :1]).any(3).any(2).any(1)
            maps, boxes = maps[is_map], [boxes[row] for row in is_map.nonzero().flatten()]
        self.statistics.update(maps, boxes, size_hw)

    def by_class(self) -> ClassScores:
        """The scores of each class, of all processes."""
        average_precision = None
        if self.task == "multilabel":
            metric = self.ranked["map"]
            assert isinstance(metric, MeanAveragePrecision)
            average_precision = metric.by_class()
        boxes_right, boxes_seen = self.boxes.accuracy.by_class()
        return ClassScores(
            confusion=None if self.confusion is None else self.confusion.compute().cpu(),
            average_precision=average_precision,
            boxes_right=boxes_right,
            boxes_seen=boxes_seen,
        )

    def compute(self, calibrated: float | None = None) -> dict[str, Tensor]:
        """Scores by name, of all processes; localization only where pictures had boxes or masks.

        Args:
            calibrated: A map threshold that was chosen on other pictures, to be scored too.
        """
        scores = {"loss": self.loss.compute(), **self.ranked.compute()}
        # A process whose pictures have no maps synchronizes like the others.
        self.statistics.update(torch.zeros(0, 1, 2), [], (1, 2))
        scores |= {
            f"cam_{name}": value
            for name, value in self.statistics.compute().items()
            if not value.isnan()
        }
        return scores | self.boxes.compute(calibrated)

    def reset(self) -> None:
        """Start anew, with nothing counted."""
        for metric in self.children():
            assert isinstance(metric, (Metric, MetricCollection, BoxScores))
            metric.reset()


def _ranking_metrics(num_classes: int, task: Task) -> MetricCollection:
    """The metrics of logits and targets, by their names."""
    metrics: dict[str, Metric | MetricCollection] = {}
    names = score_names(num_classes, task)
    if "map" in names:
        metrics["map"] = MeanAveragePrecision(num_classes)
    if "acc1" in names:
        metrics["acc1"] = MulticlassAccuracy(num_classes, average="micro")
    if "acc5" in names:
        metrics["acc5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
    return MetricCollection(metrics, compute_groups=False)
