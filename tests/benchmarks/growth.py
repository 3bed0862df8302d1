"""What grows with the epochs of a run that is watched: memory, descriptors, files.

The smallest network trains on noise, with 48 pictures watched and W&B offline; of the last two
thirds of the epochs the slopes are printed, and the sizes at the end. W&B keeps the last 100
artifacts of its tables (its own bound), so memory is to be judged after epoch 100.

Run: python tests/benchmarks/growth.py [EPOCHS [LOGGER]], by default 300 epochs and wandb
"""

import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from camtrain.training import CAMDataModule, CAMLogger, CAMModule, fit

PICTURES = {"train": 8, "val": 48}


def noise(root: Path) -> None:
    """Pictures of two classes."""
    rng = np.random.default_rng(0)
    for split, count in PICTURES.items():
        for number in range(count):
            path = root / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((224, 224)).save(path)


def megabytes(path: Path) -> float:
    """Size of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


class Measurements(Callback):
    """Measures after every epoch."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of the run."""
        self.folder = folder
        self.values: dict[str, list[float]] = defaultdict(list)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a value to each series."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.values["memory, MB"].append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        self.values["descriptors"].append(len(os.listdir("/proc/self/fd")))
        for name in ("report.html", "report", "cams", "wandb"):
            if (self.folder / name).exists():
                self.values[f"{name}, MB"].append(megabytes(self.folder / name))


def main(epochs: int, logger: str) -> None:
    """Train, and print the slopes."""
    os.environ["WANDB_MODE"] = "offline"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        noise(folder / "data")
        measurements = Measurements(folder / "run")
        fit(
            CAMModule("camtrain/digits", 2, neck=(), backbone_args={"width": 2}),
            CAMDataModule(root=folder / "data", size=32, batch_size=8, workers=0),
            folder=folder / "run",
            logger=logger,
            cams=CAMLogger(48, tile=224, num_mistakes=8),
            trainer={
                "max_epochs": epochs,
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "callbacks": [measurements],
            },
        )
    for name, series in measurements.values.items():
        values = series[-2 * epochs // 3 :]
        slope = np.polyfit(np.arange(len(values)), values, 1)[0]
        print(f"{logger}: {name}: {slope:+.4f} per epoch, {values[-1]:.1f} after {epochs} epochs")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300, (sys.argv[2:] or ["wandb"])[0])
