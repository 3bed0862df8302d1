"""Finding a learning rate: Lightning's range test before the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateFinder

from camtrain.errors import CamtrainValueError

_FACTOR = 0.98  # of the average that Lightning takes
_WINDOW = 11


class FoundLearningRate(LearningRateFinder):
    """Tries rates from 1e-6 to 1 in 100 steps, all parameters at the same, and takes the steepest.

    Weights, statistics and random numbers are afterwards as they were (L. Smith, *Cyclical Learning
    Rates for Training Neural Networks*, WACV 2017, section 3.3). A continued training keeps the
    rate that was found when it began; ``fast_dev_run`` keeps the one that was given.
    """

    _continues = False

    def __init__(self) -> None:
        """Nothing is tried before a training begins."""
        super().__init__(min_lr=1e-6, max_lr=1.0, num_training_steps=100, update_attr=False)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note that the training has begun before."""
        self._continues = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the rate, and build optimizer and schedule anew with it.

        Raises:
            CamtrainValueError: The loss fell at no rate.
        """
        if self._continues or getattr(trainer, "fast_dev_run", False):
            return
        epochs, trainer.fit_loop.max_epochs = trainer.fit_loop.max_epochs, -1
        module: Any = pl_module
        module.is_trying_rates = True
        try:
            self.lr_find(trainer, pl_module)
        finally:
            module.is_trying_rates = False
            trainer.fit_loop.max_epochs = epochs
        assert self.optimal_lr is not None
        pl_module.hparams["lr"] = steepest(**self.optimal_lr.results)
        trainer.strategy.setup_optimizers(trainer)
        if trainer.is_global_zero:
            print(f"Learning rate found: {pl_module.hparams['lr']:.3g}")


def steepest(lr: Sequence[float], loss: Sequence[float]) -> float:
    """The rate at which the loss falls fastest, per factor of the rate.

    Lightning's losses are averages over the steps before, and so late by up to decades of the rate;
    its own suggestion is the steepest slope per rate, which noise at the lowest rates decides. Here
    the average is undone, and one over the eleven steps around is taken.

    Args:
        lr: Rates in geometric order.
        loss: Averages as in Lightning's callback, of factor 0.98, after each of them.

    Raises:
        CamtrainValueError: The loss falls nowhere, or is finite in fewer than twelve steps.
    """
    past = np.array(loss) * (1 - _FACTOR ** np.arange(2, len(loss) + 2))
    losses = (past - _FACTOR * np.concatenate([[0.0], past[:-1]])) / (1 - _FACTOR)
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
