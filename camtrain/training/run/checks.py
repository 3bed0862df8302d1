"""Settings that disagree with each other or with the data, refused before a run begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from copy import deepcopy
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
)
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.seed import isolate_rng

from camtrain.data import Split
from camtrain.errors import CamtrainValueError, one_line
from camtrain.training.datamodule import CAMDataModule
from camtrain.training.evaluate.scores import score_names
from camtrain.training.learn.losses import check_balance
from camtrain.training.learn.optimizer import configure
from camtrain.training.module import CAMModule
from camtrain.training.run.opening import check_channels
from camtrain.training.run.trainer import check_precision

_UNFREEZES = "unfreezes no network of camtrain; give model.freeze_until and model.unfreeze_at_epoch"
_REFUSED: dict[type[Callback], str] = {
    BackboneFinetuning: _UNFREEZES,
    BaseFinetuning: _UNFREEZES,
    BatchSizeFinder: "would change the number of steps of the schedule; give data.batch_size",
    SpikeDetection: "cannot be stored in a checkpoint",
    ModelPruning: "gives the weights names that no bundle has; leave it out",
}
_MONITORS = {"multiclass": "val/acc1", "multilabel": "val/map"}


def default_monitor(module: CAMModule) -> str:
    """The score that chooses the best epoch unless another is asked for."""
    return "val/loss" if module.hparams["freeze_head"] else _MONITORS[module.net.task]


def check_monitor(monitor: str, module: CAMModule, data: LightningDataModule) -> None:
    """Raise CamtrainValueError unless the validation can log the score of the best epoch."""
    if not has_split(data, "val"):
        raise CamtrainValueError(
            "fit chooses the best epoch on a val split, and the data has none; add the folder "
            "val/CLASS, or give data.val_fraction above 0."
        )
    names = score_names(module.net.head.out_features, module.net.task)
    logged = ["train/loss", *(f"val/{name}" for name in names)]
    if monitor not in logged:
        raise CamtrainValueError(f"monitor must be one of {', '.join(logged)}, got {monitor!r}.")


def has_split(data: LightningDataModule, split: Split) -> bool:
    """Whether there are pictures of a split."""
    if isinstance(data, CAMDataModule):
        return split in data.sources
    return is_overridden(f"{split}_dataloader", data)


def check_settings(trainer: Trainer, module: CAMModule, data: LightningDataModule) -> None:
    """Check what can be checked before a training begins; nothing is written.

    Raises:
        CamtrainValueError: Settings disagree with each other, with the data or with the network.
    """
    trainer.strategy.connect(module)  # as `Trainer.fit` does
    data.trainer = trainer
    module.follow_data(data)
    check_balance(module.hparams, data)
    if module.teacher is not None:
        module.teacher.check(module.net)
    check_precision(trainer)
    check_callbacks(cast("Any", trainer).callbacks)
    if isinstance(data, CAMDataModule):
        data.setup("fit")
        data.check_cache()
        check_channels(data.datasets["train"], module.hparams["in_chans"])
        check_size(module, data.hparams["batch_size"])
        batches = check_limits(trainer, data.datasets, data.hparams["batch_size"])
        check_validation_interval(trainer, batches)
    if module.hparams["head_solver"] == "sgd":  # it must be possible to build the optimizer
        steps = math.inf if trainer.max_epochs == trainer.max_steps == -1 else 100.0
        configure(module.net, module.hparams, steps=steps, steps_per_epoch=100.0)


def check_size(module: CAMModule, batch_size: int = 2) -> None:
    """Refuse pictures, and batches, that are too small for the network."""
    preprocessing = module.net.preprocessing
    assert preprocessing is not None
    picture = torch.zeros(1, len(preprocessing.mean), *preprocessing.size)
    try:
        with torch.no_grad():
            module.net.eval()(picture)
    except (RuntimeError, CamtrainValueError) as error:
        reason = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error
        raise CamtrainValueError(
            f"data.size={preprocessing.size} is too small for {module.hparams['backbone']} "
            f"({one_line(reason, with_type=False)}); give a larger one."
        ) from error
    finally:
        module.train()
    if batch_size > 1:
        return
    try:
        with torch.no_grad(), isolate_rng():
            deepcopy(module.net)(picture)  # a copy, since BatchNorm counts
    except ValueError as error:
        raise CamtrainValueError(
            f"data.batch_size=1 is too small for BatchNorm, which sees one cell of one picture of "
            f"data.size={preprocessing.size} in {module.hparams['backbone']} "
            f"({one_line(error, with_type=False)}); give at least 2."
        ) from error


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise CamtrainValueError for a callback of Lightning that cannot work here."""
    for callback in callbacks:
        if type(callback) in _REFUSED:  # a subclass of the user may work
            raise CamtrainValueError(
                f"trainer.callbacks must be without {type(callback).__name__}, which "
                f"{_REFUSED[type(callback)]}."
            )


def check_limits(trainer: Trainer, datasets: Mapping[str, Sized], batch_size: int) -> int:
    """Check that something is left of the batches of training and validation.

    Returns:
        The number of batches of an epoch.

    Raises:
        CamtrainValueError: A limit leaves no batch.
    """
    counts = {}
    for split in ("val", "train"):
        batches = math.ceil(len(datasets[split]) / batch_size) if split in datasets else 0
        name = (
            "overfit_batches" if cast("Any", trainer).overfit_batches else f"limit_{split}_batches"
        )
        limit = getattr(trainer, f"limit_{split}_batches")
        is_part = isinstance(limit, float)
        counts[split] = int(batches * limit) if is_part else min(batches, limit)
        if batches and not counts[split] and (limit or split == "train"):
            raise CamtrainValueError(
                f"trainer.{name} must leave a batch of the {batches} for {split}, got {limit}; "
                f"give at least {math.ceil(100 / batches) / 100:g}, or a number of batches."
            )
    return counts["train"]


def check_validation_interval(trainer: Trainer, batches: int) -> None:
    """Raise CamtrainValueError where validations are further apart than an epoch has batches.

    Lightning refuses that too, when the files of the run exist already.
    """
    interval = getattr(trainer, "val_check_interval", None)  # missing where it is a time
    if isinstance(interval, int) and trainer.check_val_every_n_epoch and interval > batches:
        raise CamtrainValueError(
            f"trainer.val_check_interval must be at most the {batches} batches of an epoch, got "
            f"{interval}; give fewer, or trainer.check_val_every_n_epoch for whole epochs."
        )


def check_can_continue(trainer: Trainer) -> None:
    """Refuse to continue with a callback of which Lightning does not restore everything.

    Raises:
        CamtrainValueError: The trainer averages weights with ``StochasticWeightAveraging``.
    """
    callbacks = cast("Any", trainer).callbacks
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        raise CamtrainValueError(
            "ckpt_path cannot continue a training with Lightning's StochasticWeightAveraging: the "
            "weights would differ from those of an undisturbed run; train anew without it, or "
            "average with model.ema_decay."
        )
