"""Everything measured on a split: loss, accuracy, and localization where pictures have boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DistributedSampler
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from camtrain.data import Batch
from camtrain.header import DEFAULT_THRESHOLD
from camtrain.labels import Task
from camtrain.localization import MapStatistics
from camtrain.preprocessing import Preprocessing
from camtrain.training.evaluate.box_scores import BoxScores, WholeMaps
from camtrain.training.learn.multilabel import MeanAveragePrecision, loss_of, multi_hot

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
_MOST_CONFUSED = 2000  # classes, whose confusions take 32 MB


def score_names(num_classes: int, task: Task) -> list[str]:
    """The scores that a split can have after an epoch."""
    absent = _NOT_BY_EPOCH | ({"acc1", "acc5"} if task == "multilabel" else {"map"})
    if num_classes <= 5:  # the five best of five classes are always right
        absent.add("acc5")
    return [name for name in SCORES if name not in absent]


@dataclass(frozen=True, eq=False)
class ClassScores:
    """What was measured of each class, of all processes.

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
        names = score_names(num_classes, task)
        self.loss = MeanMetric().set_dtype(torch.float64)
        self.acc1 = MulticlassAccuracy(num_classes, average="micro") if "acc1" in names else None
        self.acc5 = (
            MulticlassAccuracy(num_classes, top_k=5, average="micro") if "acc5" in names else None
        )
        self.map = MeanAveragePrecision(num_classes) if "map" in names else None
        has_confusion = task == "multiclass" and num_classes <= _MOST_CONFUSED
        self.confusion = (
            MulticlassConfusionMatrix(num_classes, validate_args=False) if has_confusion else None
        )
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
            if self.acc1 is not None:
                self.acc1.update(logits, labels)
            if self.acc5 is not None:
                self.acc5.update(logits, labels)
            if self.map is not None:
                self.map.update(logits, multi_hot(labels, self.num_classes))
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
            # Of some pictures only the pooled vector is kept, spread over a map that shows nothing.
            is_map = (images != images[..., :1, :1]).any(3).any(2).any(1)
            maps, boxes = maps[is_map], [boxes[place] for place in is_map.nonzero().flatten()]
        self.statistics.update(maps, boxes, size_hw)

    def by_class(self) -> ClassScores:
        """What was measured of each class."""
        right, seen = self.boxes.accuracy.by_class()
        return ClassScores(
            confusion=None if self.confusion is None else self.confusion.compute().cpu(),
            average_precision=None if self.map is None else self.map.by_class(),
            boxes_right=right,
            boxes_seen=seen,
        )

    def compute(self, calibrated: float | None = None) -> dict[str, Tensor]:
        """Scores by name, of all processes; localization only where pictures had boxes or masks.

        Args:
            calibrated: A map threshold that was chosen on other pictures, to be scored too.
        """
        scores = {"loss": self.loss.compute()}
        for name, metric in (("acc1", self.acc1), ("acc5", self.acc5), ("map", self.map)):
            if metric is not None:
                scores[name] = metric.compute()
        # A process whose pictures have no maps synchronizes like the others.
        self.statistics.update(torch.zeros(0, 1, 2), [], (1, 2))
        looks = {f"cam_{name}": value for name, value in self.statistics.compute().items()}
        scores |= {name: value for name, value in looks.items() if not value.isnan()}
        return scores | self.boxes.compute(calibrated)

    def reset(self) -> None:
        """Forget what was counted."""
        for metric in self.children():
            assert isinstance(metric, (Metric, BoxScores))
            metric.reset()


def without_repeats(
    trainer: Trainer, split: str, batch: Sequence[Any], batch_idx: int
) -> Sequence[Any]:
    """A batch of ``val`` or ``test`` without the pictures that another process counts too.

    To give every process as many pictures, torch's sampler repeats the first ones at the end.
    """
    loader: Any = trainer.val_dataloaders if split == "val" else trainer.test_dataloaders
    loader = loader[0] if isinstance(loader, list) else loader
    if trainer.world_size == 1 or not isinstance(loader.sampler, DistributedSampler):
        return batch
    repeated = is_repeat(
        batch_idx * loader.batch_size,
        len(batch[1]) + (len(batch.damaged) if isinstance(batch, Batch) else 0),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        length=len(loader.dataset),
    )
    if isinstance(batch, Batch):
        repeated = repeated[batch.places.cpu()]
    indices = (~repeated).nonzero()[:, 0].tolist()
    if isinstance(batch, Batch):
        return batch.take(indices)
    return [
        [values[i] for i in indices] if isinstance(values, list) else values[indices]
        for values in batch
    ]


def is_repeat(first: int, batch_size: int, *, rank: int, world_size: int, length: int) -> Tensor:
    """Which samples of a process' batch are repeats, padding of torch's ``DistributedSampler``.

    The sampler deals a list of the data set's indices, shuffled or not, to the processes in turn:
    the j-th sample of process r stands at place ``j * world_size + r`` of the list. To give every
    process as many samples, the list is continued with repeats of its beginning: those are the
    places from ``length`` on. Without them every sample is counted once, whatever the number of
    processes. (A sampler with ``drop_last=True`` repeats nothing.)

    Args:
        first: How many samples this process was given before this batch.
        batch_size: Samples in this batch.
        rank: This process, in [0, world_size).
        world_size: The number of processes.
        length: Samples in the data set.

    Returns:
        (batch_size,) bool.

    Example:
        Five samples, two processes: the second process is given samples 1, 3, and 0 again.

        >>> is_repeat(0, 3, rank=1, world_size=2, length=5)
        tensor([False, False,  True])
    """
    return torch.arange(first, first + batch_size) * world_size + rank >= length
