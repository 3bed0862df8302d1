"""A W&B run that asks no question, hardly delays a training and never stops it."""

from __future__ import annotations

import atexit
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from signal import SIGKILL
from types import SimpleNamespace
from typing import Any, Literal
from uuid import uuid4

from pytorch_lightning.loggers import WandbLogger

from camtrain.errors import first_line
from camtrain.files import write_text
from camtrain.training.run.folder import RUN_ID
from camtrain.training.run.wandb_options import WandbOptions
from camtrain.training.run.worker import (
    NeverStopping,
    T,
    Worker,
    errors_as_warnings,
    failed,
    in_time,
)

LONGEST_START = 10  # seconds; to give up and begin offline takes up to 10 more, 20 are allowed
LONGEST_FINISH = 60  # seconds for logging what is left, and then for uploading it
LONGEST_ANSWER = 5  # seconds for what its service on this machine knows, and for ending the service
_LOGGED_SINCE = 1000  # rows, at most, that a killed run has given to W&B since its last checkpoint
_DATA_DIR = "WANDB_DATA_DIR"
# The text of an error about lines of the history or files; other errors, such as of a GPU that is
# not watched, lose nothing.
_GIVEN_UP = re.compile(
    r'"level":"ERROR[^"]*","msg":"((?:filestream: fatal|runfiles:|file transfer:)[^"\\\n]*)'
)
# Values of the variable that the user has not chosen: unset, or set for an earlier run of this
# process.
_data_dirs: set[str | None] = {None}


class NeverStoppingWandbLogger(NeverStopping, WandbLogger):
    """Lightning's logger of a W&B run; a training neither waits for it nor stops when it fails.

    W&B waits for its server to log a table online, and for its service to log anything, so a thread
    does that.
    """

    service = "W&B"
    register: str | None = None  # the collection that gets the best network

    def advice(self) -> str:
        """How to upload what reached the files of a failed run."""
        return f"what reached its files can be uploaded with: {command_to_upload(self)}"


def finish(logger: WandbLogger) -> None:
    """End a run: in a minute log what is left, in another one upload it, and then give up."""
    worker = getattr(logger, "worker", None)
    with errors_as_warnings(logger):
        if worker is not None and not worker.finish(LONGEST_FINISH):
            raise TimeoutError(f"not everything was logged within {LONGEST_FINISH} seconds")
        in_time(logger.experiment.finish, LONGEST_FINISH + LONGEST_ANSWER)
        if not logger.experiment.offline:
            _check_upload(Path(logger.experiment.dir).parent)


def _check_upload(folder: Path) -> None:
    """Raise ConnectionError if W&B's service has given up a part; only its log file says so."""
    log = folder / "logs" / "debug-internal.log"
    if log.is_file() and (given_up := _GIVEN_UP.search(log.read_text(errors="replace"))):
        raise ConnectionError(f"the server has not taken everything, {given_up[1]}")


def answer_of(logger: WandbLogger, question: Callable[[Any], T]) -> T | None:
    """What W&B's service knows of a run; None if it does not say so, now or before."""
    with errors_as_warnings(logger):
        if logger not in failed:  # else every question would wait
            return in_time(lambda: question(logger.experiment), LONGEST_ANSWER)
    return None


def start_wandb(
    folder: Path,
    project: str,
    *,
    name: str | None = None,
    is_new: bool = True,
    step: int = 0,
    options: WandbOptions | None = None,
) -> NeverStoppingWandbLogger | None:
    """Start a W&B run: online with credentials and a network, else offline; None if both fail.

    The run's id is stored in ``wandb/run_id``. There is no run either where the package is missing,
    and after the command ``wandb disabled``.

    Args:
        folder: Folder of the run.
        project: The W&B project.
        name: Name of the W&B run; None: that of W&B's environment, else of the folder.
        is_new: Whether the run does not continue an earlier one.
        step: W&B's internal counter when the checkpoint was written that is continued.
        options: What the run says of itself.
    """
    try:
        import wandb
    except Exception as error:  # not installed, or packages that do not fit together
        print(
            f"W&B cannot be imported, so nothing is logged to it ({first_line(error)}); run "
            "`pip install wandb`, or choose another logger."
        )
        return None
    os.environ.setdefault("WANDB_SILENT", "true")  # `print_run_files` says once where the run is
    if os.environ.get(_DATA_DIR) in _data_dirs:
        # Files that wait for their upload stay with the run, not in the user's home.
        _data_dirs.add(str(folder.absolute() / "wandb" / "data"))
        os.environ[_DATA_DIR] = str(folder.absolute() / "wandb" / "data")
    with suppress(Exception):  # W&B's telemetry delays the exit where there is no network
        from wandb.analytics.opentelemetry import opentelemetry_proxy

        opentelemetry_proxy.disable()
    run_id = _run_id(folder, is_new=is_new)
    name = name or os.environ.get("WANDB_NAME") or folder.name
    connect = partial(_connect, folder, project, name, run_id, options or WandbOptions())
    try:
        mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if mode == "disabled":
            return None
        if mode == "online" and wandb.login(prompt=False, verify=False):
            return connect("online")
    except Exception as error:  # no network, an old key, a portal that answers in its place
        print(f"W&B cannot be reached, so this run is logged offline ({first_line(error)}).")
        for end in (wandb.finish, wandb.teardown):  # its service still holds the run's id
            with suppress(Exception):
                in_time(end, LONGEST_ANSWER)
    try:
        offline = connect("offline")
        if step:
            offline.experiment.log({}, step=step + _LOGGED_SINCE)
    except Exception as error:
        print(f"W&B cannot be started, so nothing is logged to it ({error}).")
        return None
    return offline


def _connect(
    folder: Path,
    project: str,
    name: str,
    run_id: str,
    options: WandbOptions,
    mode: Literal["online", "offline"],
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
        **options.of_run(),
    )
    logger.register = options.register
    logger._wandb_init.pop("anonymous", None)  # Lightning sends it, wandb warns about it
    run: Any = logger.experiment  # starts it
    if mode == "online":
        # Before W&B logs its first table or artifact it asks its server who the user is, and before
        # each for the type of an earlier one: then, while the server does not answer, nothing would
        # reach the files of the run. The first is asked now, the second need not be known.
        run._assert_can_log_artifact = lambda artifact: None
        with suppress(Exception):
            in_time(run._public_api, LONGEST_ANSWER)
        if run._cached_public_api is None:  # no answer; it is only needed to wait for artifacts
            keep = SimpleNamespace(_set_artifact_save_handle=lambda artifact, handle: None)
            run._cached_public_api = keep
    handlers: Any = logging.getLogger("wandb").handlers
    for handler in handlers:  # a disk that is full is told once, not with each line of W&B's log
        handler.handleError = lambda record: None
    logger.start_worker()
    atexit.unregister(_end_service)
    atexit.register(_end_service, _exit_worker())  # before W&B's own function, which may hang
    return logger


@cache
def _exit_worker() -> Worker:
    """The thread that ends W&B's service; at the exit it is too late to start one."""
    worker = Worker()
    worker.start()
    return worker


def _end_service(worker: Worker) -> None:
    """End W&B's service; kill it, with its helper, if that takes more than a few seconds."""
    import wandb

    service = None
    with suppress(Exception):
        connection: Any = wandb.sdk.wandb_setup.singleton()._connection
        service = connection._proc._process

    def teardown() -> None:
        with suppress(Exception, SystemExit):
            wandb.teardown()

    worker.calls.put(teardown)
    if not worker.finish(LONGEST_ANSWER) and service is not None:
        with suppress(Exception):
            os.killpg(service.pid, SIGKILL)


def is_disabled() -> bool:
    """Whether a variable of the environment turns W&B off."""
    is_off = os.environ.get("WANDB_DISABLED", "").lower() in ("1", "on", "true", "yes")
    return is_off or os.environ.get("WANDB_MODE") == "disabled"


def offline_place(logger: WandbLogger) -> str:
    """Where ``wandb leet`` finds an offline run: its folder, or that of its parts; else ""."""
    folder = Path(logger.save_dir or ".") / "wandb"
    parts = list(folder.glob(f"offline-run-*-{logger.version}"))
    return str(parts[0] if len(parts) == 1 else folder) if parts else ""


def command_to_upload(logger: WandbLogger) -> str:
    """How to upload what waits for it, else ""; every offline start makes a folder."""
    folder = Path(logger.save_dir or ".") / "wandb"
    offline = sorted(folder.glob(f"offline-run-*-{logger.version}"))
    parts = [str(part) for part in offline if not any(part.glob("*.synced"))]
    run = logger._experiment
    if logger in failed and run is not None and not run.offline:
        parts = ["--include-online", *parts, str(Path(run.dir).parent)]
    return " ".join(["wandb sync", *parts]) if parts else ""


def _run_id(folder: Path, *, is_new: bool) -> str:
    """The id of the W&B run: that in the run folder, else a new one, which is stored there."""
    path = folder / RUN_ID
    if not is_new and path.is_file():
        return path.read_text().strip()
    run_id = os.environ.get("WANDB_RUN_ID") or uuid4().hex[:8]  # the agent of a sweep chooses
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, run_id)
    return run_id
