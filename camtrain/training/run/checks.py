"""Settings that disagree with each other or with the data, refused before a run begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging

from camtrain.errors import CamtrainValueError, one_line
from camtrain.training.module import CAMModule


def check_size(module: CAMModule) -> None:
    """Refuse pictures that are too small for the network, before anything is written."""
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
