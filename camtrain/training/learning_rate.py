"""Finding a learning rate: Lightning's range test before the training."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateFinder

from camtrain.errors import CamtrainValueError


class FoundLearningRate(LearningRateFinder):
    """Tries rates from 1e-8 to 1 in 100 steps, all parameters at the same, and takes the steepest.

    Weights, statistics and random numbers are afterwards as they were (L. Smith, *Cyclical Learning
    Rates for Training Neural Networks*, WACV 2017, section 3.3). A continued training keeps the
    rate that was found when it began.
    """

    is_trying = False
    _continues = False

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
        self.is_trying = True
        try:
            self.lr_find(trainer, pl_module)
        finally:
            self.is_trying = False
        found = self.optimal_lr.suggestion() if self.optimal_lr is not None else None
        if found is None:
            raise CamtrainValueError(
                "find_lr found no learning rate, since the loss was finite in too few of its 100 "
                "steps; give lr yourself."
            )
        trainer.strategy.setup_optimizers(trainer)
        if trainer.is_global_zero:
            print(f"Learning rate found: {found:.3g}")
