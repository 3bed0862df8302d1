"""The folder of a run: where its files lie, and how its checkpoints are written."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from camtrain.files import replacing
from camtrain.header import BEST_NAME, BUNDLE_NAME, CONFIG_NAME

SPLIT_NAME = "split.csv"


class RunFolder:
    """The paths of ``runs/NAME/``. Nothing is created."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"  # a run is continued from it
        self.best = self.path / BEST_NAME  # of the best epoch
        self.bundle = self.path / BUNDLE_NAME  # the network of the best epoch
        self.config = self.path / CONFIG_NAME  # every setting
        self.metrics = self.path / "metrics.csv"  # a row per validation and epoch
        self.split = self.path / SPLIT_NAME  # the split of each picture, where the run divides them
        self.cams = self.path / "cams"  # the heatmap sheets
        self.report = self.path / "report.html"
        self.over_epochs = self.path / "over_epochs.png"  # heatmaps over the epochs
        self.train_batch = self.path / "train_batch.jpg"


def as_csv(rows: list[dict[str, float]]) -> str:
    """A table with the union of the rows' columns, in order of appearance."""
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically.

    Lightning writes them through fsspec, which makes the new file in the system's temporary folder
    and, where that is another file system, copies it over the old one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Write a checkpoint; see the base class."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            torch.save(checkpoint, part)
