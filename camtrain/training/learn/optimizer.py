"""Optimizer and schedule: parameter groups, the optimizer, and the learning rate of each step."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, cast

from pytorch_lightning import Trainer
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from camtrain.errors import CamtrainTypeError, CamtrainValueError, check_choice, one_line
from camtrain.model.camnet import CAMNet

# timm's names, except for the first, which is ours; the endless ones need no last step.
SCHEDULES = (
    *("warmup_cosine", "cosine", "tanh", "poly", "wsd", "rsqrt"),
    *("step", "multistep", "constant", "none"),
)
_ENDLESS = ("step", "multistep", "constant", "none")
_NEEDED = {"step": ("decay_epochs", "decay_steps"), "multistep": ("decay_milestones",)}

# What people call SGD; timm's name for SGD with Nesterov's momentum is "sgd" or "nesterov".
_OPTIMIZERS = {"sgd": "momentum"}

# As timm's `auto_group_layers`, for networks that it cannot divide into layers.
_PARAMETERS_PER_LAYER = 12


@dataclass(frozen=True)
class Optimization:
    """The settings of ``CAMModule`` for optimizer and schedule; see there."""

    optimizer: str = "adamw"
    opt_args: dict[str, Any] | None = field(default=None)
    lr: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    backbone_lr_ratio: float = 1.0
    layer_decay: float = 1.0
    schedule: str = "warmup_cosine"
    schedule_args: dict[str, Any] | None = field(default=None)
    warmup_epochs: float = 1.0

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            CamtrainValueError: A value is out of range, or a name unknown.
            CamtrainTypeError: ``opt_args`` or ``schedule_args`` is no dictionary.
        """
        if self.lr <= 0 or self.weight_decay < 0 or self.warmup_epochs < 0:
            raise CamtrainValueError(
                "lr must be above 0, weight_decay and warmup_epochs at least 0, "
                f"got {self.lr}, {self.weight_decay}, {self.warmup_epochs}."
            )
        if self.backbone_lr_ratio <= 0 or not 0 < self.layer_decay <= 1:
            raise CamtrainValueError(
                "backbone_lr_ratio must be above 0 and layer_decay lie in (0, 1], got "
                f"{self.backbone_lr_ratio} and {self.layer_decay}; to train no backbone at all "
                "give freeze_backbone."
            )
        for name, value in (("opt_args", self.opt_args), ("schedule_args", self.schedule_args)):
            if value is not None and not isinstance(value, dict):
                raise CamtrainTypeError(f"{name} must be a dictionary or None, got {value!r}.")
        _check_optimizer(self.optimizer)
        _check_schedule(self.schedule, self.schedule_args or {})

    @classmethod
    def of(cls, hparams: Mapping[str, Any]) -> Optimization:
        """Those among all settings of ``CAMModule``."""
        return cls(**{option.name: hparams[option.name] for option in fields(cls)})


def count_steps(trainer: Trainer) -> dict[str, float]:
    """Steps of the optimizer in the whole training, and per epoch; infinite if not known."""
    if math.isinf(trainer.num_training_batches):  # Lightning has not counted them yet
        trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    if not math.isinf(batches):
        batches = math.ceil(batches / trainer.accumulate_grad_batches)
    return {"steps": trainer.estimated_stepping_batches, "steps_per_epoch": batches}


def configure(
    net: CAMNet, options: Optimization, *, steps: float, steps_per_epoch: float
) -> OptimizerLRSchedulerConfig | Optimizer:
    """Optimizer and schedule of a network, as Lightning wants them.

    Args:
        net: All its parameters become part of the optimizer, frozen or not: a parameter without a
            gradient is neither moved nor decayed, and may be unfrozen later.
        options: What to build.
        steps: See ``count_steps``.
        steps_per_epoch: See ``count_steps``.
    """
    optimizer = make_optimizer(parameter_groups(net, options), options)
    schedule = make_schedule(optimizer, options, steps=steps, steps_per_epoch=steps_per_epoch)
    if schedule is None:
        for group in optimizer.param_groups:  # the schedules do it themselves
            group["lr"] *= group["lr_scale"]
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(net: CAMNet, options: Optimization) -> list[dict[str, Any]]:
    """All parameters by how they are trained: ``weight_decay``, and ``lr_scale`` times the rate.

    Biases and norms are not decayed. The backbone's rate is ``backbone_lr_ratio`` times that of
    neck and head, and each of its layers has ``layer_decay`` times the rate of the one after it
    (Clark et al., ELECTRA, arXiv 2003.10555, appendix A; the last one that of neck and head).
    """
    depths = _depths(net.backbone) if options.layer_decay < 1 else {}
    end = max(depths.values(), default=0) + 1
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in net.named_parameters():
        scale = 1.0
        if name.startswith("backbone."):
            depth = depths.get(name.removeprefix("backbone.trunk."), end)
            scale = options.backbone_lr_ratio * options.layer_decay ** (end - depth)
        is_decayed = parameter.ndim > 1
        decay = options.weight_decay if is_decayed else 0.0
        group = {"params": [], "weight_decay": decay, "lr_scale": scale}
        groups.setdefault((scale, is_decayed), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]


def make_optimizer(groups: list[dict[str, Any]], options: Optimization) -> Optimizer:
    """One of timm's optimizers, or of torch's by timm's name.

    Raises:
        CamtrainValueError: It cannot be built, or needs second derivatives.
    """
    from timm import optim

    offered: Any = optim
    try:
        optimizer: Optimizer = offered.create_optimizer_v2(
            groups,
            opt=_OPTIMIZERS.get(options.optimizer, options.optimizer),
            lr=options.lr,
            momentum=options.momentum,
            **(options.opt_args or {}),
        )
    except Exception as error:  # what a third party raises cannot be known
        raise CamtrainValueError(
            f"optimizer {options.optimizer} cannot be built with opt_args={options.opt_args} "
            f"({one_line(error, with_type=False)}); choose others."
        ) from error
    if getattr(optimizer, "is_second_order", False):
        raise CamtrainValueError(
            f"optimizer {options.optimizer} needs second derivatives, which are not computed here; "
            "choose another."
        )
    return optimizer


def make_schedule(
    optimizer: Optimizer, options: Optimization, *, steps: float, steps_per_epoch: float
) -> LRScheduler | None:
    """The learning rate of every step: linear warm-up, and one of timm's schedules or a cosine.

    Raises:
        CamtrainValueError: The schedule needs an end that nobody has given, or does not take its
            arguments.
    """
    if math.isinf(steps) and options.schedule not in _ENDLESS:
        raise CamtrainValueError(
            f"The schedule {options.schedule} reaches its lowest rate at the end of the training, "
            "and this one has no end; give --trainer.max_epochs or --trainer.max_steps."
        )
    if math.isinf(steps_per_epoch) and options.warmup_epochs:
        raise CamtrainValueError(
            f"warmup_epochs={options.warmup_epochs} counts epochs, and the training pictures have "
            "no known number; give warmup_epochs 0."
        )
    total = 1 if math.isinf(steps) else int(steps)
    warmup = round(options.warmup_epochs * steps_per_epoch) if options.warmup_epochs else 0
    if options.schedule == "warmup_cosine":
        warmup = min(total, warmup)
        factors: list[Callable[[int], float]] = [
            partial(_scaled_cosine, group["lr_scale"], warmup, total)
            for group in optimizer.param_groups
        ]
        return LambdaLR(optimizer, factors)
    from timm import scheduler

    offered: Any = scheduler
    arguments = {"warmup_lr": 0.0, **(options.schedule_args or {})}
    try:
        made, _ = offered.create_scheduler_v2(
            optimizer,
            options.schedule,
            num_epochs=total,
            warmup_epochs=warmup,
            step_on_epochs=False,
            updates_per_epoch=1,  # what timm calls an epoch is a step here
            **{
                key.replace("_steps", "_epochs"): value
                for key, value in _in_steps(arguments, steps_per_epoch).items()
            },
        )
    except Exception as error:  # timm's own words; it checks with assertions
        raise CamtrainValueError(
            f"schedule {options.schedule} does not take schedule_args={options.schedule_args} "
            f"({one_line(error, with_type=False)}); see timm.scheduler.create_scheduler_v2."
        ) from error
    # timm's are not torch's, but have what Lightning asks of them; see `lr_scheduler_step`.
    return cast("LRScheduler | None", made)


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor of the learning rate: rises linearly to 1, then falls to 0 along a half cosine.

    Example:
        >>> [round(warmup_cosine(step, 2, 6), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))


def _scaled_cosine(scale: float, warmup: int, total: int, step: int) -> float:
    return scale * warmup_cosine(step, warmup, total)


def _in_steps(arguments: dict[str, Any], steps_per_epoch: float) -> dict[str, Any]:
    """Arguments in epochs as arguments in steps; ``..._steps`` are in steps already.

    Example:
        >>> _in_steps({"decay_epochs": 2, "decay_rate": 0.1, "decay_milestones": [3, 5]}, 10)
        {'decay_epochs': 20, 'decay_rate': 0.1, 'decay_milestones': [30, 50]}
    """
    converted = dict(arguments)
    for name, value in arguments.items():
        if name == "decay_milestones":
            converted[name] = [round(epoch * steps_per_epoch) for epoch in value]
        elif name.endswith("_epochs") or name == "stable_timescale":
            is_part = name == "decay_epochs" and value < 1  # of the training, where timm says so
            converted[name] = value if is_part else round(value * steps_per_epoch)
    return converted


def _depths(backbone: nn.Module) -> dict[str, int]:
    """The layer of each parameter of a trunk, as timm counts them."""
    trunk = backbone.get_submodule("trunk")
    if hasattr(trunk, "group_matcher"):
        from timm.models import group_parameters

        matcher = cast("Callable[..., object]", trunk.group_matcher)(coarse=False)
        found: dict[str, int] = group_parameters(trunk, matcher, reverse=True)
        return found
    names = [name for name, _ in trunk.named_parameters()]
    return {name: number // _PARAMETERS_PER_LAYER for number, name in enumerate(names)}


def _check_optimizer(name: str) -> None:
    if name in ("sgd", "adamw"):  # spares the import
        return
    from timm import optim

    offered: Any = optim
    known: list[str] = offered.list_optimizers()
    if name.removeprefix("lookahead_") not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        raise CamtrainValueError(
            f"optimizer must be sgd, adamw or another of timm's, got {name!r}; the nearest are "
            f"{', '.join(near) or 'adam, lamb, lion'}."
        )


def _check_schedule(name: str, arguments: dict[str, Any]) -> None:
    check_choice("schedule", name, SCHEDULES)
    if name == "warmup_cosine" and arguments:
        raise CamtrainValueError(
            f"schedule_args belong to timm's schedules, got {arguments} for warmup_cosine; choose "
            "schedule=cosine, which takes them."
        )
    needed = _NEEDED.get(name)
    if needed is not None and not any(argument in arguments for argument in needed):
        raise CamtrainValueError(
            f"schedule={name} needs to know when the rate falls; give it in schedule_args, as "
            f"{' or '.join(needed)}."
        )
