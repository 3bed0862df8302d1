"""The folder of a run: what lies where, and who writes what Lightning does not."""

from __future__ import annotations

import csv
import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import SaveConfigCallback

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.inference.bundle import write_bundle
from camtrain.training.averaging import averaged_weights
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
    """Writes the run's ``config.yaml``; that of a continued run only once it really goes on."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it at once where there is none."""
        if not _folder_of(trainer).config.exists():
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace it: the checkpoint has been found to fit these settings."""
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it into the folder of the run."""
        folder = _folder_of(trainer)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_text(folder.config, self.parser.dump(self.config, skip_none=False))


def _folder_of(trainer: Trainer) -> RunFolder:
    callbacks: list[Callback] = cast("Any", trainer).callbacks
    return next(c for c in callbacks if isinstance(c, RunWriter)).folder


class KeptCheckpoint(ModelCheckpoint):
    """``checkpoints/NAME.ckpt`` of a run, written at the end of an epoch, wherever the run lies."""

    def __init__(
        self, folder: RunFolder, name: str, *, monitor: str | None = None, every: int = 1
    ) -> None:
        super().__init__(
            folder.checkpoints,
            filename=name,
            monitor=monitor,
            mode=mode_of(monitor or ""),
            every_n_epochs=every,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    @property
    def state_key(self) -> str:
        """Another than that of a ModelCheckpoint that somebody adds."""
        return f"camtrain.{self.filename}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in this folder, should the run have been moved."""
        here = str(self.dirpath)

        def moved(path: str) -> str:
            return str(Path(here) / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        rebased = {name: moved(state_dict[name]) for name in paths}
        super().load_state_dict({**state_dict, **rebased, "dirpath": here, "best_k_models": best})


def mode_of(monitor: str) -> Literal["min", "max"]:
    """Which way a score gets better."""
    return "min" if "loss" in monitor else "max"


class RunWriter(Callback):
    """Keeps ``metrics.csv`` and the bundle of the best epoch up to date, after every epoch."""

    def __init__(self, folder: RunFolder, best: KeptCheckpoint) -> None:
        self.folder = folder
        self.best = best
        self.rows: list[dict[str, float]] = []
        self._has_validated = False

    def state_dict(self) -> dict[str, Any]:
        """The lines so far: a resumed run neither loses nor doubles one."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``state_dict``."""
        self.rows = list(state_dict["rows"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the epoch has scores of its own."""
        self._has_validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's line; write the bundle if this epoch is the best so far."""
        assert isinstance(pl_module, CAMModule)
        scores = {
            name: value.item()
            for name, value in trainer.callback_metrics.items()
            if self._has_validated or not name.startswith("val/")  # left over from before
        }
        self.rows.append(
            {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **scores}
        )
        if not trainer.is_global_zero:
            return
        write_text(self.folder.metrics, as_csv(self.rows))
        is_best, self._has_validated = self._has_validated and self._is_best(scores), False
        if is_best:
            threshold = pl_module.map_threshold
            with averaged_weights(trainer, pl_module):
                write_bundle(self.folder.bundle, pl_module.net, threshold=threshold, scores=scores)

    def _is_best(self, scores: dict[str, float]) -> bool:
        monitor = str(self.best.monitor)
        if monitor not in scores:
            raise CamtrainValueError(
                f"--monitor must be one of the logged scores, got {monitor!r}; logged are "
                f"{', '.join(sorted(scores))}."
            )
        # Checkpoint callbacks run last, so theirs is still the best of the epochs before.
        before, now = self.best.best_model_score, scores[monitor]
        if before is None:
            return True
        return now > before.item() if self.best.mode == "max" else now < before.item()


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
