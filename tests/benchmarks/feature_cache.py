"""What the feature cache saves: VGG16, frozen, on the 330 training photographs of animals3.

Prints the times of 40 epochs (training only, neither validated nor watched) beside that of one
plain epoch through the backbone, and their ratios. VGG16 has random weights, which cost as much.

Run: python tests/benchmarks/feature_cache.py ../shared [vectors] [mirrored] [neck]
"""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from camtrain.training import CAMDataModule, CAMModule
from camtrain.training.precision import best_precision

EPOCHS = 40
PARTS = ("vectors", "mirrored", "neck")
# Epochs of 40 that are measured without cache; each is like the others.
PLAIN_EPOCHS = 2


class Clock(Callback):
    """Notes when every epoch ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note it."""
        self.ends.append(time.perf_counter())


def fit(root: str, *, epochs: int, neck: tuple[int, ...] = (), **data: Any) -> tuple[float, float]:
    """Seconds of a whole training, filling included, and of its last epoch."""
    module = CAMModule(
        "torchvision/vgg16", 3, weights=None, neck=neck, freeze_backbone=True, optimizer="sgd"
    )
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        precision=best_precision(),
        max_epochs=epochs,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(module, CAMDataModule(root=root, cache_dir=folder, **data))
    return clock.ends[-1] - start, clock.ends[-1] - [start, *clock.ends][-2]


def print_vectors(root: str, plain: float, *, augment: str, most: float) -> None:
    """The time of 40 epochs over pooled vectors."""
    cached, last = fit(root, epochs=EPOCHS, augment=augment, cache_features=True)
    limit = most * plain + 20
    print(
        f"no neck, augment {augment}: one plain epoch {plain:.1f} s, {EPOCHS} cached epochs "
        f"{cached:.1f} s (the last {last:.2f} s): ratio {cached / plain:.2f}, "
        f"limit {most} x + 20 s = {limit:.1f} s",
        flush=True,
    )


def print_neck(root: str) -> None:
    """The time of 40 epochs with a neck of 1024 channels, with and without cache."""
    neck = (1024,)
    first, last = fit(root, epochs=PLAIN_EPOCHS, neck=neck, augment="none", cache_features=False)
    plain = first + (EPOCHS - PLAIN_EPOCHS) * last
    cached, _ = fit(root, epochs=EPOCHS, neck=neck, augment="none", cache_features=True)
    print(
        f"neck 1024, augment none: {EPOCHS} plain epochs {plain:.1f} s (by the {PLAIN_EPOCHS}nd), "
        f"{EPOCHS} cached epochs {cached:.1f} s: ratio {cached / plain:.3f}, limit 0.333",
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(2)
    root, parts = f"{sys.argv[1]}/data/animals3", sys.argv[2:] or PARTS
    if {"vectors", "mirrored"} & set(parts):
        _, plain = fit(root, epochs=PLAIN_EPOCHS, augment="none", cache_features=False)
    if "vectors" in parts:
        print_vectors(root, plain, augment="none", most=1.3)
    if "mirrored" in parts:
        print_vectors(root, plain, augment="flip", most=2.4)
    if "neck" in parts:
        print_neck(root)
