"""The part of ``CAMModule`` that measures: the training loss, and the scores of val and test."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DistributedSampler
from torchmetrics import Metric, SumMetric

from camtrain.data import Batch
from camtrain.data.dataset import DamagedFiles
from camtrain.errors import CamtrainTypeError
from camtrain.header import Description
from camtrain.model.camnet import CAMNet
from camtrain.model.refine import BackboneOutput
from camtrain.thresholds import DEFAULT_THRESHOLD
from camtrain.training.evaluate.box_scores import on_whole_pictures
from camtrain.training.evaluate.mosaics import mosaic_scores
from camtrain.training.evaluate.scores import Evaluation
from camtrain.training.learn.objective import foreground_loss
from camtrain.training.run.trainer import check_precision


class EpochMean(Metric):
    """The mean of values, weighted by their numbers of samples, summed in float64.

    Torchmetrics' ``MeanMetric`` returns to float32 when its module moves to a device, and ignores
    weights unless it looks for NaN.

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
        """Add a batch of ``count`` samples with the mean ``value``, ()."""
        self.total += value.detach().double() * count
        self.count += count

    def compute(self) -> Tensor:
        """The mean so far, (), float64."""
        return self.total / self.count


class Evaluator(nn.Module, Callback):
    """Measures the loss of a training, and val and test, in float32 whatever its precision.

    It is a part of its module, so that the metrics move with it, and a callback that logs them.

    Attributes:
        train_loss: Mean of the training loss over the epoch so far.
        train_damaged: Number of damaged training pictures in the epoch so far.
        map_threshold: The best map threshold for the boxes of the last validation; 0.2 before any.
        is_calibrated: Whether the last validation could choose it: any of its boxes was right.
        reports: Thresholds and curves of the splits that ``validate`` and ``test`` measured;
            callbacks add to it.
    """

    def __init__(self, net: CAMNet, memory_format: torch.memory_format) -> None:
        super().__init__()
        self._memory_format = memory_format
        num_classes = net.head.out_features
        self.evaluations = nn.ModuleDict(
            {split: Evaluation(num_classes, net.task) for split in ("val", "test")}
        )
        self.train_loss = EpochMean()
        self.train_damaged = SumMetric(nan_strategy="disable")  # a search for NaN waits for the GPU
        self.map_threshold = DEFAULT_THRESHOLD
        self.is_calibrated = False
        self.reports: dict[str, dict[str, Any]] = {}
        self.loaded_epoch: int | None = None  # of the checkpoint that was read last
        self.loaded_step: int | None = None  # likewise, of one within an epoch

    def __getitem__(self, split: str) -> Evaluation:
        """The metrics of ``val`` or ``test``."""
        evaluation = self.evaluations[split]
        assert isinstance(evaluation, Evaluation)
        return evaluation

    def check_trainer(self, module: LightningModule) -> None:
        """Refuse a trainer that cannot measure.

        Raises:
            CamtrainValueError: Its precision does not allow float32.
            CamtrainTypeError: The module's ``configure_callbacks`` drops this callback.
        """
        check_precision(module.trainer)
        callbacks: list[Callback] = cast("Any", module.trainer).callbacks
        if self not in callbacks:
            raise CamtrainTypeError(
                f"configure_callbacks of {type(module).__name__} must also return the callbacks of "
                "CAMModule; begin its list with *super().configure_callbacks()."
            )

    def log_step(self, module: LightningModule, loss: Tensor, pictures: int, damaged: int) -> None:
        """Add a training step: its mean loss, (), and its numbers of good and damaged pictures."""
        self.train_loss.update(loss, pictures)
        self.train_damaged.update(torch.full_like(loss, damaged))  # created on the GPU: no waiting
        self._log_sums(module)

    def _log_sums(self, module: LightningModule) -> None:
        module.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        module.log("train/damaged", self.train_damaged, on_step=False, on_epoch=True)
        self._log_epoch(module)

    def _log_epoch(self, module: LightningModule) -> None:
        """Give the loggers the number of the epoch from 1; Lightning's counts from 0."""
        trainer = module.trainer
        if trainer.loggers:
            epoch = trainer.current_epoch + 1
            if trainer.state.fn != TrainerFn.FITTING:  # Lightning has counted the last epoch
                epoch = self.loaded_epoch or trainer.current_epoch
            # Created on the GPU: Lightning would copy a number to it in every step, and wait.
            value = torch.full((), float(epoch), device=module.device)
            module.log("epoch", value, on_step=False, on_epoch=True, reduce_fx="max")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the sums of a resumed epoch, even if none of its training steps is left."""
        if self.train_damaged.update_called:
            self._log_sums(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the sums of the epoch; Lightning does not call this when an epoch is resumed."""
        self.train_loss.reset()
        self.train_damaged.reset()

    def sums(self) -> Tensor:
        """The sums of the epoch in this process, (3,) float64: loss, pictures, damaged pictures."""
        loss, damaged = self.train_loss, self.train_damaged
        return torch.stack([loss.total, loss.count, damaged.sum_value.double()])

    def restore_sums(self, sums: Sequence[float]) -> None:
        """Continue with the ``sums`` of an interrupted epoch."""
        loss, pictures, damaged = sums
        if pictures > 0:  # torchmetrics must regard both as updated
            self.train_loss.update(torch.zeros(()), 0)
            self.train_damaged.update(0.0)
        self.train_loss.total.fill_(loss)
        self.train_loss.count.fill_(pictures)
        self.train_damaged.sum_value.fill_(damaged)

    def evaluate(
        self, trainer: Trainer, net: CAMNet, split: str, batch: Sequence[Any], batch_idx: int
    ) -> dict[str, Any]:
        """Measure a batch.

        Returns:
            ``batch`` without repeated pictures, ``features`` of the neck with the vectors that
            refine maps, ``logits`` (B, K), and ``maps``, the maps of the true classes on whole
            pictures; no ``maps`` if boxes cannot be measured.
        """
        batch = without_repeats(trainer, split, batch, batch_idx)
        images, labels = batch[0], batch[1]
        camtrain_batch = batch if isinstance(batch, Batch) else None
        with torch.autocast(images.device.type, enabled=False):
            images = images.float().contiguous(memory_format=self._memory_format)
            if camtrain_batch is not None and camtrain_batch.is_cached:
                output = BackboneOutput.unpacked(images, net.vector_channels)
            else:
                output = net.backbone_output(images)
            output = net.apply_neck(output)
            is_multi_hot = labels.ndim > 1 and net.task == "multilabel"
            has_several = is_multi_hot and labels.shape[1] > 1
            if has_several:
                logits = net.classify(output.features)
            else:
                classes = labels.new_zeros(len(labels), dtype=torch.int64)  # of a class alone
                classes = classes if is_multi_hot else labels
                logits, maps, _ = net.display_maps(output, classes=classes)
            losses = None
            if not net.head.weight.requires_grad and len(labels) and net.foreground is not None:
                losses = foreground_loss(net, output, labels, reduction="none")  # all that is left
        evaluation, whole_maps = self[split], None
        if not has_several:
            evaluation.update_statistics(maps[:, 0], batch, net.preprocessing)
            if camtrain_batch is not None:
                whole_maps = on_whole_pictures(maps[:, 0], net.preprocessing, camtrain_batch)
        evaluation.update(logits, whole_maps, labels, camtrain_batch, losses)
        outputs = {"batch": batch, "features": output.packed(), "logits": logits}
        return outputs if whole_maps is None else {**outputs, "maps": whole_maps}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the scores of the previous epoch."""
        # Not at its end: a later `fit` cannot add to tensors of `validate`, in inference mode.
        self["val"].reset()
        self.reports.pop("val", None)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the scores of an earlier test."""
        self["test"].reset()
        self.reports.pop("test", None)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate the map threshold, and log the scores of the validation split."""
        threshold = self["val"].boxes.calibrated_threshold()
        if threshold is not None:
            self.map_threshold, self.is_calibrated = threshold, True
        elif trainer.state.fn == TrainerFn.FITTING:  # that of an earlier epoch is of other maps
            self.map_threshold, self.is_calibrated = DEFAULT_THRESHOLD, False
        self._log_scores(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scores of the test split."""
        self._log_scores(trainer, pl_module, "test")

    def _log_scores(self, trainer: Trainer, module: LightningModule, split: str) -> None:
        damaged = getattr(getattr(trainer, "datamodule", None), "damaged", None)
        if isinstance(damaged, DamagedFiles):
            damaged.refuse(trainer.world_size)
        calibrated = self.map_threshold if self.is_calibrated else None
        scores = self[split].compute(calibrated if split == "test" else None)
        if self[split].task == "multilabel" and "map" not in scores:
            warnings.warn(
                f"No picture of {split} has a label, so {split}/map is not measured; the best "
                "validation of a training is that with the lowest val/loss.",
                stacklevel=2,
            )
        if trainer.state.fn != TrainerFn.FITTING:
            self.reports.setdefault(split, {}).update(self[split].boxes.report(calibrated))
            scores |= mosaic_scores(cast("CAMNet", module.net), trainer, split)
        for name, value in scores.items():
            is_shown = name in ("loss", "acc1", "map", "acc", "max_box_acc")
            module.log(f"{split}/{name}", value, prog_bar=is_shown)
        self._log_epoch(module)

    def description_of(self, net: CAMNet) -> Description:
        """The description of a network with the measured map threshold."""
        return replace(
            net.description, threshold=self.map_threshold, is_calibrated=self.is_calibrated
        )

    def restore(self, stored: Description, checkpoint: Mapping[str, Any]) -> None:
        """Take from a checkpoint its map threshold, epoch (from 1) and step (within an epoch)."""
        self.loaded_epoch = checkpoint["epoch"] + 1
        writer = checkpoint.get("callbacks", {}).get("RunWriter", {})
        is_within = not writer.get("is_epoch_end", True)
        self.loaded_step = checkpoint["global_step"] if is_within else None
        calibrated = stored.calibrated_threshold
        self.map_threshold = DEFAULT_THRESHOLD if calibrated is None else calibrated
        self.is_calibrated = calibrated is not None


def without_repeats(
    trainer: Trainer, split: str, batch: Sequence[Any], batch_idx: int
) -> Sequence[Any]:
    """A batch of ``val`` or ``test`` without the pictures that torch's sampler repeats."""
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
    """Which samples of a batch are repeats by torch's ``DistributedSampler``, (batch_size,) bool.

    The sampler deals the data set, ``length`` samples, to the processes in turn: the j-th sample of
    process r stands at place ``j * world_size + r``. So that all processes get the same number, it
    then deals the first samples again, at the places from ``length`` on. Without those, every
    sample counts once. ``first`` is the number of samples that this process got before this batch.

    Example:
        Five samples, two processes: the second process is given samples 1, 3, and 0 again.

        >>> is_repeat(0, 3, rank=1, world_size=2, length=5)
        tensor([False, False,  True])
    """
    return torch.arange(first, first + batch_size) * world_size + rank >= length
