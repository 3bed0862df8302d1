"""The exponential moving average of the weights: Lightning's callback, with exact rules."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor


class ExponentialAverage(WeightAveraging):
    """Averages the weights after every step of the optimizer, and evaluates and keeps the average.

    ``average = decay * average + (1 - decay) * weights``, from the weights after the first step on.
    BatchNorm statistics are averaged likewise; counters are copied. What does not change, because
    it is frozen, is bit-identical in the average. A checkpoint's ``state_dict`` is the average;
    what training goes on from stands beside it.
    """

    def __init__(self, decay: float = 0.999) -> None:
        """Nothing is averaged before a training begins.

        Args:
            decay: In (0, 1).
        """
        super().__init__(multi_avg_fn=partial(_move_towards, decay=decay))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with a training's average; what is measured is the average anyway."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _move_towards(
    averages: list[Tensor], weights: list[Tensor], _count: Tensor | int, *, decay: float
) -> None:
    """One step of the average, in place; equal tensors stay equal to the last bit."""
    if averages[0].is_floating_point():
        torch._foreach_lerp_(averages, weights, 1 - decay)
    else:
        torch._foreach_copy_(averages, weights)
