"""The folder of a run: what lies where, and what may happen to it."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError

SPLIT_NAME = "split.csv"


@dataclass(frozen=True)
class RunFolder:
    """The paths of ``runs/NAME/``."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Lightning checkpoints: best.ckpt and last.ckpt."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """Everything that is needed to go on."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.checkpoints / "best.ckpt"

    @property
    def bundle(self) -> Path:
        """The network of the best epoch, for inference."""
        return self.path / "model.safetensors"

    @property
    def config(self) -> Path:
        """Every setting of the run."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One line per epoch."""
        return self.path / "metrics.csv"

    @property
    def split(self) -> Path:
        """Which picture is in which split, where that was decided here."""
        return self.path / SPLIT_NAME

    @property
    def cams(self) -> Path:
        """The heatmap sheets."""
        return self.path / "cams"

    @property
    def report(self) -> Path:
        """The page that shows the training."""
        return self.path / "report.html"

    @property
    def over_epochs(self) -> Path:
        """Some heatmaps over the epochs, beside the report."""
        return self.path / "over_epochs.png"

    def check_free(self, *, continues: bool, overwrite: bool) -> None:
        """Make sure that a new run loses nothing; changes nothing itself.

        Args:
            continues: The run goes on from its last checkpoint.
            overwrite: An old run may be deleted.

        Raises:
            CamtrainValueError: The folder is not empty, and neither is allowed.
            CamtrainFileNotFoundError: There is no checkpoint to go on from.
        """
        if continues:
            if not self.last.is_file() and not self.config.is_file():
                raise CamtrainFileNotFoundError(
                    f"--ckpt_path last continues a run, but {self.path} holds none (no "
                    "checkpoints/last.ckpt); give the run's --name and --runs_dir, or leave "
                    "--ckpt_path out to start anew."
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            if not overwrite:
                raise CamtrainValueError(
                    f"The run folder {self.path} is not empty; continue it with --ckpt_path last, "
                    "replace it with "
                    "--overwrite, or choose another --name."
                )
            if not self.config.is_file():
                raise CamtrainValueError(
                    f"--overwrite replaces only an earlier run, and {self.path} holds none (no "
                    "config.yaml); "
                    "choose another --name, or delete the folder yourself."
                )

    def clear(self) -> None:
        """Delete an earlier run, which ``check_free`` has found to be one that may be replaced."""
        if self.path.exists():
            shutil.rmtree(self.path)


def as_csv(rows: list[dict[str, float]]) -> str:
    """A table with the union of the rows' columns, in order of appearance."""
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
