"""What part of an epoch of the quickstart goes into measuring localization.

Run: python tests/benchmarks/epoch.py [EPOCHS]
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from camtrain.training import CAMDataModule, CAMModule
from camtrain.training.evaluate.box_scores import BoxScores
from camtrain.training.run.trainer import best_precision

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

spent: list[float] = []


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its time noted."""

    def run(*args: Any, **kwargs: Any) -> object:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        spent.append(time.perf_counter() - start)
        return result

    return run


class Clock(Callback):
    """Notes how long each epoch takes, with its validation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is over too."""
        self.seconds.append(time.perf_counter() - self.start)


if __name__ == "__main__":
    for name in ("update", "compute", "calibrated_threshold", "reset"):
        setattr(BoxScores, name, timed(getattr(BoxScores, name)))
    config, clock = yaml.safe_load(CONFIG.read_text()), Clock()
    trainer = Trainer(
        accelerator="cpu",
        precision=best_precision(),
        max_epochs=int(sys.argv[1]) if len(sys.argv) > 1 else 3,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(CAMModule(num_classes=10, **config["model"]), CAMDataModule(**config["data"]))
    epochs = sum(clock.seconds)
    part = sum(spent) / epochs
    print(f"epoch {epochs / len(clock.seconds):.2f} s, localization {100 * part:.1f} % of it")
