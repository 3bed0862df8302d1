"""Lightning callbacks that a training can use: step scores, average of weights, rate finder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateFinder, WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.labels import as_pair

_FACTOR = 0.98  # of the running average in Lightning's callback
_WINDOW = 11  # steps over which losses are averaged instead


class StepScores(Callback):
    """Gives the loggers loss, learning rate and speed after every ``log_every_n_steps`` steps.

    ``train/loss_step`` is the loss of the last batch, ``train/lr`` the largest learning rate of its
    step, and ``train/pictures_per_second`` that of all processes since the row before.
    """

    def __init__(self) -> None:
        self._rate, self._pictures, self._began = 0.0, 0, 0.0
        self._step = 0  # of the last row

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure the speed."""
        self._pictures, self._began = 0, time.monotonic()

    on_validation_end = on_train_epoch_start  # its time is not that of the training

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Remember the learning rate; after the step it is that of the next one."""
        self._rate = max(g["lr"] for o in trainer.optimizers for g in o.param_groups)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Sequence[Any],
        batch_idx: int,
    ) -> None:
        """Log, if it is time."""
        with suppress(CamtrainTypeError, LookupError, TypeError):  # a subclass may have others
            self._pictures += len(as_pair(batch)[1])
        step = trainer.global_step
        every: int = cast("Any", trainer).log_every_n_steps
        is_new = every > 0 and step != self._step and step % every == 0
        if not is_new or not trainer.loggers or not isinstance(outputs, Mapping):
            return
        seconds = max(time.monotonic() - self._began, 1e-9)
        scores = {
            # Lightning divides the loss by the number of batches whose gradients it accumulates.
            "train/loss_step": outputs["loss"].item() * trainer.accumulate_grad_batches,
            "train/lr": float(self._rate),
            "epoch": trainer.current_epoch + 1,
        }
        if self._pictures:
            scores["train/pictures_per_second"] = self._pictures * trainer.world_size / seconds
        for logger in trainer.loggers:
            logger.log_metrics(scores, step=step - 1)  # as Lightning numbers the steps
        self._step = step
        self.on_train_epoch_start(trainer, pl_module)


class ExponentialAverage(WeightAveraging):
    """Averages the weights after every step of the optimizer; evaluation uses the average.

    ``average = decay * average + (1 - decay) * weights``, from the weights after the first step on;
    ``decay`` lies in (0, 1). BatchNorm statistics are averaged likewise; counters are copied.
    Frozen tensors do not change, so they are bit-identical in the average. A checkpoint stores the
    average as its ``state_dict``, and beside it the weights with which training continues.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=partial(_move_towards, decay=decay))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the average and the weights if a training continues.

        An evaluation loads the ``state_dict``, which is the average, and needs no more.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _move_towards(
    averages: list[Tensor], weights: list[Tensor], _count: Tensor | int, *, decay: float
) -> None:
    """Update averages in place; where average and weight are equal, no bit changes."""
    if averages[0].is_floating_point():
        torch._foreach_lerp_(averages, weights, 1 - decay)
    else:
        torch._foreach_copy_(averages, weights)


class FoundLearningRate(LearningRateFinder):
    """Finds the learning rate at which the loss falls fastest, and trains with it.

    It takes 100 steps, with rates from 1e-6 to 1 for all parameters (L. Smith, *Cyclical Learning
    Rates for Training Neural Networks*, WACV 2017, section 3.3), and then restores weights,
    statistics and random numbers. A continued training keeps the rate found when it began;
    ``fast_dev_run`` keeps the given rate.
    """

    _is_resumed = False

    def __init__(self) -> None:
        super().__init__(min_lr=1e-6, max_lr=1.0, num_training_steps=100, update_attr=False)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the rate that was found when the training began."""
        self._is_resumed = True
        pl_module.hparams["lr"] = checkpoint["hyper_parameters"]["lr"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the rate, and set optimizer and schedule up again with it."""
        if self._is_resumed or getattr(trainer, "fast_dev_run", False):
            return
        epochs, trainer.fit_loop.max_epochs = trainer.fit_loop.max_epochs, -1
        module: Any = pl_module
        module.is_trying_rates = True
        try:
            self.lr_find(trainer, pl_module)
        finally:
            trainer.fit_loop.max_epochs = epochs
            module.is_trying_rates = False
        assert self.optimal_lr is not None
        pl_module.hparams["lr"] = rate_of_steepest_loss(**self.optimal_lr.results)
        trainer.strategy.setup_optimizers(trainer)
        if trainer.is_global_zero:
            print(f"Learning rate found: {pl_module.hparams['lr']:.3g}")


def rate_of_steepest_loss(lr: Sequence[float], loss: Sequence[float]) -> float:
    """The learning rate at which the loss falls fastest over the logarithm of the rate.

    The suggestion of Lightning's callback is not used, for two reasons. It is the steepest slope
    over the rate itself, so that noise at the lowest rates decides. And the callback's losses are
    running averages, which lag behind by up to decades of the rate. Here the running average is
    undone, and each loss is replaced by the mean of the eleven steps around it.

    Args:
        lr: Learning rates of the steps, in geometric order.
        loss: The callback's loss after each step, a running average of factor 0.98.

    Raises:
        CamtrainValueError: The loss falls nowhere, or is finite in fewer than twelve steps.
    """
    sums = np.array(loss) * (1 - _FACTOR ** np.arange(2, len(loss) + 2))
    losses = (sums - _FACTOR * np.concatenate([[0.0], sums[:-1]])) / (1 - _FACTOR)
    is_finite = np.isfinite(losses)
    rates, losses = np.array(lr)[is_finite], losses[is_finite]
    slopes = np.zeros(1)
    if len(losses) > _WINDOW:
        slopes = np.gradient(np.convolve(losses, np.full(_WINDOW, 1 / _WINDOW), mode="valid"))
    if slopes.min() >= 0:
        raise CamtrainValueError(
            f"find_lr found no learning rate at which the loss falls, in {len(losses)} steps with "
            "a finite loss; give lr yourself."
        )
    return float(rates[slopes.argmin() + _WINDOW // 2])
