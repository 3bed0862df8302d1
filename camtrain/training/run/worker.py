"""Calls to loggers, in a thread: a training neither waits for them nor stops when they fail."""

from __future__ import annotations

import threading
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar
from weakref import WeakSet

from camtrain.errors import first_line

T = TypeVar("T")

failed: WeakSet[Any] = WeakSet()


class Worker(threading.Thread):
    """Makes calls one after another; a process can end while it waits."""

    def __init__(self) -> None:
        super().__init__(name="camtrain-logger", daemon=True)
        self.calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()

    def run(self) -> None:
        """Make calls until there are no more."""
        while (call := self.calls.get()) is not None:
            call()

    def finish(self, seconds: float) -> bool:
        """Wait at most so long, and return whether all calls were made; it takes no more calls."""
        self.calls.put(None)
        self.join(seconds)
        return not self.is_alive()


class NeverStopping:
    """Makes one of Lightning's loggers one that a training does not wait for; the first base."""

    worker: Worker | None = None
    gives_up = False  # whether nothing is logged after a failure

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scores; see the base class."""
        parent: Any = super()
        enqueue_call(self, partial(parent.log_metrics, dict(metrics), step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log settings; see the base class."""
        parent: Any = super()
        enqueue_call(self, partial(parent.log_hyperparams, params))

    def start_worker(self) -> None:
        """From now on, make all calls in a thread, in order."""
        self.worker = Worker()
        self.worker.start()


def enqueue_call(logger: object, call: Callable[[], object]) -> None:
    """Make a call that uses a logger, after all earlier ones: at once, or in its thread."""

    def call_safely() -> None:
        if logger in failed and getattr(logger, "gives_up", False):
            return
        with errors_as_warnings(logger):
            call()

    worker = getattr(logger, "worker", None)
    if worker is None:
        call_safely()
    else:
        worker.calls.put(call_safely)


def in_time(call: Callable[[], T], seconds: float) -> T:
    """The result of a call that a thread makes; raises TimeoutError if it takes longer."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # W&B also raises SystemExit
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        if future.done():
            raise
        raise TimeoutError(f"no answer within {seconds} seconds") from error


@contextmanager
def errors_as_warnings(logger: object) -> Iterator[None]:
    """Turn an error of a logger into a warning, once per run, so that the training continues."""
    try:
        yield
    except Exception as error:  # a service can break in any way
        if logger not in failed:
            failed.add(logger)
            name = getattr(logger, "service", type(logger).__name__)
            advice = getattr(logger, "advice", lambda: "heatmaps are on disk and in report.html")
            warnings.warn(
                f"{name} failed ({type(error).__name__}: {first_line(error)}); the training goes "
                f"on, and {advice()}",
                stacklevel=4,
            )
