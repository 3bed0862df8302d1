"""The Lightning module against a bare PyTorch loop that does the same work.

Both train resnet18 on batches of 64 pictures from memory, in turns of a few steps inside one run of
the trainer; processor time is compared, in which other work on the machine does not count.

Run: python tests/benchmarks/loop.py [SIDE [TURNS [STEPS]]], by default 64 pixels, 12 turns, 4 steps
"""

import math
import sys
import time
from collections.abc import Iterator
from statistics import median

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import camtrain
from camtrain.training import CAMModule

BATCH, CLASSES = 64, 10


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Batches in memory; a sample is a whole batch."""

    def __init__(self, side: int, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(4, BATCH, 3, side, side, generator=generator)
        self.labels = torch.randint(CLASSES, (4, BATCH), generator=generator)
        self.count = count

    def __len__(self) -> int:
        """The number of batches."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A batch."""
        return self.images[index % 4], self.labels[index % 4]


def bare_loop(loader: DataLoader[tuple[Tensor, Tensor]], steps: int) -> Iterator[float]:
    """Processor seconds of every ``steps`` steps of a loop as people write it."""
    net = camtrain.create_model("torchvision/resnet18", CLASSES, weights=None, neck=())
    net = net.to(memory_format=torch.channels_last).train()
    decayed = [p for p in net.parameters() if p.ndim > 1]
    kept = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 1e-4}, {"params": kept, "weight_decay": 0.0}], lr=1e-3
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(1, step / len(loader))))
    )
    start, total = time.process_time(), 0.0
    for number, (images, labels) in enumerate(loader, start=1):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images.contiguous(memory_format=torch.channels_last)), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()  # what everybody looks at
        if number % steps == 0:
            yield time.process_time() - start
            start = time.process_time()  # the other loop's turn is over


class Turns(Callback):
    """Times the trainer's steps, and lets the other loop have its turn in between."""

    def __init__(self, other: Iterator[float], steps: int) -> None:
        self.other, self.steps = other, steps
        self.own: list[float] = []
        self.others: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self.start = time.process_time()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Change places after some steps."""
        if (batch_idx + 1) % self.steps == 0:
            self.own.append(time.process_time() - self.start)
            self.others.append(next(self.other))
            self.start = time.process_time()


if __name__ == "__main__":
    given = [int(value) for value in sys.argv[1:]]
    side, turns, steps = given + [64, 12, 4][len(given) :]
    torch.set_num_threads(2)
    data = Pictures(side, turns * steps)
    loader = DataLoader(data, batch_size=None)
    module = CAMModule("torchvision/resnet18", CLASSES, weights=None, neck=(), warmup_epochs=0.0)
    taking_turns = Turns(bare_loop(DataLoader(data, batch_size=None), steps), steps)
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[taking_turns],
    )
    trainer.fit(module, loader)
    own, bare = taking_turns.own[1:], taking_turns.others[1:]  # the first warms up
    ratios = [a / b for a, b in zip(own, bare, strict=True)]
    print(
        f"{side} x {side} pixels, {len(own)} turns of {steps} steps: module "
        f"{1000 * median(own) / steps:.1f} ms, bare loop {1000 * median(bare) / steps:.1f} ms per "
        f"step; ratio of the medians {median(own) / median(bare):.3f}, median of the ratios "
        f"{median(ratios):.3f}"
    )
