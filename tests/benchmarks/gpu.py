"""What a training and a prediction cost on a GPU; everything within six minutes, one table.

Run: python tests/benchmarks/gpu.py [--device cpu] [--tiny] [PART ...]

``module`` ResNet-50 at 224 pixels, fine-tuned in bf16 through ``CAMModule``, beside a bare loop on
the same pictures on the device, in turns. ``waits`` what torch's profiler sees of synchronization
in its training steps. ``loader`` the same training from JPEGs in memory, and what the loader gives
alone. ``cached`` a frozen backbone's head on cached features. ``predict`` heatmaps beside the bare
forward pass, on the device, and the whole ``Predictor``. ``refine`` refinement beside the forward
pass. ``boxes`` 1,000 thresholds of MaxBoxAcc. ``--tiny`` tries all of it on small things; on a CPU
everything computes in float32.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset

import camtrain
from camtrain import CAMNet
from camtrain.localization import MaxBoxAcc
from camtrain.preprocessing import Preprocessing
from camtrain.training import CAMDataModule, CAMModule

CLASSES, WARM = 10, 5  # the first steps of everything are not counted
# Seconds of each part, beside what it takes to begin; together below six minutes.
BUDGETS = {
    **{"module": 60.0, "waits": 10.0, "loader": 60.0, "cached": 40.0},
    **{"predict": 30.0, "refine": 10.0, "boxes": 10.0},
}
# What profilers call a wait for the GPU, or a copy to the host.
WAITS = ("Synchronize", "DtoH", "aten::item", "aten::nonzero")


@dataclass(frozen=True)
class Scale:
    """Where and how large."""

    device: torch.device
    backbone: str
    size: int
    batch: int
    files: int
    seconds: float  # factor of the budgets
    workers: int

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def module(self, **settings: Any) -> CAMModule:
        """A network with random weights, which cost as much as trained ones."""
        defaults: dict[str, Any] = {
            "weights": None,
            "neck": (),
            "schedule": "constant",
            "warmup_epochs": 0.0,
        }
        if self.backbone == "camtrain/digits":
            defaults["backbone_args"] = {"width": 4}
        return CAMModule(self.backbone, CLASSES, **{**defaults, **settings})

    def net(self, **settings: Any) -> CAMNet:
        """The network alone, ready on the device."""
        net = self.module(**settings).net
        net.preprocessing = Preprocessing(size=(self.size, self.size))
        return net.to(self.device, memory_format=torch.channels_last).eval()

    def images(self) -> Tensor:
        """A batch on the device."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.size, self.size, generator=generator)
        return images.to(self.device).contiguous(memory_format=torch.channels_last)

    def trainer(self, *callbacks: Callback, **options: Any) -> Trainer:
        """A trainer that only trains, in bf16."""
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        return Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if self.device.type == "cuda" else "32-true",
            limit_val_batches=0,
            callbacks=list(callbacks),
            **{**dict.fromkeys(off, False), "max_epochs": -1, **options},
        )


class OnDevice(Dataset[tuple[Tensor, Tensor]]):
    """Batches that lie on the device; a sample is a whole batch."""

    def __init__(self, scale: Scale) -> None:
        self.images = [scale.images() for _ in range(2)]
        self.labels = (torch.arange(scale.batch) % CLASSES).to(scale.device)

    def __len__(self) -> int:
        """The number of batches."""
        return 100_000

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A batch."""
        return self.images[index % 2], self.labels


class Turns(Callback):
    """Times the trainer's steps, and lets another loop have its turn in between."""

    def __init__(self, scale: Scale, other: Iterator[None], seconds: float, steps: int) -> None:
        self.scale, self.other, self.steps = scale, other, steps
        self.end = time.perf_counter() + seconds
        self.own: list[float] = []
        self.others: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *rest: object
    ) -> None:
        """Change places after some steps; stop when the time is over."""
        if trainer.global_step % self.steps:
            return
        self.scale.wait()
        times = [getattr(self, "start", time.perf_counter()), time.perf_counter()]
        next(self.other)
        self.scale.wait()
        times.append(time.perf_counter())
        own, other = (b - a for a, b in pairwise(times))
        if hasattr(self, "start"):  # the first turns warm up
            self.own.append(own)
            self.others.append(other)
        self.start = time.perf_counter()
        trainer.should_stop = self.start > self.end and len(self.own) > 1


class Rate(Callback):
    """Counts pictures per second after the first steps, until the time is over."""

    def __init__(self, scale: Scale, seconds: float) -> None:
        self.scale, self.seconds, self.pictures, self.steps = scale, seconds, 0, 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: list[Tensor],
        *_: object,
    ) -> None:
        """Count."""
        self.steps += 1
        if self.steps == WARM:
            self.scale.wait()
            self.start = time.perf_counter()
        elif self.steps > WARM:
            self.pictures += len(batch[1])
            trainer.should_stop = time.perf_counter() > self.start + self.seconds
            if trainer.should_stop:
                self.scale.wait()
                self.per_second = self.pictures / (time.perf_counter() - self.start)


class Profiled(Callback):
    """Profiles some whole training steps, without what is logged after them."""

    def __init__(self, scale: Scale, steps: int) -> None:
        cuda = [ProfilerActivity.CUDA] if scale.device.type == "cuda" else []
        self.profile = profile(activities=[ProfilerActivity.CPU, *cuda])
        self.steps = steps

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *rest: object
    ) -> None:
        """Begin after the first steps."""
        if trainer.global_step == WARM:
            self.profile.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *rest: object
    ) -> None:
        """Stop the training after the last profiled step."""
        if trainer.global_step == WARM + self.steps:
            self.profile.stop()
            trainer.should_stop = True


def bare_loop(scale: Scale, steps: int) -> Iterator[None]:
    """A loop as people write it; yields after every ``steps`` steps."""
    net, data = scale.net().train(), OnDevice(scale)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    biases = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for number in range(len(data)):
        images, labels = data[number]
        optimizer.zero_grad()
        with torch.autocast(scale.device.type, torch.bfloat16, scale.device.type == "cuda"):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (number + 1) % steps == 0:
            yield


def seconds_of(scale: Scale, seconds: float, *ways: Callable[[], object]) -> list[float]:
    """The median time of each way; they take turns until the time is over."""
    times: list[list[float]] = [[] for _ in ways]
    end = time.perf_counter() + seconds
    while len(times[0]) < 4 or time.perf_counter() < end:
        for way, taken in zip(ways, times, strict=True):
            scale.wait()
            start = time.perf_counter()
            way()
            scale.wait()
            taken.append(time.perf_counter() - start)
    return [median(taken[1:]) for taken in times]


def photographs(root: Path, count: int) -> Path:
    """JPEGs of 500 x 375 pixels, in memory where the system has a folder there; 32 differ."""
    rng = np.random.default_rng(0)
    for number in range(count):
        file = root / "train" / f"class{number % CLASSES}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number < 32:
            coarse = Image.fromarray(rng.integers(0, 255, (47, 63, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
            pixels = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(file, quality=90)
        else:
            first = number % 32
            shutil.copyfile(root / "train" / f"class{first % CLASSES}" / f"{first}.jpg", file)
    shutil.copytree(root / "train", root / "val")
    return root


def module(scale: Scale, seconds: float, root: Path) -> Iterator[str]:
    """The Lightning module beside a bare loop."""
    steps = 20 if scale.device.type == "cuda" else 2
    turns = Turns(scale, bare_loop(scale, steps), seconds, steps)
    loader = DataLoader(OnDevice(scale), batch_size=None)
    scale.trainer(turns).fit(scale.module(), loader)
    ratio = median(b / a for a, b in zip(turns.own, turns.others, strict=True))
    own, bare = (scale.batch * steps / median(times) for times in (turns.own, turns.others))
    yield (
        f"{own:.0f} pictures/s, bare loop {bare:.0f}: {ratio:.3f} (goal 0.95); "
        f"{len(turns.own)} turns of {steps} steps"
    )


def waits(scale: Scale, seconds: float, root: Path) -> Iterator[str]:
    """Synchronization and copies to the host in training steps, as torch's profiler sees them."""
    profiled = Profiled(scale, steps=10)
    scale.trainer(profiled).fit(scale.module(), DataLoader(OnDevice(scale), batch_size=None))
    counts = Counter(event.name for event in profiled.profile.events() or ())
    of_waits = {n: c for n, c in counts.items() if any(word in n for word in WAITS)}
    rows = [f"{name} {count / 10:g}" for name, count in sorted(of_waits.items())]
    yield f"per step: {', '.join(rows) or 'none'}"
    yield "expected on GPUs: no cudaStreamSynchronize; one Memcpy DtoH of the loss, pinned,"
    yield "and one cudaEventSynchronize for it once backward is queued; aten::item of CPU scalars"


def loader(scale: Scale, seconds: float, root: Path) -> Iterator[str]:
    """Training from JPEGs, and the loader alone."""
    data = CAMDataModule(
        root=root, size=scale.size, batch_size=scale.batch, workers=scale.workers, augment="light"
    )
    data.setup("fit")
    batches, count, start = iter(data.train_dataloader()), 0, 0.0
    for number, batch in enumerate(batches):
        if number == 1:  # workers have started
            start = time.perf_counter()
        count += len(batch.labels) if number else 0
        if number and time.perf_counter() - start > seconds / 3:
            break
    alone = count / max(time.perf_counter() - start, 1e-9)
    del batches
    rate = Rate(scale, seconds / 2)
    scale.trainer(rate).fit(scale.module(), data)
    cores = max(1, min(scale.workers, os.cpu_count() or 1))
    yield (
        f"trains on {rate.per_second:.0f} pictures/s; the loader alone gives {alone:.0f}, "
        f"{alone / cores:.0f} per core ({cores} workers)"
    )


def cached(scale: Scale, seconds: float, root: Path) -> Iterator[str]:
    """Frozen cached training."""
    with tempfile.TemporaryDirectory() as cache:
        data = CAMDataModule(
            *("folder", root),
            **{"size": scale.size, "batch_size": scale.batch, "workers": scale.workers},
            **{"augment": "none", "cache_features": True, "cache_dir": cache},
        )
        rate, start = Rate(scale, seconds / 2), time.perf_counter()
        scale.trainer(rate).fit(scale.module(freeze_backbone=True), data)
    began = rate.start - start
    yield (
        f"trains on {rate.per_second:.0f} pictures/s, from {began:.1f} s after the start on, in "
        f"which {scale.files} pictures went through the backbone"
    )


def predict(scale: Scale, seconds: float, root: Path) -> Iterator[str]:
    """Heatmaps of the five best classes beside the bare forward pass."""
    net, images = scale.net(), scale.images()
    size = (scale.size, scale.size)
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(256, (scale.batch, 3, *size), dtype=torch.uint8, generator=generator)
    predictor = camtrain.Predictor(net, device=scale.device)
    network: Any = predictor.network

    def heatmaps() -> None:
        camtrain.heatmaps(network.display_maps(images, top=5).maps, size=size)

    with torch.inference_mode():
        forward, maps, whole = seconds_of(
            scale,
            seconds,
            lambda: net(images),
            heatmaps,
            lambda: list(predictor(raw, top=5, batch_size=scale.batch)),
        )
    yield (
        f"heatmaps on the device: {forward / maps:.3f} of the bare forward pass (goal 0.9), which "
        f"takes {scale.batch / forward:.0f} pictures/s"
    )
    yield (
        f"the whole Predictor, from pixels to boxes on the CPU: {forward / whole:.3f}, "
        f"{scale.batch / whole:.0f} pictures/s"
    )


def refine(scale: Scale, seconds: float, root: Path) -> Iterator[str]:
    """Refined maps beside the forward pass."""
    plain, refined, images = scale.net(), scale.net(refine="affinity"), scale.images()
    with torch.inference_mode():
        forward, with_maps = seconds_of(
            scale, seconds, lambda: plain(images), lambda: refined.display_maps(images, top=1)
        )
    share = 100 * (with_maps / forward - 1)
    yield (
        f"refinement takes {share:.1f} % of the forward pass, which takes {1000 * forward:.1f} ms "
        f"for {scale.batch} pictures"
    )


def boxes(scale: Scale, seconds: float, root: Path) -> Iterator[str]:
    """1,000 thresholds of MaxBoxAcc, on the CPU beside the device."""
    metric, side = MaxBoxAcc().to(scale.device), max(2, scale.size // 32)
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(scale.batch, side, side, generator=generator).to(scale.device)
    truth = [torch.tensor([[40, 40, 160, 180]])] * scale.batch
    sizes_hw = torch.tensor([[224, 224]] * scale.batch)
    [taken] = seconds_of(scale, seconds, lambda: metric.update(maps, truth, sizes_hw))
    yield (
        f"MaxBoxAcc and V2: {1000 * taken / scale.batch:.2f} ms per picture, a map of noise, "
        f"{torch.get_num_threads()} threads of the CPU"
    )


PARTS: dict[str, Callable[[Scale, float, Path], Iterator[str]]] = {
    part.__name__: part for part in (module, waits, loader, cached, predict, refine, boxes)
}


def main(args: list[str]) -> int:
    """Run the parts, print the table, and return 1 if one of them has failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(args)
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    device, cores = torch.device(options.device), os.cpu_count() or 1
    scale = Scale(device, "torchvision/resnet50", 224, 128, 2048, 1.0, min(16, cores))
    if options.tiny:
        scale = Scale(device, "camtrain/digits", 32, 8, 128, 0.01, min(2, cores))
    is_gpu = device.type == "cuda"
    chip = torch.cuda.get_device_name() if is_gpu else "the CPU"
    print(
        f"{chip}, {cores} cores, torch {torch.__version__}; {scale.backbone}, {scale.size} pixels, "
        f"batches of {scale.batch}"
    )
    failed, memory = 0, Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        root = photographs(Path(folder) / "photographs", scale.files)
        for name in options.parts or PARTS:
            start = time.perf_counter()
            if is_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                lines = list(PARTS[name](scale, BUDGETS[name] * scale.seconds, root))
            except Exception as error:  # the other parts are measured all the same
                failed, lines = 1, [f"failed: {type(error).__name__}: {error}"]
            peak = f"{torch.cuda.max_memory_allocated() / 1e9:6.2f} GB" if is_gpu else ""
            for line, label in zip(lines, [name, *[""] * len(lines)], strict=False):
                print(f"{label:8} {line}", flush=True)
            print(
                f"{'':8} {time.perf_counter() - start:.0f} s{peak and f', at most {peak}'}",
                flush=True,
            )
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
