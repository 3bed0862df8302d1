"""Settings that disagree with each other or with the data, refused before a run begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging
from pytorch_lightning.utilities.seed import isolate_rng

from camtrain.errors import CamtrainValueError, one_line
from camtrain.training.datamodule import CAMDataModule
from camtrain.training.learn.losses import check_balance
from camtrain.training.learn.optimizer import configure
from camtrain.training.module import CAMModule
from camtrain.training.run.opening import check_channels
from camtrain.training.run.trainer import check_precision


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
    if isinstance(data, CAMDataModule):
        data.setup("fit")
        data.check_cache()
        check_channels(data.datasets["train"], module.hparams["in_chans"])
        check_size(module, data.hparams["batch_size"])
        check_validation_interval(trainer, len(data.datasets["train"]), data.hparams)
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
    except RuntimeError as error:
        raise CamtrainValueError(
            f"data.size={preprocessing.size} is too small for {module.hparams['backbone']} "
            f"({one_line(error, with_type=False)}); give a larger one."
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


def check_validation_interval(trainer: Trainer, pictures: int, settings: Mapping[str, Any]) -> None:
    """Raise CamtrainValueError where validations are further apart than an epoch has batches.

    Lightning refuses that too, when the files of the run exist already.
    """
    interval, batches = trainer.val_check_interval, math.ceil(pictures / settings["batch_size"])
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
