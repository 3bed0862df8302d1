"""Optimizer and schedule: parameter groups, the optimizer, and the learning rate of each step."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from pytorch_lightning import Trainer
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from camtrain.errors import CamtrainTypeError, CamtrainValueError, check_choice, one_line
from camtrain.model.camnet import CAMNet

# The names are timm's, except for the first. The endless schedules need no number of steps.
SCHEDULES = (
    *("warmup_cosine", "cosine", "tanh", "poly", "wsd", "rsqrt"),
    *("step", "multistep", "constant", "none"),
)
_ENDLESS_SCHEDULES = ("step", "multistep", "constant", "none")
_REQUIRED_ARGUMENTS = {"step": ("decay_epochs", "decay_steps"), "multistep": ("decay_milestones",)}

# timm calls SGD "momentum"; its "sgd" is SGD with Nesterov's momentum, as is its "nesterov".
_TIMM_NAMES = {"sgd": "momentum"}

# As in timm's `auto_group_layers`: for networks that timm cannot divide into layers.
_PARAMETERS_PER_LAYER = 12


def check_optimization(hparams: Mapping[str, Any]) -> None:
    """Check the settings of ``CAMModule`` for optimizer, schedule and weight average.

    Raises:
        CamtrainValueError: A value is out of range, or a name is unknown.
        CamtrainTypeError: ``opt_args`` or ``schedule_args`` is no dictionary.
    """
    lr, weight_decay, warmup = (hparams[n] for n in ("lr", "weight_decay", "warmup_epochs"))
    if lr <= 0 or weight_decay < 0 or warmup < 0:
        raise CamtrainValueError(
            "lr must be above 0, weight_decay and warmup_epochs at least 0, "
            f"got {lr}, {weight_decay}, {warmup}."
        )
    ratio, layer_decay = hparams["backbone_lr_ratio"], hparams["layer_decay"]
    if ratio <= 0 or not 0 < layer_decay <= 1:
        raise CamtrainValueError(
            "backbone_lr_ratio must be above 0 and layer_decay lie in (0, 1], got "
            f"{ratio} and {layer_decay}; to train no backbone at all give freeze_backbone."
        )
    ema_decay = hparams["ema_decay"]
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise CamtrainValueError(
            f"ema_decay must lie between 0 and 1, such as 0.999, or be None, got {ema_decay}."
        )
    for name in ("opt_args", "schedule_args"):
        if hparams[name] is not None and not isinstance(hparams[name], dict):
            raise CamtrainTypeError(f"{name} must be a dictionary or None, got {hparams[name]!r}.")
    _check_optimizer(hparams["optimizer"])
    _check_schedule(hparams["schedule"], hparams["schedule_args"] or {})


def count_steps(trainer: Trainer) -> dict[str, float]:
    """The number of optimizer steps, ``steps``, and ``steps_per_epoch``; infinite if unknown."""
    if math.isinf(trainer.num_training_batches):  # Lightning has not counted them yet
        trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    if not math.isinf(batches):
        batches = math.ceil(batches / trainer.accumulate_grad_batches)
    return {"steps": trainer.estimated_stepping_batches, "steps_per_epoch": batches}


def configure(
    net: CAMNet, hparams: Mapping[str, Any], *, steps: float, steps_per_epoch: float
) -> OptimizerLRSchedulerConfig | Optimizer:
    """Optimizer and schedule of a network, in the form that Lightning requires.

    The optimizer gets all parameters, frozen or not: a parameter without a gradient is neither
    moved nor decayed, and may be unfrozen later. For the numbers of steps see ``count_steps``.
    """
    optimizer = make_optimizer(parameter_groups(net, hparams), hparams)
    schedule = make_schedule(optimizer, hparams, steps=steps, steps_per_epoch=steps_per_epoch)
    if schedule is None:
        for group in optimizer.param_groups:  # schedules scale the rates themselves
            group["lr"] *= group["lr_scale"]
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(net: CAMNet, hparams: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All parameters, grouped by ``weight_decay`` and by ``lr_scale``, a factor of ``lr``.

    Biases and norms are not decayed. The backbone's rate is ``backbone_lr_ratio`` times that of
    neck and head, and each layer of the backbone has ``layer_decay`` times the rate of the next
    layer (Clark et al., ELECTRA, arXiv 2003.10555, appendix A).
    """
    depths = _layer_numbers(net.backbone) if hparams["layer_decay"] < 1 else {}
    end = max(depths.values(), default=0) + 1
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in net.named_parameters():
        scale = 1.0
        if name.startswith("backbone."):
            depth = depths.get(name.removeprefix("backbone.trunk."), end)
            scale = hparams["backbone_lr_ratio"] * hparams["layer_decay"] ** (end - depth)
        is_decayed = parameter.ndim > 1
        decay = hparams["weight_decay"] if is_decayed else 0.0
        group: dict[str, Any] = {"params": [], "weight_decay": decay, "lr_scale": scale}
        groups.setdefault((scale, is_decayed), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]


def make_optimizer(groups: list[dict[str, Any]], hparams: Mapping[str, Any]) -> Optimizer:
    """The optimizer, one of timm's or torch's, by the name that timm gives it.

    Raises:
        CamtrainValueError: It cannot be built, or it needs second derivatives.
    """
    from timm import optim

    untyped: Any = optim
    name, arguments = hparams["optimizer"], hparams["opt_args"]
    try:
        optimizer: Optimizer = untyped.create_optimizer_v2(
            groups,
            opt=_TIMM_NAMES.get(name, name),
            lr=hparams["lr"],
            momentum=hparams["momentum"],
            **(arguments or {}),
        )
    except Exception as error:  # third parties raise any error
        raise CamtrainValueError(
            f"optimizer {name} cannot be built with opt_args={arguments} "
            f"({one_line(error, with_type=False)}); choose others."
        ) from error
    if getattr(optimizer, "is_second_order", False):
        raise CamtrainValueError(
            f"optimizer {name} needs second derivatives, which are not computed here; "
            "choose another."
        )
    return optimizer


def make_schedule(
    optimizer: Optimizer, hparams: Mapping[str, Any], *, steps: float, steps_per_epoch: float
) -> LRScheduler | None:
    """The schedule of the learning rate, step by step; None for ``none``.

    Raises:
        CamtrainValueError: The schedule needs an unknown number of steps, or does not accept its
            arguments.
    """
    name, warmup_epochs = hparams["schedule"], hparams["warmup_epochs"]
    if math.isinf(steps) and name not in _ENDLESS_SCHEDULES:
        raise CamtrainValueError(
            f"The schedule {name} reaches its lowest rate at the end of the training, and this one "
            "has no end; give --trainer.max_epochs or --trainer.max_steps."
        )
    if math.isinf(steps_per_epoch) and warmup_epochs:
        raise CamtrainValueError(
            f"warmup_epochs={warmup_epochs} counts epochs, and the training pictures have no known "
            "number; give warmup_epochs 0."
        )
    total = 1 if math.isinf(steps) else int(steps)
    warmup = round(warmup_epochs * steps_per_epoch) if warmup_epochs else 0
    if name == "warmup_cosine":
        warmup = min(total, warmup)
        factors: list[Callable[[int], float]] = [
            partial(warmup_cosine, warmup=warmup, total=total, scale=group["lr_scale"])
            for group in optimizer.param_groups
        ]
        return LambdaLR(optimizer, factors)
    from timm import scheduler

    untyped: Any = scheduler
    arguments = hparams["schedule_args"]
    try:
        schedule, _ = untyped.create_scheduler_v2(
            optimizer,
            name,
            num_epochs=total,
            warmup_epochs=warmup,
            step_on_epochs=False,
            updates_per_epoch=1,  # one step here is one epoch for timm
            **_arguments_in_steps({"warmup_lr": 0.0, **(arguments or {})}, steps_per_epoch),
        )
    except Exception as error:  # timm checks with assertions
        raise CamtrainValueError(
            f"schedule {name} does not take schedule_args={arguments} "
            f"({one_line(error, with_type=False)}); see timm.scheduler.create_scheduler_v2."
        ) from error
    # timm's class is not torch's, but has what Lightning requires; see `lr_scheduler_step`.
    return cast("LRScheduler | None", schedule)


def warmup_cosine(step: int, warmup: int, total: int, scale: float = 1.0) -> float:
    """The factor of the learning rate: it rises linearly to ``scale``, then falls to 0 as a cosine.

    Example:
        >>> [round(warmup_cosine(step, 2, 6), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return scale * ((step + 1) / warmup)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return scale * (0.5 * (1 + math.cos(math.pi * progress)))


def _arguments_in_steps(arguments: dict[str, Any], steps_per_epoch: float) -> dict[str, Any]:
    """Arguments for timm with epochs converted to steps, since timm counts each step as an epoch.

    Arguments named ``..._steps`` are steps already, and only get timm's name, ``..._epochs``.

    Example:
        >>> _arguments_in_steps({"decay_epochs": 2, "warmup_steps": 7, "decay_rate": 0.1}, 10)
        {'decay_epochs': 20, 'warmup_epochs': 7, 'decay_rate': 0.1}
    """
    converted: dict[str, Any] = {}
    for name, value in arguments.items():
        key, is_part = name.replace("_steps", "_epochs"), name == "decay_epochs" and value < 1
        if name == "decay_milestones":
            converted[key] = [round(epoch * steps_per_epoch) for epoch in value]
        elif (name.endswith("_epochs") or name == "stable_timescale") and not is_part:
            converted[key] = round(value * steps_per_epoch)
        else:  # a decay_epochs below 1 is a part of the training, where timm allows it
            converted[key] = value
    return converted


def _layer_numbers(backbone: nn.Module) -> dict[str, int]:
    """For each parameter of a backbone, the number of its layer, as timm counts the layers."""
    trunk = backbone.get_submodule("trunk")
    if hasattr(trunk, "group_matcher"):
        from timm.models import group_parameters

        matcher = cast("Callable[..., object]", trunk.group_matcher)(coarse=False)
        depths: dict[str, int] = group_parameters(trunk, matcher, reverse=True)
        return depths
    names = [name for name, _ in trunk.named_parameters()]
    return {name: number // _PARAMETERS_PER_LAYER for number, name in enumerate(names)}


def _check_optimizer(name: str) -> None:
    """Raise if timm has no optimizer of this name."""
    if name in ("sgd", "adamw"):  # no need to import timm
        return
    from timm import optim

    untyped: Any = optim
    names: list[str] = untyped.list_optimizers()
    if name.removeprefix("lookahead_") not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        raise CamtrainValueError(
            f"optimizer must be sgd, adamw or another of timm's, got {name!r}; the nearest are "
            f"{', '.join(near) or 'adam, lamb, lion'}."
        )


def _check_schedule(name: str, arguments: dict[str, Any]) -> None:
    """Raise if the schedule is unknown, lacks an argument, or takes none."""
    check_choice("schedule", name, SCHEDULES)
    if name == "warmup_cosine" and arguments:
        raise CamtrainValueError(
            f"schedule_args belong to timm's schedules, got {arguments} for warmup_cosine; choose "
            "schedule=cosine, which takes them."
        )
    needed = _REQUIRED_ARGUMENTS.get(name, ())
    if needed and not set(needed) & set(arguments):
        raise CamtrainValueError(
            f"schedule={name} needs to know when the rate falls; give it in schedule_args, as "
            f"{' or '.join(needed)}."
        )
