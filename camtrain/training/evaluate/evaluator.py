"""The part of ``CAMModule`` that measures: sums of an epoch, scores of val and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DistributedSampler
from torchmetrics import Metric, SumMetric

from camtrain.data import Batch
from camtrain.errors import CamtrainTypeError
from camtrain.header import DEFAULT_THRESHOLD, Description
from camtrain.model.camnet import CAMNet
from camtrain.model.refine import BackboneOutput
from camtrain.training.evaluate.box_scores import on_whole_pictures
from camtrain.training.evaluate.mosaics import mosaic_scores
from camtrain.training.evaluate.scores import Evaluation


class EpochMean(Metric):
    """Mean of values weighted by their number of samples, summed in float64.

    Torchmetrics' own ``MeanMetric`` falls back to float32 when its module moves to a device, and
    ignores weights where it does not look for NaN.

    Example:
        >>> mean = EpochMean()
        >>> mean.update(torch.tensor(1.0), 3)
        >>> mean.update(torch.tensor(5.0), 1)
        >>> mean.compute().item()
        2.0
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        for name in ("total", "count"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, zero, dist_reduce_fx="sum")

    def update(self, value: Tensor, count: int) -> None:
        """Add a batch of ``count`` samples and their mean ``value``, ()."""
        self.total += value.detach().double() * count
        self.count += count

    def compute(self) -> Tensor:
        """The mean so far, (), float64."""
        return self.total / self.count


class Evaluator(nn.Module, Callback):
    """Measures a training, and val and test in float32 whatever the precision of the training.

    A part of its module, so that the metrics move with it, and a callback that logs them.

    Attributes:
        train_loss: Mean of the training loss over the epoch so far.
        train_damaged: Number of damaged training pictures in the epoch so far.
        map_threshold: Where the boxes of the last validation were best; 0.2 before one had boxes.
        is_calibrated: Whether one had.
        reports: Thresholds and curves of the splits that ``validate`` and ``test`` measured.
    """

    def __init__(self, net: CAMNet, memory_format: torch.memory_format) -> None:
        super().__init__()
        self._memory_format = memory_format
        num_classes = net.head.out_features
        self.evaluations = nn.ModuleDict(
            {split: Evaluation(num_classes, net.task) for split in ("val", "test")}
        )
        self.train_loss = EpochMean()
        self.train_damaged = SumMetric(nan_strategy="disable")  # a look for NaN waits for the GPU
        self.map_threshold = DEFAULT_THRESHOLD
        self.is_calibrated = False
        self.reports: dict[str, dict[str, Any]] = {}

    def __getitem__(self, split: str) -> Evaluation:
        """The metrics of ``val`` or ``test``."""
        evaluation = self.evaluations[split]
        assert isinstance(evaluation, Evaluation)
        return evaluation

    def check_is_callback(self, module: LightningModule) -> None:
        """Refuse a module whose own ``configure_callbacks`` drops what measures and freezes it."""
        callbacks: list[Callback] = cast("Any", module.trainer).callbacks
        if self not in callbacks:
            raise CamtrainTypeError(
                f"configure_callbacks of {type(module).__name__} must also return the callbacks of "
                "CAMModule; begin its list with *super().configure_callbacks()."
            )

    def log_step(self, module: LightningModule, loss: Tensor, pictures: int, damaged: int) -> None:
        """Add a training step: the mean loss, (), of its pictures, and how many were damaged."""
        self.train_loss.update(loss, pictures)
        self.train_damaged.update(torch.full_like(loss, damaged))  # made on the GPU, for the same
        self._log_sums(module)

    def _log_sums(self, module: LightningModule) -> None:
        module.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        module.log("train/damaged", self.train_damaged, on_step=False, on_epoch=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the sums of a resumed epoch, which may go on with its validation, without a step."""
        if self.train_damaged.update_called:
            self._log_sums(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the sums of the training; not called when a resumed epoch goes on."""
        self.train_loss.reset()
        self.train_damaged.reset()

    def sums(self) -> Tensor:
        """What this process has added to the sums of the epoch, (3,) float64."""
        loss, damaged = self.train_loss, self.train_damaged
        return torch.stack([loss.total, loss.count, damaged.sum_value.double()])

    def restore_sums(self, sums: Sequence[float]) -> None:
        """Continue with the ``sums`` of an interrupted epoch."""
        loss, pictures, damaged = sums
        if pictures > 0:  # both count as updated, and are logged
            self.train_loss.update(torch.zeros(()), 0)
            self.train_damaged.update(0.0)
        self.train_loss.total.fill_(loss)
        self.train_loss.count.fill_(pictures)
        self.train_damaged.sum_value.fill_(damaged)

    def evaluate(
        self, trainer: Trainer, net: CAMNet, split: str, batch: Sequence[Any], batch_idx: int
    ) -> dict[str, Any]:
        """Measure a batch, and return what was computed of it.

        Returns:
            ``batch`` without repeated pictures, ``features`` of the neck with the vectors that
            refine maps, ``logits`` (B, K), and, where boxes may be measured, ``maps``: those of
            the true classes on whole pictures.
        """
        batch = without_repeats(trainer, split, batch, batch_idx)
        images, labels = batch[0], batch[1]
        own_batch = batch if isinstance(batch, Batch) else None
        with torch.autocast(images.device.type, enabled=False):
            images = images.float().contiguous(memory_format=self._memory_format)
            if own_batch is not None and own_batch.is_cached:
                output = BackboneOutput.unpacked(images, net.vector_channels)
            else:
                output = net.backbone_output(images)
            output = net.apply_neck(output)
            maps = None
            if labels.ndim > 1 and net.task == "multilabel":
                logits = net.classify(output.features)
            else:
                logits, class_maps, _ = net.display_maps(output, classes=labels)
                maps = class_maps[:, 0]
        evaluation, whole_maps = self[split], None
        if maps is not None:
            evaluation.update_statistics(maps, batch, net.preprocessing)
            if own_batch is not None:
                whole_maps = on_whole_pictures(maps, net.preprocessing, own_batch)
        evaluation.update(logits, whole_maps, labels, own_batch)
        outputs = {"batch": batch, "features": output.packed(), "logits": logits}
        return outputs if whole_maps is None else {**outputs, "maps": whole_maps}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the scores of the epoch before."""
        # Not at its end: what `validate` makes in inference mode, a later `fit` cannot add to.
        self["val"].reset()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the scores of an earlier test."""
        self["test"].reset()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate the map threshold, and log the scores of the validation split."""
        threshold = self["val"].boxes.calibrated_threshold()
        if threshold is not None:
            self.map_threshold, self.is_calibrated = threshold, True
        self._log_scores(trainer, pl_module, "val", None)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scores of the test split."""
        calibrated = self.map_threshold if self.is_calibrated else None
        self._log_scores(trainer, pl_module, "test", calibrated)

    def _log_scores(
        self, trainer: Trainer, module: LightningModule, split: str, calibrated: float | None
    ) -> None:
        scores = self[split].compute(calibrated)
        if trainer.state.fn != TrainerFn.FITTING:
            known = self.map_threshold if self.is_calibrated else None
            self.reports[split] = self[split].boxes.report(known)
            scores |= mosaic_scores(cast("CAMNet", module.net), trainer, split)
        for name, value in scores.items():
            is_shown = name in ("loss", "acc1", "map", "max_box_acc")
            module.log(f"{split}/{name}", value, prog_bar=is_shown)

    def description_of(self, net: CAMNet) -> Description:
        """The description of a network with the map threshold that was measured."""
        return replace(
            net.description, threshold=self.map_threshold, is_calibrated=self.is_calibrated
        )

    def restore_threshold(self, stored: Description) -> None:
        """Take the map threshold from the description in a checkpoint."""
        self.map_threshold = stored.threshold
        self.is_calibrated = stored.calibrated_threshold is not None


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
