"""The loggers of a run. W&B asks no question, hardly delays a training and never stops it."""

from __future__ import annotations

import os
import threading
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal
from uuid import uuid4
from weakref import WeakSet

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from camtrain.arguments import announce
from camtrain.errors import CamtrainValueError, first_line
from camtrain.files import write_text
from camtrain.training.run.folder import RUN_ID

LoggerName = Literal["wandb", "tensorboard", "csv", "none"]

LONGEST_START = 10  # seconds; to give up and begin offline takes up to 7 more, 20 are allowed
LONGEST_FINISH = 60  # seconds for logging what is left, and then for uploading it
_LOGGED_SINCE = 1000  # rows, at most, that a killed run has given to W&B since its last checkpoint
_DATA_DIR = "WANDB_DATA_DIR"
# Values of the variable that the user has not chosen: unset, or set for an earlier run of this
# process.
_data_dirs: set[str | None] = {None}
_failed: WeakSet[WandbLogger] = WeakSet()


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


def project_or_default(project: str | None) -> str:
    """A given project of W&B; else that of its environment, else camtrain."""
    return project or os.environ.get("WANDB_PROJECT") or "camtrain"


def check_logger(kind: LoggerName) -> None:
    """Raise CamtrainValueError where the package of a logger is not installed."""
    if kind == "tensorboard" and find_spec("tensorboard") is None:
        raise CamtrainValueError(
            "logger=tensorboard needs the package tensorboard; run: pip install tensorboard"
        )


def make_loggers(
    kind: LoggerName,
    folder: Path,
    project: str,
    *,
    name: str | None = None,
    so_far: LoggedSoFar | None = None,
) -> list[Logger]:
    """Create the loggers of a run, which write into its folder.

    Args:
        kind: ``wandb``, ``tensorboard``, ``csv``, or ``none`` (``metrics.csv``, ``cams/`` and
            ``report.html`` are written anyway).
        folder: Folder of the run.
        project: The W&B project.
        name: Name of the W&B run; None: that of W&B's environment, else of the folder.
        so_far: Where a continued run goes on; None for a new one.
    """
    if kind == "tensorboard":
        purge_step = None if so_far is None else so_far.global_step
        logger = TensorBoardLogger(
            folder, name="tensorboard", version="", default_hp_metric=False, purge_step=purge_step
        )
        return [logger]
    if kind == "csv":  # each part of a continued run is a version of its own
        return [CSVLogger(folder, name="csv")]
    if kind == "wandb" and os.environ.get("WANDB_MODE") != "disabled":
        with announce("Starting W&B"):
            run = start_wandb(folder, project, so_far, name=name)
        return [] if run is None else [run]
    return []


def place_of(loggers: Sequence[Logger]) -> str | None:
    """The place of the curves, or the command that shows or uploads them; None without a logger."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            url, folders = None, _unsent_folders(logger)
            with errors_as_warnings(logger):
                url = logger.experiment.url
            upload = f"upload with: wandb sync {folders}" if folders else ""
            return "; ".join(filter(None, [url or "offline", upload]))
        if isinstance(logger, TensorBoardLogger):
            return f"see with: tensorboard --logdir {Path(logger.log_dir)}"
        if isinstance(logger, CSVLogger):
            return logger.log_dir
    return None


def upload_bundle(loggers: Sequence[Logger], bundle: Path, scores: Mapping[str, float]) -> None:
    """Add the network of the best epoch to the W&B run, if there is one, with its scores.

    It becomes a new version of the artifact ``model-RUN_ID``.
    """

    def log(logger: WandbLogger) -> None:
        import wandb

        run = logger.experiment
        artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=dict(scores))
        artifact.add_file(str(bundle))
        run.log_artifact(artifact, aliases=["best", "latest"])

    for logger in _wandb_loggers(loggers):
        enqueue_call(logger, partial(log, logger))


def summarize_best(loggers: Sequence[Logger], row: Mapping[str, float]) -> None:
    """Put the best epoch's row of ``metrics.csv`` into W&B's summary, as ``best/val/acc1``, ..."""
    for logger in _wandb_loggers(loggers):
        best = {f"best/{name}": value for name, value in row.items()}
        enqueue_call(logger, partial(_update_summary, logger, best))


def _update_summary(logger: WandbLogger, values: Mapping[str, float]) -> None:
    logger.experiment.summary.update(values)


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """End the W&B run, so that another one can begin in the same process."""
    for logger in _wandb_loggers(loggers):
        worker = getattr(logger, "_worker", None)
        with errors_as_warnings(logger):
            if worker is not None and not worker.finish(LONGEST_FINISH):
                raise TimeoutError(f"not everything was logged within {LONGEST_FINISH} seconds")
            logger.experiment.finish()


def wandb_step(loggers: Sequence[Logger]) -> int:
    """The internal counter of W&B; 0 without a W&B run, or where it has failed."""
    for logger in _wandb_loggers(loggers):
        with errors_as_warnings(logger):
            return int(logger.experiment.step)
    return 0


def _wandb_loggers(loggers: Sequence[Logger]) -> list[WandbLogger]:
    return [logger for logger in loggers if isinstance(logger, WandbLogger)]


class NeverStoppingWandbLogger(WandbLogger):
    """Lightning's logger of a W&B run; a training neither waits for it nor stops when it fails.

    To log a table online, W&B asks its server and waits for the answer, so a thread does that.
    """

    _worker: _Worker | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scores; see the base class."""
        enqueue_call(self, partial(super().log_metrics, metrics, step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log settings; see the base class."""
        enqueue_call(self, partial(super().log_hyperparams, params))

    def start_worker(self) -> None:
        """From now on, make all calls in a thread, in order."""
        self._worker = _Worker()
        self._worker.start()


class _Worker(threading.Thread):
    """Makes calls one after another; a process can end while it waits."""

    def __init__(self) -> None:
        super().__init__(name="camtrain-wandb", daemon=True)
        self.calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()

    def run(self) -> None:
        while (call := self.calls.get()) is not None:
            call()

    def finish(self, seconds: float) -> bool:
        """Wait at most so long, and return whether all calls were made; it takes no more calls."""
        self.calls.put(None)
        self.join(seconds)
        return not self.is_alive()


def enqueue_call(logger: WandbLogger, call: Callable[[], object]) -> None:
    """Make a call that uses a W&B run, after all earlier ones: at once, or in the run's thread."""

    def call_safely() -> None:
        with errors_as_warnings(logger):
            call()

    worker = getattr(logger, "_worker", None)
    if worker is None:
        call_safely()
    else:
        worker.calls.put(call_safely)


@contextmanager
def errors_as_warnings(logger: WandbLogger) -> Iterator[None]:
    """Turn an error of W&B into a warning, once per run, so that the training continues."""
    try:
        yield
    except Exception as error:  # its service can break in any way
        if logger not in _failed:
            _failed.add(logger)
            warnings.warn(
                f"W&B failed ({type(error).__name__}: {first_line(error)}); the training goes on, "
                "and what reached its files can be uploaded with: wandb sync "
                f"{_unsent_folders(logger)}",
                stacklevel=4,
            )


def start_wandb(
    folder: Path, project: str, so_far: LoggedSoFar | None = None, *, name: str | None = None
) -> NeverStoppingWandbLogger | None:
    """Start a W&B run: online with credentials and a network, else offline; None if both fail.

    For the arguments see ``make_loggers``. The run's id is stored in ``wandb/run_id``.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")  # `print_run_files` says once where the run is
    if os.environ.get(_DATA_DIR) in _data_dirs:
        # Files that wait for their upload stay with the run, not in the user's home.
        _data_dirs.add(str(folder.absolute() / "wandb" / "data"))
        os.environ[_DATA_DIR] = str(folder.absolute() / "wandb" / "data")
    with suppress(Exception):  # W&B's telemetry delays the exit where there is no network
        from wandb.analytics.opentelemetry import opentelemetry_proxy

        opentelemetry_proxy.disable()
    run_id = _run_id(folder, is_new=so_far is None)
    name = name or os.environ.get("WANDB_NAME") or folder.name
    connect = partial(_connect, folder, project, name, run_id)
    try:
        is_online = os.environ.get("WANDB_MODE", "online") == "online"
        if is_online and wandb.login(prompt=False, verify=False):
            online = connect("online")
            online.start_worker()
            return online
    except Exception as error:  # no network, an old key, a portal that answers in its place
        print(f"W&B cannot be reached, so this run is logged offline ({first_line(error)}).")
        with suppress(Exception):
            wandb.teardown()  # its service still holds the run's id
    try:
        offline = connect("offline")
        if so_far is not None and so_far.wandb_step:
            offline.experiment.log({}, step=so_far.wandb_step + _LOGGED_SINCE)
    except Exception as error:
        print(f"W&B cannot be started, so nothing is logged to it ({error}).")
        return None
    return offline


def _connect(
    folder: Path, project: str, name: str, run_id: str, mode: Literal["online", "offline"]
) -> NeverStoppingWandbLogger:
    """A logger whose W&B run has started."""
    import wandb

    logger = NeverStoppingWandbLogger(
        name=name,
        project=project,
        save_dir=folder,
        id=run_id,
        # An offline run cannot look up earlier parts; parts with one id become one run when synced.
        resume="allow" if mode == "online" else None,
        mode=mode,
        settings=wandb.Settings(
            init_timeout=LONGEST_START,
            finish_timeout=LONGEST_FINISH,
            finish_timeout_raises=True,
        ),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning sends it, wandb warns about it
    assert logger.experiment is not None  # starts it
    return logger


def _unsent_folders(logger: WandbLogger) -> str:
    """The folders of a W&B run that wait for their upload; every offline start makes one."""
    folder = Path(logger.save_dir or ".") / "wandb"
    offline = sorted(folder.glob(f"offline-run-*-{logger.version}"))
    parts = [part for part in offline if not any(part.glob("*.synced"))]
    run = logger._experiment
    if logger in _failed and run is not None and not run.offline:
        parts.append(Path(run.dir).parent)
    return " ".join(map(str, parts))


def _run_id(folder: Path, *, is_new: bool) -> str:
    """The id of the W&B run: that in the run folder, else a new one, which is stored there."""
    path = folder / RUN_ID
    if not is_new and path.is_file():
        return path.read_text().strip()
    run_id = os.environ.get("WANDB_RUN_ID") or uuid4().hex[:8]  # the agent of a sweep chooses
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, run_id)
    return run_id
