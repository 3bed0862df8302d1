"""The loggers of a run, by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from camtrain.errors import CamtrainValueError
from camtrain.training.run import wandb as wandb_run

LoggerName = Literal["wandb", "tensorboard", "csv", "none"]


@dataclass(frozen=True)
class LoggedSoFar:
    """Where the loggers of a continued run go on.

    Attributes:
        global_step: For TensorBoard, which hides what a killed run has logged from there on.
        wandb_step: The internal counter of W&B, which an offline run cannot look up.
    """

    global_step: int = 0
    wandb_step: int = 0

    @classmethod
    def of(cls, checkpoint: dict[str, Any]) -> LoggedSoFar:
        """What had been logged when a checkpoint was written."""
        run = checkpoint.get("run", {})
        # Scores are logged with the number of the last step, counted from 0. Within a validation
        # that number is one less than the checkpoint's.
        step = int(checkpoint["global_step"]) - bool(run.get("is_validating"))
        return cls(max(0, step), int(run.get("wandb_step", 0)))


def make_loggers(
    kind: LoggerName, folder: Path, project: str, *, so_far: LoggedSoFar | None = None
) -> list[Logger]:
    """The loggers of a run, which write into its folder.

    Args:
        kind: ``wandb``, ``tensorboard``, ``csv``, or ``none`` (``metrics.csv``, ``cams/`` and
            ``report.html`` are written anyway).
        folder: Of the run; its name is the run's name.
        project: The W&B project.
        so_far: Where a continued run goes on; None for a new one.

    Raises:
        CamtrainValueError: TensorBoard is not installed.
    """
    if kind == "tensorboard":
        if find_spec("tensorboard") is None:
            raise CamtrainValueError(
                "--logger tensorboard needs the package tensorboard; run: pip install tensorboard"
            )
        purge_step = None if so_far is None else so_far.global_step
        logger = TensorBoardLogger(
            folder, name="tensorboard", version="", default_hp_metric=False, purge_step=purge_step
        )
        return [logger]
    if kind == "csv":  # each part of a continued run is a version of its own
        return [CSVLogger(folder, name="csv")]
    if kind == "wandb" and os.environ.get("WANDB_MODE") != "disabled":
        folder.mkdir(parents=True, exist_ok=True)
        step = 0 if so_far is None else so_far.wandb_step
        run = wandb_run.start_run(folder, project, continues=so_far is not None, step=step)
        return [] if run is None else [run]
    return []


def wandb_step(loggers: Sequence[Logger]) -> int:
    """The internal counter of W&B; 0 without it."""
    return max(map(wandb_run.step_of, _wandb_loggers(loggers)), default=0)


def sync_hint(loggers: Sequence[Logger]) -> str | None:
    """Where the curves are, or the command that shows or uploads them; None without a logger."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            return wandb_run.place_of(logger)
        if isinstance(logger, TensorBoardLogger):
            return f"see with: tensorboard --logdir {Path(logger.log_dir)}"
        if isinstance(logger, CSVLogger):
            return logger.log_dir
    return None


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """End the W&B run, so that another one can begin in the same process."""
    for logger in _wandb_loggers(loggers):
        wandb_run.finish(logger)


def upload_bundle(loggers: Sequence[Logger], bundle: Path, scores: Mapping[str, float]) -> None:
    """Add the trained network to the W&B run, if there is one."""
    for logger in _wandb_loggers(loggers):
        wandb_run.log_bundle(logger, bundle, scores)


def _wandb_loggers(loggers: Sequence[Logger]) -> list[WandbLogger]:
    return [logger for logger in loggers if isinstance(logger, WandbLogger)]
