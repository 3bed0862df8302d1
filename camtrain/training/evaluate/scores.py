"""The scores of a split by name: loss, accuracy, and localization if pictures have boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from camtrain.data import Batch
from camtrain.labels import Task, multi_hot
from camtrain.localization import MapStatistics
from camtrain.preprocessing import Preprocessing
from camtrain.thresholds import DEFAULT_THRESHOLD
from camtrain.training.evaluate.box_scores import BoxScores, WholeMaps
from camtrain.training.evaluate.calibration import CalibrationError
from camtrain.training.learn.losses import loss_of

SCORES = {
    "loss": "cross-entropy",
    "acc1": "accuracy, top-1",
    "acc5": "accuracy, top-5",
    "map": "mean average precision",
    "acc": "accuracy, score of at least 0.5",
    "ece": "calibration error (ECE)",
    "box_acc_calibrated": "boxes, threshold calibrated on val",
    "loc_gt_known": "GT-known localization, threshold 0.2",
    "loc_top1": "top-1 localization, threshold 0.2",
    "loc_top5": "top-5 localization, threshold 0.2",
    "max_box_acc": "MaxBoxAcc, oracle threshold",
    "box_acc_fixed": "boxes, threshold 0.2",
    "box_acc_auto": "boxes, threshold auto",
    "max_box_acc_v2": "MaxBoxAccV2, oracle thresholds",
    "px_ap": "PxAP, of the masks",
    "pointing": "pointing game",
    "cam_energy_in_box": "heatmap energy inside the boxes",
    "cam_area": "heatmap area above 0.2",
    "cam_entropy": "heatmap entropy",
    "mosaic_peak": "mosaics, peak",
    "mosaic_energy": "mosaics, energy",
    "mosaic_chance": "mosaics, peak and energy by chance",
    "deletion": "faithfulness, deletion",
    "insertion": "faithfulness, insertion",
    "srg": "faithfulness, insertion - deletion",
    "srg_plain": "plain maps, insertion - deletion",
    "srg_centre": "centre, insertion - deletion",
    "srg_random": "random maps, insertion - deletion",
    "centre_box_acc": "centre box, MaxBoxAcc and GT-known",
    "centre_box_acc_v2": "centre box, MaxBoxAccV2",
    "constant_px_ap": "constant map, PxAP",
    "centre_pointing": "centre, pointing game",
}
# Scores that are not computed after every epoch of a training.
_NOT_BY_EPOCH = {
    *("box_acc_calibrated", "mosaic_peak", "mosaic_energy", "mosaic_chance"),
    *("deletion", "insertion", "srg", "srg_plain", "srg_centre", "srg_random"),
}
_MAX_CONFUSION_CLASSES = 2000  # a matrix of 32 MB
# The edges between the bins are logits, since the scores of rare labels crowd near 0. Torchmetrics'
# metric compares every score with every threshold: ten times the time and 602 times the memory.
_EDGES = torch.arange(-300, 301) / 20  # 0 exactly is one of them
_MIDDLE = 301  # the first bin of logits that are at least 0, whose score is at least 0.5


def score_names(num_classes: int, task: Task) -> list[str]:
    """The names of the scores that a split can have after an epoch."""
    absent = _NOT_BY_EPOCH | ({"acc1", "acc5"} if task == "multilabel" else {"map", "acc"})
    if num_classes > 1:  # pictures of one class of many are right even if nothing is found in them
        absent.add("acc")
    if num_classes <= 5:  # the five best of five classes are always right
        absent.add("acc5")
    return [name for name in SCORES if name not in absent]


def is_smaller_better(name: str) -> bool:
    """Whether the best value of a logged score is the smallest."""
    return "loss" in name or name.endswith("/ece")


def score_rows(scores: Mapping[str, float | None]) -> dict[str, tuple[str, str]]:
    """What each score is called and its value as people read it, by name, in the usual order."""
    return {
        name: (text, f"{value:.4f}" if name == "loss" else f"{100 * value:.2f} %")
        for name, text in SCORES.items()
        if (value := scores.get(name)) is not None
    }


class ClassScores(NamedTuple):
    """The scores of each class, over all processes.

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


class MeanAveragePrecision(Metric):
    """The mean over the classes of the average precision, for multi-label networks.

    The average precision of a class is the mean, over its pictures, of the precision among all
    pictures whose logit is at least theirs: sum over thresholds of (R_n - R_n-1) P_n. Logits are
    counted in 602 bins, 0.05 wide from -15 to 15, so memory is constant, and neither batches nor
    processes matter; logits of one bin count as equal. NaN ranks last. Classes without a picture
    are left out.

    Example:
        >>> metric = MeanAveragePrecision(3)
        >>> logits = torch.tensor([[3.0, -2.0, 0.0], [-1.0, -1.0, 0.0], [1.0, 2.0, 0.0]])
        >>> metric.update(logits, torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0]]))
        >>> round(metric.compute().item(), 4)  # (1 + 2/3) / 2 and 1; nothing is of the third class
        0.9167
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        counts = torch.zeros(num_classes, 2, len(_EDGES) + 1, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch of logits (B, K) with targets (B, K), 0 or 1."""
        logits = logits.detach().float().nan_to_num(nan=-torch.inf)
        bins = torch.bucketize(logits, _EDGES.to(logits.device), right=True)  # (B, K)
        classes = torch.arange(logits.shape[1], device=logits.device)
        indices = (2 * classes + targets.long()) * self.counts.shape[2] + bins
        counts = torch.bincount(indices.flatten(), minlength=self.counts.numel())
        self.counts += counts.reshape(self.counts.shape)

    def compute(self) -> Tensor:
        """The mean average precision, a float64 scalar in [0, 1]; NaN if no class has a picture."""
        return self._by_class().nanmean()

    def by_class(self) -> Tensor:
        """The average precision of each class, (K,) float64, over all processes; NaN if empty."""
        with self.sync_context():
            return self._by_class().cpu()

    def accuracy(self) -> Tensor:
        """The part of the labels that a score of 0.5 decides rightly, float64, of all processes."""
        with self.sync_context():
            right = self.counts[:, 0, :_MIDDLE].sum() + self.counts[:, 1, _MIDDLE:].sum()
            return right.double() / self.counts.sum()

    def _by_class(self) -> Tensor:
        positives, every = self.counts[:, 1].flip(1), self.counts.sum(1).flip(1)  # best bin first
        precision = positives.cumsum(1) / every.cumsum(1).clamp_min(1).double()
        return (positives * precision).sum(1) / positives.sum(1)


class Evaluation(nn.Module):
    """The metrics of one split, under the names they are logged with."""

    def __init__(self, num_classes: int, task: Task = "multiclass") -> None:
        super().__init__()
        self.num_classes = num_classes
        self.task: Task = task
        self.loss = MeanMetric().set_dtype(torch.float64)
        names = score_names(num_classes, task)
        ranked: dict[str, Metric | MetricCollection] = {}
        if "map" in names:
            ranked["map"] = MeanAveragePrecision(num_classes)
        if "acc1" in names:
            ranked["acc1"] = MulticlassAccuracy(num_classes, average="micro")
        if "acc5" in names:
            ranked["acc5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
        self.ranked = MetricCollection(ranked, compute_groups=False)
        self.calibration = CalibrationError(task)
        self.confusion = None
        if task == "multiclass" and num_classes <= _MAX_CONFUSION_CLASSES:
            self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.statistics = MapStatistics(threshold=DEFAULT_THRESHOLD)
        self.boxes = BoxScores(num_classes)

    def update(
        self,
        logits: Tensor,
        maps: WholeMaps | None,
        labels: Tensor,
        batch: Batch | None = None,
        losses: Tensor | None = None,
    ) -> None:
        """Count a batch.

        Args:
            logits: (B, K).
            maps: The maps of the true classes; None if pictures have several. Of a class alone,
                also of pictures that do not have it.
            labels: (B,), int64; for multi-label also (B, K), multi-hot.
            batch: The batch with boxes, if it is a ``Batch``.
            losses: One per picture, (B,); None for that of the labels.
        """
        if len(labels):  # a batch of repeats is empty now
            if losses is None:
                losses = loss_of(logits, labels, self.task, reduction="none")
            self.loss.update(losses.double())
            is_multilabel = self.task == "multilabel"
            targets = multi_hot(labels, self.num_classes) if is_multilabel else labels
            self.ranked.update(logits, targets)
            self.calibration.update(logits, targets)
            if self.confusion is not None:
                self.confusion.update(logits, labels)
        if maps is not None and batch is not None:
            classes = labels if labels.ndim == 1 else labels.new_zeros(len(labels)).long()
            self.boxes.update(maps, logits, classes, batch)

    def update_statistics(
        self, maps: Tensor, batch: Sequence[Any], preprocessing: Preprocessing | None
    ) -> None:
        """Count the statistics of maps (B, h, w) of the true classes, over the network's input."""
        images, size_hw = batch[0], (batch[0].shape[-2], batch[0].shape[-1])
        boxes = [torch.zeros(0, 4)] * len(maps)
        is_counted = batch[1][:, 0] > 0 if batch[1].ndim > 1 else None  # have the class alone
        if isinstance(batch, Batch):
            boxes = batch.input_boxes_xyxy
        if isinstance(batch, Batch) and batch.is_cached:
            assert preprocessing is not None
            size_hw = preprocessing.size
            # A pooled vector that was cached without its map is a constant map: not counted.
            is_map = (images != images[..., :1, :1]).any(3).any(2).any(1)
            is_counted = is_map if is_counted is None else is_map & is_counted
        if is_counted is not None:
            maps, boxes = maps[is_counted], [boxes[row] for row in is_counted.nonzero().flatten()]
        self.statistics.update(maps, boxes, size_hw)

    def by_class(self) -> ClassScores:
        """The scores of each class, over all processes."""
        average_precision = None
        if self.task == "multilabel":
            average_precision = self._average_precision().by_class()
        boxes_right, boxes_seen = self.boxes.accuracy.by_class()
        return ClassScores(
            confusion=None if self.confusion is None else self.confusion.compute().cpu(),
            average_precision=average_precision,
            boxes_right=boxes_right,
            boxes_seen=boxes_seen,
        )

    def compute(self, calibrated: float | None = None) -> dict[str, Tensor]:
        """The scores by name, over all processes; see ``BoxScores.compute`` for localization."""
        ranked = {n: v for n, v in self.ranked.compute().items() if n != "map" or not v.isnan()}
        scores = {"loss": self.loss.compute(), **ranked}
        if "acc" in score_names(self.num_classes, self.task):
            scores["acc"] = self._average_precision().accuracy()
        scores["ece"] = self.calibration.compute()
        # Counts nothing, so that a process without any maps synchronizes like the others.
        self.statistics.update(torch.zeros(0, 1, 2), [], (1, 2))
        scores |= {
            f"cam_{name}": value
            for name, value in self.statistics.compute().items()
            if not value.isnan()
        }
        return scores | self.boxes.compute(calibrated)

    def _average_precision(self) -> MeanAveragePrecision:
        metric = self.ranked["map"]
        assert isinstance(metric, MeanAveragePrecision)
        return metric

    def reset(self) -> None:
        """Set all counts to zero."""
        for metric in self.children():
            assert isinstance(metric, (Metric, MetricCollection, BoxScores))
            metric.reset()
