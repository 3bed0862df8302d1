"""The schedule of a training that is continued to be longer."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Trainer
from torch.optim.lr_scheduler import LambdaLR


def follow_new_schedule(trainer: Trainer, steps_before: float) -> None:
    """Set the learning rates of a schedule with another number of steps, and say so.

    A checkpoint holds the learning rate of the old schedule, 0 after its end, and a ``LambdaLR``
    would take the new one into account only after the first step.

    Args:
        trainer: At the start of its training.
        steps_before: Of the whole training, when the checkpoint was written.
    """
    steps = trainer.estimated_stepping_batches
    if steps == steps_before:
        return
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if isinstance(schedule, LambdaLR):
            factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
            rates = [base * f for base, f in zip(schedule.base_lrs, factors, strict=True)]
            for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        else:  # timm's, which remembers its old length; its rates follow from the step alone
            optimizer = trainer.optimizers[0]
            for group in optimizer.param_groups:
                group["lr"] = group.get("initial_lr", group["lr"])
            module: Any = trainer.lightning_module
            made = module.make_schedule(optimizer)
            made.step_update(trainer.global_step)
            config.scheduler = made
    if trainer.is_global_zero:
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        print(
            f"The training has {steps:.0f} steps now, {steps_before:.0f} before; the learning rate "
            f"goes on along the new schedule, with {max(rates):.3g}."
        )
