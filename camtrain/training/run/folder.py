"""The folder of a run: what lies where, and how its checkpoints are written."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from camtrain.files import replacing

SPLIT_NAME = "split.csv"


class RunFolder:
    """The paths of ``runs/NAME/``.

    Attributes:
        path: Of the folder.
        checkpoints: Folder of the Lightning checkpoints.
        last: The checkpoint that a run is continued from.
        best: The checkpoint of the best epoch.
        bundle: The network of the best epoch, for inference.
        config: Every setting of the run.
        metrics: A table with one row per epoch.
        split: Which picture is in which split, where the run has decided that.
        cams: Folder of the heatmap sheets.
        report: The page that shows the training.
        over_epochs: Some heatmaps over the epochs, beside the report.
    """

    def __init__(self, path: str | Path) -> None:
        """Nothing is created."""
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.bundle = self.path / "model.safetensors"
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.split = self.path / SPLIT_NAME
        self.cams = self.path / "cams"
        self.report = self.path / "report.html"
        self.over_epochs = self.path / "over_epochs.png"


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
