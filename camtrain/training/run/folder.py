"""The folder of a run: where its files lie, and how its checkpoints are written."""

from __future__ import annotations

import csv
import io
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_leaves

from camtrain.files import locked, replacing
from camtrain.header import BEST_NAME, BUNDLE_NAME, CONFIG_NAME

SPLIT_NAME = "split.csv"
RUN_ID, MLFLOW_RUN_ID = "wandb/run_id", "mlflow/run_id"


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

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock of a run that is trained; raises CamtrainValueError if another does."""
        message = (
            f"The run in {self.path} is still trained by another process; wait for its end, stop "
            "it, or choose another name."
        )
        return locked(self.path, message)

    def clear(self) -> None:
        """Delete what is in the folder, but not the folder, which may be locked."""
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    @property
    def is_begun(self) -> bool:
        """Whether a run was begun here, which ``ckpt_path="auto"`` continues."""
        return self.last.is_file() or self.config.is_file()

    @property
    def is_unborn(self) -> bool:
        """Whether it is missing, or holds no more than what precedes the training of a run."""
        if not self.path.exists():
            return True
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else {"a file"}
        names = {name for name in names if not name.startswith(".config-")}  # half-written
        is_logged = any((self.path / name).is_file() for name in (RUN_ID, MLFLOW_RUN_ID))
        return names <= ({"wandb", "mlflow", CONFIG_NAME} if is_logged else set())


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
        tensors = (leaf for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor))
        with replacing(path, needed=sum(tensor.nbytes for tensor in tensors)) as part:
            torch.save(checkpoint, part)
