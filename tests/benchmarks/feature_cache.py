"""What the feature cache saves, and that it changes nothing.

``vectors``, ``mirrored``, ``neck``: VGG16, frozen, on the 330 training photographs of animals3; 40
epochs (training only, neither validated nor watched) beside one plain epoch through the backbone.
Its weights are random, which cost as much. ``scores``: a pretrained MobileNetV2 with and without
cache, three seeds. CPU seconds are those of the training process, without loading; they tell more
than wall time where the machine has other work.

Run: python tests/benchmarks/feature_cache.py ../shared [vectors] [mirrored] [neck] [scores]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything

from camtrain.training import CAMDataModule, CAMModule
from camtrain.training.run.trainer import best_precision

EPOCHS = 40
PARTS = ("vectors", "mirrored", "neck", "scores")
SCORES = ("test/acc1", "test/loc_gt_known", "test/max_box_acc", "test/loss")


class Seconds(NamedTuple):
    """How long something took."""

    wall: float
    cpu: float

    def plus(self, other: Seconds, factor: float = 1.0) -> Seconds:
        """The sum with some times of another."""
        return Seconds(self.wall + factor * other.wall, self.cpu + factor * other.cpu)

    def __str__(self) -> str:
        """Both, for people."""
        return f"{self.wall:.1f} s (CPU {self.cpu:.1f} s)"


def now() -> Seconds:
    """The time."""
    return Seconds(time.perf_counter(), time.process_time())


class Clock(Callback):
    """Notes when every epoch ends."""

    def __init__(self) -> None:
        self.ends: list[Seconds] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note it."""
        self.ends.append(now())


def trainer_of(**settings: Any) -> Trainer:
    """A trainer that only trains."""
    return Trainer(
        accelerator="cpu",
        precision=best_precision(),
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def fit(
    root: Path, *, epochs: int, neck: tuple[int, ...] = (), **data: Any
) -> tuple[Seconds, Seconds]:
    """Seconds of a whole training, filling included, and of its last epoch."""
    module = CAMModule(
        "torchvision/vgg16", 3, weights=None, neck=neck, freeze_backbone=True, optimizer="sgd"
    )
    clock = Clock()
    trainer = trainer_of(max_epochs=epochs, limit_val_batches=0, callbacks=[clock])
    start = now()
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(module, CAMDataModule(root=root, cache_dir=folder, **data))
    ends = [start, *clock.ends]
    return ends[-1].plus(start, -1), ends[-1].plus(ends[-2], -1)


def plain_epoch(root: Path, **settings: Any) -> Seconds:
    """Seconds of an epoch without cache, loading and starting of workers included."""
    return fit(root, epochs=1, augment="none", cache_features=False, **settings)[0]


def print_vectors(root: Path, *, augment: str, most: float) -> None:
    """40 epochs over pooled vectors, between two plain ones, as the machine may be busy."""
    before = plain_epoch(root)
    cached, last = fit(root, epochs=EPOCHS, augment=augment, cache_features=True)
    plain = before.plus(plain_epoch(root))
    plain = Seconds(plain.wall / 2, plain.cpu / 2)
    print(
        f"no neck, augment {augment}: a plain epoch {plain}, {EPOCHS} cached ones {cached}, the "
        f"last of them {last}: ratio {cached.wall / plain.wall:.2f} (CPU "
        f"{cached.cpu / plain.cpu:.2f}); at most {most} x + 20 s = {most * plain.wall + 20:.1f} s",
        flush=True,
    )


def print_neck(root: Path) -> None:
    """40 epochs with a neck of 1024 channels, with and without cache, by the first few."""
    neck = (1024,)
    measured = 3  # of the cached epochs; after the first, which fills, all are alike
    before = plain_epoch(root, neck=neck)
    cached, last = fit(root, epochs=measured, neck=neck, augment="none", cache_features=True)
    cached = cached.plus(last, EPOCHS - measured)
    both = before.plus(plain_epoch(root, neck=neck))
    plain = Seconds(EPOCHS * both.wall / 2, EPOCHS * both.cpu / 2)
    print(
        f"neck 1024, augment none: {EPOCHS} plain epochs {plain} by two, {EPOCHS} cached ones "
        f"{cached} by {measured}, the last of them {last}: ratio {cached.wall / plain.wall:.3f} "
        f"(CPU {cached.cpu / plain.cpu:.3f}); at most 0.333",
        flush=True,
    )


def print_scores(shared: Path, *, seeds: int = 3, epochs: int = 3) -> None:
    """Scores on the test photographs with and without cache."""
    print(f"| seed | cache | {' | '.join(SCORES)} |")
    for seed in range(seeds):
        heads = []
        for cache in (False, True):
            seed_everything(seed, verbose=False)
            module = CAMModule(
                "timm/mobilenetv2_100",
                3,
                weights=shared / "weights" / "mobilenetv2_100_tfpad.safetensors",
                backbone_args={"pad_type": "same"},
                stride=16,
                neck=(),
                freeze_backbone=True,
                optimizer="sgd",
                lr=0.005,
            )
            half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
            root = shared / "data" / "animals3"
            data = CAMDataModule(
                root=root, size=256, augment="flip", seed=seed, cache_features=cache, **half
            )
            trainer = trainer_of(max_epochs=epochs)
            trainer.fit(module, data)
            [scores] = trainer.test(module, data, verbose=False)
            heads.append(module.net.head.weight)
            cells = " | ".join(f"{scores[name]:.4f}" for name in SCORES)
            print(f"| {seed} | {cache} | {cells} |", flush=True)
        difference = (heads[0] - heads[1]).abs().max() / heads[0].abs().max()
        print(f"largest difference of the heads: {difference:.1e} of the largest weight")


if __name__ == "__main__":
    torch.set_num_threads(2)
    shared, parts = Path(sys.argv[1]), sys.argv[2:] or PARTS
    root = shared / "data" / "animals3"
    if "vectors" in parts:
        print_vectors(root, augment="none", most=1.3)
    if "mirrored" in parts:
        print_vectors(root, augment="flip", most=2.4)
    if "neck" in parts:
        print_neck(root)
    if "scores" in parts:
        print_scores(shared)
