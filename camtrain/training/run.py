"""The folder of a run: what lies where, and who writes what Lightning does not."""

from __future__ import annotations

import csv
import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import SaveConfigCallback

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.inference.bundle import write_bundle
from camtrain.training.module import CAMModule


@dataclass(frozen=True)
class RunFolder:
    """The paths of ``runs/NAME/``."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Lightning checkpoints: best.ckpt and last.ckpt."""
        return self.path / "checkpoints"

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
    def cams(self) -> Path:
        """The heatmap sheets."""
        return self.path / "cams"

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
            if not (self.checkpoints / "last.ckpt").is_file():
                raise CamtrainFileNotFoundError(
                    f"--ckpt_path last continues a run, but {self.path} holds no "
                    "checkpoints/last.ckpt; give the "
                    "run's --name and --runs_dir, or leave --ckpt_path out to start anew."
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


class SaveConfig(SaveConfigCallback):
    """Writes the run's ``config.yaml``, and again when the run is continued."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it into the folder of the run."""
        callbacks: list[Callback] = cast("Any", trainer).callbacks
        writer = next(c for c in callbacks if isinstance(c, RunWriter))
        writer.folder.path.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_none=False)
        write_text(writer.folder.config, text)


class RunWriter(Callback):
    """Keeps ``metrics.csv`` and the bundle of the best epoch up to date, after every epoch."""

    def __init__(self, folder: RunFolder, monitor: str, mode: str) -> None:
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """The lines so far: a resumed run neither loses nor doubles one."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``state_dict``."""
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's line; write the bundle if this epoch is the best so far."""
        assert isinstance(pl_module, CAMModule)
        scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
        self.rows.append(
            {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **scores}
        )
        if not trainer.is_global_zero:
            return
        write_text(self.folder.metrics, as_csv(self.rows))
        if self._is_best(trainer):
            threshold = pl_module.map_threshold
            write_bundle(self.folder.bundle, pl_module.net, threshold=threshold, scores=scores)

    def _is_best(self, trainer: Trainer) -> bool:
        # Checkpoint callbacks run last, so theirs is still the best of the epochs before.
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise CamtrainValueError(
                f"--monitor must be one of the logged scores, got {self.monitor!r}; logged are "
                f"{known}."
            )
        checkpoint = trainer.checkpoint_callback
        assert isinstance(checkpoint, ModelCheckpoint)
        best, now = checkpoint.best_model_score, trainer.callback_metrics[self.monitor]
        return best is None or bool(now > best if self.mode == "max" else now < best)


def as_csv(rows: list[dict[str, float]]) -> str:
    """A table with the union of the rows' columns, in order of appearance."""
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)
