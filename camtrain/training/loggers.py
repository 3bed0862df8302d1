"""The loggers of a run by name; W&B without an account, without a prompt, without a stop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from camtrain.errors import CamtrainValueError
from camtrain.training.files import write_text

LoggerName = Literal["wandb", "tensorboard", "none"]

_LONGEST_START = 20  # seconds that W&B may take to start a run
_LOGGED_SINCE = 1000  # rows, at most, that a killed run has given to W&B since its last checkpoint


@dataclass(frozen=True)
class LoggedSoFar:
    """Where the loggers of a continued run go on.

    Attributes:
        global_step: Of TensorBoard; what a killed run has logged from there on is hidden.
        wandb_step: The internal counter of W&B, which an offline run cannot look up.
    """

    global_step: int = 0
    wandb_step: int = 0

    @classmethod
    def of(cls, checkpoint: dict[str, Any]) -> LoggedSoFar:
        """What had been logged when a checkpoint was written."""
        own = checkpoint.get("run", {})
        # Scores are logged under the last step's number, counted from 0, and so within a validation
        # under a number that the checkpoint has passed.
        step = int(checkpoint["global_step"]) - bool(own.get("is_validating"))
        return cls(max(0, step), int(own.get("wandb_step", 0)))


def make_loggers(
    kind: LoggerName, folder: Path, project: str, *, so_far: LoggedSoFar | None = None
) -> list[Logger]:
    """The loggers of a run, which write into its folder.

    Args:
        kind: ``wandb``, ``tensorboard``, or ``none`` (``metrics.csv`` and ``cams/`` are written
            anyway).
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
        made = TensorBoardLogger(
            folder, name="tensorboard", version="", default_hp_metric=False, purge_step=purge_step
        )
        return [made]
    if kind == "wandb" and os.environ.get("WANDB_MODE") != "disabled":
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_SILENT", "true")  # the summary says where it is, once
        return [_wandb_logger(folder, project, so_far)]
    return []


def wandb_step(loggers: Sequence[Logger]) -> int:
    """The internal counter of W&B; 0 without it."""
    runs = [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]
    # In processes other than the first, Lightning gives a stand-in.
    steps = [run.step for run in runs if isinstance(getattr(run, "step", None), int)]
    return steps[0] if steps else 0


def sync_hint(loggers: Sequence[Logger]) -> str | None:
    """Where the curves are to be seen, or how to upload them; None without a logger."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            # A run that was continued offline has a folder for each part.
            parts = sorted(Path(run.dir).parent.parent.glob(f"offline-run-*-{run.id}"))
            paths = " ".join(str(part) for part in parts)
            return run.url or f"offline; upload with: wandb sync {paths}"
        if isinstance(logger, TensorBoardLogger):
            return f"see with: tensorboard --logdir {Path(logger.log_dir)}"
    return None


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """End the W&B run, so that another one can begin in the same process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _wandb_logger(folder: Path, project: str, so_far: LoggedSoFar | None) -> WandbLogger:
    """A started W&B run: online with credentials and a network, offline otherwise."""
    import wandb

    number = _wandb_id(folder, is_new=so_far is None)

    def logger(mode: Literal["online", "offline"]) -> WandbLogger:
        settings = wandb.Settings(init_timeout=_LONGEST_START)
        made = WandbLogger(
            name=folder.name,
            project=project,
            save_dir=folder,
            id=number,
            # An offline run cannot look the run up; the same id makes the parts one when uploaded.
            resume="allow" if mode == "online" else None,
            mode=mode,
            settings=settings,
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
            wandb.teardown()  # its service still holds the run's id
    offline = logger("offline")
    if so_far is not None and so_far.wandb_step:
        offline.experiment.log({}, step=so_far.wandb_step + _LOGGED_SINCE)
    return offline


def _wandb_id(folder: Path, *, is_new: bool) -> str:
    """The id of the W&B run, which is kept with the run."""
    path = folder / "wandb" / "run_id"
    if not is_new and path.is_file():
        return path.read_text().strip()
    number = uuid4().hex[:8]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, number)
    return number
