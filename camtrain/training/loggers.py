"""The loggers of a run by name; W&B without an account, without a prompt, without a stop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from camtrain.errors import CamtrainValueError

LoggerName = Literal["wandb", "tensorboard", "none"]

_LONGEST_START = 20  # seconds that W&B may take to start a run


def make_loggers(kind: LoggerName, folder: Path, project: str) -> list[Logger]:
    """The loggers of a run, which write into its folder.

    Args:
        kind: ``wandb``, ``tensorboard``, or ``none`` (``metrics.csv`` and ``cams/`` are written
            anyway).
        folder: Of the run; its name is the run's name.
        project: The W&B project.

    Raises:
        CamtrainValueError: TensorBoard is not installed.
    """
    if kind == "tensorboard":
        if find_spec("tensorboard") is None:
            raise CamtrainValueError(
                "--logger tensorboard needs the package tensorboard; run: pip install tensorboard"
            )
        return [TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)]
    if kind == "wandb" and os.environ.get("WANDB_MODE") != "disabled":
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_SILENT", "true")  # the summary says where it is, once
        return [_wandb_logger(folder, project)]
    return []


def sync_hint(loggers: Sequence[Logger]) -> str | None:
    """Where the curves are to be seen, or how to upload them; None without a logger."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            return run.url or f"offline; upload with: wandb sync {Path(run.dir).parent}"
        if isinstance(logger, TensorBoardLogger):
            return f"see with: tensorboard --logdir {Path(logger.log_dir)}"
    return None


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """End the W&B run, so that another one can begin in the same process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _wandb_logger(folder: Path, project: str) -> WandbLogger:
    """A started W&B run: online with credentials and a network, offline otherwise."""
    import wandb

    def logger(mode: Literal["online", "offline"]) -> WandbLogger:
        settings = wandb.Settings(init_timeout=_LONGEST_START)
        made = WandbLogger(
            name=folder.name, project=project, save_dir=folder, mode=mode, settings=settings
        )
        made._wandb_init.pop("anonymous", None)  # Lightning sends it, wandb warns about it
        return made

    is_asked = os.environ.get("WANDB_MODE", "online") == "online"
    if is_asked and wandb.login(prompt=False, verify=False):
        online = logger("online")
        try:
            assert online.experiment is not None  # starts the run
            return online
        except wandb.errors.Error as error:
            reason = str(error).splitlines()[0]
            print(f"W&B cannot be reached, so this run is logged offline ({reason}).")
    return logger("offline")
