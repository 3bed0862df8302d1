"""Is reading pictures ever what a training of resnet50 waits for? Prints pictures per second.

    python tests/benchmarks/loading.py [FOLDER]

FOLDER holds ``{train,val}/CLASS/*``; without it, 500-pixel JPEGs are generated. The loader alone is
compared with the training step and with the forward pass of resnet50, each alone on all cores;
then both run together, as in a training, and the time that the steps wait for pictures is counted.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import camtrain
from camtrain.data import Batch
from camtrain.training import CAMDataModule
from camtrain.training.run.trainer import best_precision

BATCH_SIZE, STEPS, WORKERS = 16, 6, 2


def photographs(root: Path, count: int = 400) -> Path:
    """JPEGs of 500 x 375 pixels with the detail of photographs."""
    rng = np.random.default_rng(0)
    for split, part in (("train", count), ("val", BATCH_SIZE)):
        for number in range(part):
            path = root / split / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 255, (47, 63, 3), dtype=np.uint8)
            smooth = np.asarray(
                Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
            )
            noise = rng.normal(0, 8, smooth.shape)
            pixels = (smooth + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path, quality=90)
    return root


def per_second(batches: Iterable[Batch], warm: int) -> float:
    """Pictures per second after the first ones, which workers prepared while they started."""
    counts, start = 0, 0.0
    for number, batch in enumerate(batches):
        if number == warm:
            counts, start = 0, time.perf_counter()
        counts += len(batch.images)
    return (counts - BATCH_SIZE) / (time.perf_counter() - start)


def endless(data: CAMDataModule) -> Iterator[Batch]:
    """Training batches, epoch after epoch."""
    loader = data.train_dataloader()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # an EpochSampler
        yield from loader


class Steps:
    """Training steps and forward passes of resnet50 as ``fit`` does them."""

    def __init__(self, num_classes: int) -> None:
        net = camtrain.create_model("torchvision/resnet50", num_classes, weights=None, neck=())
        self.net = net.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.net.parameters(), 1e-3, momentum=0.9)
        self.is_mixed = best_precision() == "bf16-mixed"

    def train(self, images: Tensor, labels: Tensor) -> None:
        """One step of the optimizer."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_mixed):
            logits = self.net(images.contiguous(memory_format=torch.channels_last))
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        self.optimizer.step()

    def forward(self, images: Tensor, labels: Tensor) -> None:
        """One forward pass, in the precision of evaluation."""
        with torch.inference_mode():
            self.net(images.contiguous(memory_format=torch.channels_last))

    def per_second(self, name: str) -> float:
        """Pictures per second from memory."""
        images, labels = torch.rand(BATCH_SIZE, 3, 224, 224), torch.zeros(BATCH_SIZE).long()
        self.net.train(name == "train")
        step = getattr(self, name)
        step(images, labels)
        start = time.perf_counter()
        for _ in range(STEPS):
            step(images, labels)
        return STEPS * BATCH_SIZE / (time.perf_counter() - start)


def waiting(steps: Steps, batches: Iterator[Batch]) -> tuple[float, float]:
    """Pictures per second of training steps with loading, and the part of the time they wait."""
    steps.net.train()
    steps.train(*next(batches)[:2])
    start, waited = time.perf_counter(), 0.0
    for _ in range(STEPS):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        steps.train(batch.images, batch.labels)
    whole = time.perf_counter() - start
    return STEPS * BATCH_SIZE / whole, waited / whole


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(sys.argv[1]) if len(sys.argv) > 1 else photographs(Path(folder))
        data = CAMDataModule(
            root=root, batch_size=BATCH_SIZE, augment="imagenet", workers=WORKERS, seed=1
        )
        data.setup("fit")
        loader = per_second(itertools.islice(endless(data), 4 * WORKERS + 24), warm=4 * WORKERS)
        steps = Steps(data.num_classes)
        train, forward = steps.per_second("train"), steps.per_second("forward")
        together, part = waiting(steps, endless(data))
    print(f"{torch.get_num_threads()} threads, {WORKERS} workers, batches of {BATCH_SIZE}, 224 px")
    print(f"loader alone            {loader:7.1f} pictures/s")
    print(f"training step alone     {train:7.1f} pictures/s: the loader is {loader / train:.1f} x")
    print(
        f"forward pass alone      {forward:7.1f} pictures/s: the loader is {loader / forward:.1f} x"
    )
    print(f"training with loading   {together:7.1f} pictures/s, {100 * part:.1f} % of it waiting")


if __name__ == "__main__":
    main()
