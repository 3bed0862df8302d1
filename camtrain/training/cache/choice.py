"""When the feature cache is used, and what is said where it cannot be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from camtrain.errors import CamtrainValueError
from camtrain.model.camnet import CAMNet

# How many different pictures an augmentation makes of one.
VIEWS = {"none": 1, "flip": 2}


def uses_cache(trainer: Trainer | None, settings: Mapping[str, Any]) -> bool:
    """Whether a training is fed with kept features.

    Args:
        trainer: With the module that it trains; None means none.
        settings: Those of the data module: ``cache_features`` and ``augment``.

    Raises:
        CamtrainValueError: It is asked for and cannot be.
    """
    if trainer is None or trainer.state.fn not in (None, TrainerFn.FITTING):
        return False
    module: LightningModule | None = getattr(trainer, "lightning_module", None)
    return check_cache(module, settings) and _pays_off(trainer, module, settings)


def check_cache(module: LightningModule | None, settings: Mapping[str, Any]) -> bool:
    """Whether a module and data can do with kept features, and nobody has said no.

    Raises:
        CamtrainValueError: It is asked for and cannot be.
    """
    wanted, obstacle = settings["cache_features"], _obstacle(module, settings)
    solver = getattr(module, "hparams", {}).get("head_solver", "sgd")
    if solver != "sgd":
        if wanted is False:
            obstacle = "cache_features is false; leave it out"
        if obstacle:
            raise CamtrainValueError(
                f"head_solver {solver} works on kept features of a frozen backbone, but {obstacle}."
            )
        return True
    if wanted and obstacle:
        raise CamtrainValueError(
            f"cache_features keeps what a frozen backbone makes of every picture, but {obstacle}, "
            "or leave cache_features out."
        )
    return obstacle is None and wanted is not False


def is_required(module: LightningModule | None, settings: Mapping[str, Any]) -> bool:
    """Whether the cache was asked for, or a solver needs it: nothing goes on without it."""
    solver = getattr(module, "hparams", {}).get("head_solver", "sgd")
    return bool(settings["cache_features"]) or solver != "sgd"


def _obstacle(module: LightningModule | None, settings: Mapping[str, Any]) -> str | None:
    """What stands against kept features, and what to change; None where nothing does."""
    if os.name != "posix":
        return "this system lacks the file locks that it needs; use Linux or macOS"
    net = getattr(module, "net", None)
    if module is None or not isinstance(net, CAMNet):
        return "the module has no .net that is a CAMNet; use CAMModule"
    hparams = module.hparams
    is_frozen = not any(parameter.requires_grad for parameter in net.backbone.parameters())
    if not hparams.get("freeze_backbone") or not is_frozen:
        return "the backbone is trained; give --model.freeze_backbone true"
    if hparams.get("unfreeze_at_epoch") is not None:
        return "the backbone is trained later; leave out --model.unfreeze_at_epoch"
    mixing = [name for name in ("mixup", "cutmix") if hparams.get(name)]
    if mixing:
        return f"{mixing[0]} mixes pictures anew in every step; leave out --model.{mixing[0]}"
    teacher = getattr(module, "teacher", None)
    if teacher is not None and not teacher.has_backbone_of(net):
        return (
            "the teacher has another backbone; give it the weights and the stride of the teacher's"
        )
    if net.recipe is None:
        return "camtrain cannot name this network; build it with create_model"
    if settings["augment"] not in VIEWS:
        return (
            f"augment {settings['augment']} makes other pictures in every epoch; give "
            f"--data.augment {' or '.join(VIEWS)}"
        )
    for name in ("auto_augment", "hide_and_seek"):
        if settings.get(name):
            return f"{name} makes other pictures in every epoch; leave out --data.{name}"
    return None


def _pays_off(
    trainer: Trainer, module: LightningModule | None, settings: Mapping[str, Any]
) -> bool:
    """Whether pictures are met more often than they go through the backbone for the cache."""
    if getattr(trainer, "fast_dev_run", False):  # writes nothing
        return False
    if is_required(module, settings):
        return True
    limit = trainer.limit_train_batches  # 1 is a number of batches
    if getattr(trainer, "overfit_batches", 0) or not isinstance(limit, float) or limit != 1.0:
        return False
    epochs = trainer.max_epochs
    return epochs is None or epochs < 0 or epochs > VIEWS[settings["augment"]]
