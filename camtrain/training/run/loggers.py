"""The loggers of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from camtrain.arguments import announce
from camtrain.errors import CamtrainValueError
from camtrain.training.datamodule import CAMDataModule
from camtrain.training.lightnings import is_lightnings
from camtrain.training.run.mlflow_run import (
    NeverStoppingMLFlowLogger,
    log_file,
    log_summary,
    start_mlflow,
)
from camtrain.training.run.mlflow_run import finish as finish_mlflow
from camtrain.training.run.wandb_content import (
    attach_report,
    define_scores,
    log_network,
    use_data,
)
from camtrain.training.run.wandb_options import WandbOptions
from camtrain.training.run.wandb_run import (
    answer_of,
    command_to_upload,
    finish,
    is_disabled,
    offline_place,
    start_wandb,
)
from camtrain.training.run.worker import enqueue_call, errors_as_warnings

LoggerName = Literal["wandb", "mlflow", "tensorboard", "csv", "none"]


@dataclass(frozen=True)
class LoggedSoFar:
    """Where the loggers of a continued run go on."""

    global_step: int = 0  # from here on TensorBoard hides what a killed run has logged
    wandb_step: int = 0  # the internal counter of W&B, which an offline run cannot look up

    @classmethod
    def of(cls, checkpoint: dict[str, Any]) -> LoggedSoFar:
        """What had been logged when a checkpoint was written."""
        run = checkpoint.get("run", {})
        # Scores are logged with the number of the last step, counted from 0. Within a validation
        # that number is one less than the checkpoint's.
        step = int(checkpoint["global_step"]) - bool(run.get("is_validating"))
        return cls(max(0, step), int(run.get("wandb_step", 0)))


def project_or_default(project: str | None, kind: LoggerName) -> str:
    """A given project of W&B or experiment of MLflow; else of their environment; else camtrain."""
    variable = "MLFLOW_EXPERIMENT_NAME" if kind == "mlflow" else "WANDB_PROJECT"
    return project or os.environ.get(variable) or "camtrain"


def check_logger(kind: LoggerName) -> None:
    """Raise CamtrainValueError where the package of a logger is not installed."""
    if kind in ("tensorboard", "mlflow") and find_spec(kind) is None:
        raise CamtrainValueError(f"logger={kind} needs the package {kind}; run: pip install {kind}")


def make_loggers(
    kind: LoggerName,
    folder: Path,
    project: str,
    *,
    name: str | None = None,
    so_far: LoggedSoFar | None = None,
    wandb: WandbOptions | None = None,
) -> list[Logger]:
    """Create the loggers of a run, which write into its folder.

    Args:
        kind: ``wandb``, ``mlflow``, ``tensorboard``, ``csv``, or ``none`` (``metrics.csv``,
            ``cams/`` and ``report.html`` are written anyway).
        folder: Folder of the run.
        project: The W&B project, or the MLflow experiment.
        name: Name of the run there; None: that of W&B's environment, else of the folder.
        so_far: Where a continued run goes on; None for a new one.
        wandb: What the run says of itself in W&B.
    """
    if kind == "tensorboard":
        purge_step = None if so_far is None else so_far.global_step
        logger = TensorBoardLogger(
            folder, name="tensorboard", version="", default_hp_metric=False, purge_step=purge_step
        )
        return [logger]
    if kind == "csv":  # each part of a continued run is a version of its own
        return [CSVLogger(folder, name="csv")]
    if kind == "mlflow":
        with announce("Starting MLflow"):
            tracked = start_mlflow(folder, project, name=name, is_new=so_far is None)
        return [] if tracked is None else [tracked]
    if kind == "wandb" and not is_disabled():
        with announce("Starting W&B"):
            step = 0 if so_far is None else so_far.wandb_step
            run = start_wandb(
                folder, project, name=name, is_new=so_far is None, step=step, options=wandb
            )
        return [] if run is None else [run]
    return []


def place_of(loggers: Sequence[Any]) -> str | None:
    """The place of the curves, or the command that shows or uploads them; None without a logger."""
    for logger in loggers:
        if is_lightnings(logger, "WandbLogger"):
            url, command, place = None, command_to_upload(logger), offline_place(logger)
            with errors_as_warnings(logger):
                url = logger.experiment.url
            look = f"look with: wandb leet {place}" if place else ""
            upload = f"upload with: {command}" if command else ""
            return "; ".join(filter(None, [url or "offline", look, upload]))
        if is_lightnings(logger, "TensorBoardLogger"):
            return f"see with: tensorboard --logdir {Path(logger.log_dir)}"
        if isinstance(logger, NeverStoppingMLFlowLogger):
            return logger.place
        if is_lightnings(logger, "CSVLogger"):
            return str(logger.log_dir)
    return None


def upload_bundle(loggers: Sequence[Logger], bundle: Path, scores: Mapping[str, float]) -> None:
    """Add the network of the best epoch to the W&B or MLflow run, in W&B with its scores."""
    for logger in _wandb_loggers(loggers):
        log_network(logger, bundle, scores)
    for tracked in _mlflow_loggers(loggers):
        log_file(tracked, bundle, "model")


def upload_report(loggers: Sequence[Logger], report: Path) -> None:
    """Show the report in the W&B or MLflow run, if both exist."""
    for logger in _wandb_loggers(loggers):
        attach_report(logger, report)
    for tracked in _mlflow_loggers(loggers):
        log_file(tracked, report)


def describe_data(loggers: Sequence[Logger], data: CAMDataModule, split_file: Path) -> None:
    """Say what the pictures are, as an artifact that the W&B run uses; MLflow gets the splits."""
    for logger in _wandb_loggers(loggers):
        use_data(logger, data, split_file)
    for tracked in _mlflow_loggers(loggers):
        log_file(tracked, split_file, "data")


def log_settings(loggers: Sequence[Logger], settings: dict[str, Any], monitor: str | None) -> None:
    """Log the settings of a run, and say how its scores are to be summarized."""
    for logger in loggers:
        logger.log_hyperparams(settings)
    if monitor is not None:
        for run in _wandb_loggers(loggers):
            define_scores(run, monitor)


def summarize_best(loggers: Sequence[Logger], row: Mapping[str, float]) -> None:
    """Put the best epoch's row of ``metrics.csv`` into the run, as ``best/val/acc1``, ..."""
    best = {f"best/{name}": value for name, value in row.items()}
    for tracked in _mlflow_loggers(loggers):
        log_summary(tracked, best, int(row["step"]))
    for logger in _wandb_loggers(loggers):
        enqueue_call(logger, partial(_update_summary, logger, best))


def _update_summary(logger: WandbLogger, values: Mapping[str, float]) -> None:
    logger.experiment.summary.update(values)


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """End the W&B or MLflow run, so that another one can begin in the same process."""
    for logger in _wandb_loggers(loggers):
        finish(logger)
    for tracked in _mlflow_loggers(loggers):
        finish_mlflow(tracked)


def wandb_step(loggers: Sequence[Logger]) -> int:
    """The internal counter of W&B; 0 without a W&B run, or where it has failed."""
    for logger in _wandb_loggers(loggers):
        return int(answer_of(logger, lambda run: run.step) or 0)
    return 0


def _mlflow_loggers(loggers: Sequence[Any]) -> list[MLFlowLogger]:
    return [logger for logger in loggers if is_lightnings(logger, "MLFlowLogger")]


def _wandb_loggers(loggers: Sequence[Any]) -> list[WandbLogger]:
    return [logger for logger in loggers if is_lightnings(logger, "WandbLogger")]
