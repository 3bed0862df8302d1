"""What part of an epoch goes into watching: pictures, report, W&B (offline), and map statistics.

The quickstart with its 16 pictures, or a resnet50 on photographs of noise, 1,000 for training and
200 for validation, a fifth of them with the network's input as they are. Times are those of the
clock within one run: what the callback, the logger and the statistics take, of the whole epoch. The
epoch before the training and the first one, in which W&B starts up, are not counted.

Run: python tests/benchmarks/watching.py quickstart|resnet50 [EPOCHS]
"""

import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything

from camtrain.training import CAMDataModule, CAMLogger, CAMModule
from camtrain.training.evaluate.scores import Evaluation
from camtrain.training.run.trainer import best_precision
from camtrain.training.run.wandb_run import NeverStoppingWandbLogger, start_wandb

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

spent: dict[str, float] = defaultdict(float)


def timed(owner: type, name: str) -> None:
    """Note the time of a method, by class."""
    function: Callable[..., Any] = getattr(owner, name)

    def run(*args: Any, **kwargs: Any) -> object:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        spent[owner.__name__] += time.perf_counter() - start
        return result

    setattr(owner, name, run)


class Clock(Callback):
    """Notes how long each epoch takes, with its validation, and what was spent in it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.parts: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        spent.clear()
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is over too."""
        self.seconds.append(time.perf_counter() - self.start)
        self.parts.append(dict(spent))


def noise(folder: Path, counts: dict[str, int]) -> None:
    """JPEGs of 500 x 375 pixels in ten classes, each with a box."""
    rng = np.random.default_rng(0)
    lines = ["path,xmin,ymin,xmax,ymax,class"]
    for split, count in counts.items():
        for number in range(count):
            name = f"{split}/{number % 10}/{number}.jpg"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(small).resize((500, 375)).save(folder / name)
            lines.append(f"{name},100,50,400,300,{number % 10}")
    (folder / "boxes.csv").write_text("\n".join(lines))


def main(what: str, epochs: int) -> None:
    """Train, and print the parts."""
    os.environ["WANDB_MODE"] = "offline"
    seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if what == "quickstart":
            config = yaml.safe_load(CONFIG.read_text())
            module = CAMModule(num_classes=10, **config["model"])
            data = CAMDataModule(**config["data"])
        else:
            noise(folder / "data", {"train": 1000, "val": 200})
            module = CAMModule("torchvision/resnet50", 10, weights=None, neck=(), lr=1e-4)
            data = CAMDataModule(root=folder / "data", batch_size=32, workers=0)
        for name in vars(CAMLogger):
            if name.startswith("on_"):
                timed(CAMLogger, name)
        timed(Evaluation, "update_statistics")
        timed(NeverStoppingWandbLogger, "log_metrics")
        clock, logger = Clock(), start_wandb(folder / "run", "benchmark")
        trainer = Trainer(
            accelerator="cpu",
            precision=best_precision(),
            max_epochs=epochs,
            num_sanity_val_steps=0,
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            callbacks=[CAMLogger(16, dirpath=folder / "run" / "cams"), clock],
        )
        trainer.fit(module, data)
        report = (folder / "run" / "cams" / "report.html").stat().st_size / 1e6
    whole = sum(clock.seconds[1:]) or sum(clock.seconds)
    parts: dict[str, float] = defaultdict(float)
    for part in clock.parts[1:] or clock.parts:
        for name, seconds in part.items():
            parts[name] += seconds
    shares = ", ".join(f"{name} {100 * value / whole:.2f} %" for name, value in parts.items())
    count = max(1, len(clock.seconds) - 1)
    print(
        f"{what}: epoch {whole / count:.2f} s, watching {100 * sum(parts.values()) / whole:.2f} % "
        f"of it ({1000 * sum(parts.values()) / count:.0f} ms: {shares}); report {report:.2f} MB"
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)
