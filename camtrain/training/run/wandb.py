"""A Weights & Biases run that asks no question, hardly delays a training and never stops it."""

from __future__ import annotations

import os
import threading
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal
from uuid import uuid4
from weakref import WeakSet

from pytorch_lightning.loggers import WandbLogger

from camtrain.errors import first_line
from camtrain.files import write_text

LONGEST_START = 10  # seconds; to give up and begin offline takes up to 7 more, 20 are allowed
LONGEST_FINISH = 60  # seconds that the rest may take to be logged, and then to be uploaded
_LOGGED_SINCE = 1000  # rows, at most, that a killed run has given to W&B since its last checkpoint
_DATA_DIR = "WANDB_DATA_DIR"
# Values of the variable that are not the user's: unset, or set for an earlier run of this process.
_data_dirs: set[str | None] = {None}
_failed: WeakSet[WandbLogger] = WeakSet()


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

    def work(self) -> None:
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
        """Whether all calls were made within some seconds; further calls are not allowed."""
        self.calls.put(None)
        self.join(seconds)
        return not self.is_alive()


def enqueue_call(logger: WandbLogger, call: Callable[[], object]) -> None:
    """Make a call that uses a W&B run, after all earlier ones: at once, or in the run's thread."""

    def guarded() -> None:
        with errors_as_warnings(logger):
            call()

    worker = getattr(logger, "_worker", None)
    if worker is None:
        guarded()
    else:
        worker.calls.put(guarded)


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
                f"and what reached its files can be uploaded with: wandb sync {_parts(logger)}",
                stacklevel=4,
            )


def start_run(
    folder: Path, project: str, *, continues: bool, step: int = 0
) -> NeverStoppingWandbLogger | None:
    """Start a run: online with credentials and a network, offline otherwise; None if both fail.

    Args:
        folder: Of the training; its name is the run's name, and its ``wandb/run_id`` the run's id.
        project: The W&B project.
        continues: Whether the run has begun before.
        step: Its internal counter then, which an offline run cannot look up.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")  # the summary says where it is, once
    if os.environ.get(_DATA_DIR) in _data_dirs:
        # Files that wait for their upload stay with the run, not in the user's home.
        _data_dirs.add(str(folder.absolute() / "wandb" / "data"))
        os.environ[_DATA_DIR] = str(folder.absolute() / "wandb" / "data")
    with suppress(Exception):  # W&B's telemetry delays the exit where there is no network
        from wandb.analytics.opentelemetry import opentelemetry_proxy

        opentelemetry_proxy.disable()
    run_id = _run_id(folder, is_new=not continues)
    is_online = os.environ.get("WANDB_MODE", "online") == "online"
    try:
        if is_online and wandb.login(prompt=False, verify=False):
            online = _start_logger(folder, project, run_id, "online")
            online.work()
            return online
    except Exception as error:  # no network, an old key, a portal that answers in its place
        print(f"W&B cannot be reached, so this run is logged offline ({first_line(error)}).")
        with suppress(Exception):
            wandb.teardown()  # its service still holds the run's id
    try:
        offline = _start_logger(folder, project, run_id, "offline")
        if continues and step:
            offline.experiment.log({}, step=step + _LOGGED_SINCE)
    except Exception as error:
        print(f"W&B cannot be started, so nothing is logged to it ({error}).")
        return None
    return offline


def _start_logger(
    folder: Path, project: str, run_id: str, mode: Literal["online", "offline"]
) -> NeverStoppingWandbLogger:
    import wandb

    logger = NeverStoppingWandbLogger(
        name=folder.name,
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


def place_of(logger: WandbLogger) -> str:
    """The URL of the run, if it has one, and the command that uploads what was logged offline."""
    url, parts = None, _parts(logger)
    with errors_as_warnings(logger):
        url = logger.experiment.url
    upload = f"upload with: wandb sync {parts}" if parts else ""
    return "; ".join(filter(None, [url or "offline", upload]))


def log_bundle(logger: WandbLogger, bundle: Path, scores: Mapping[str, float]) -> None:
    """Add the trained network to the run, as a new version of the artifact ``model-RUN_ID``.

    Args:
        logger: Of the run.
        bundle: The file of the best epoch.
        scores: Its scores, by logged name.
    """

    def log() -> None:
        import wandb

        run = logger.experiment
        artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=dict(scores))
        artifact.add_file(str(bundle))
        run.log_artifact(artifact, aliases=["best", "latest"])

    enqueue_call(logger, log)


def finish(logger: WandbLogger) -> None:
    """End the run, so that another one can begin in the same process."""
    worker = getattr(logger, "_worker", None)
    with errors_as_warnings(logger):
        if worker is not None and not worker.finish(LONGEST_FINISH):
            raise TimeoutError(f"not everything was logged within {LONGEST_FINISH} seconds")
        logger.experiment.finish()


def step_of(logger: WandbLogger) -> int:
    """The internal counter of the run; 0 where it has failed."""
    with errors_as_warnings(logger):
        return int(logger.experiment.step)
    return 0


def _parts(logger: WandbLogger) -> str:
    """The folders of the run that have not been uploaded; every offline start makes one."""
    folder = Path(logger.save_dir or ".") / "wandb"
    offline = sorted(folder.glob(f"offline-run-*-{logger.version}"))
    parts = [part for part in offline if not any(part.glob("*.synced"))]
    run = logger._experiment
    if logger in _failed and run is not None and not run.offline:
        parts.append(Path(run.dir).parent)
    return " ".join(map(str, parts))


def _run_id(folder: Path, *, is_new: bool) -> str:
    """The id of the W&B run, which is stored in the run folder."""
    path = folder / "wandb" / "run_id"
    if not is_new and path.is_file():
        return path.read_text().strip()
    run_id = os.environ.get("WANDB_RUN_ID") or uuid4().hex[:8]  # the agent of a sweep chooses
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, run_id)
    return run_id
