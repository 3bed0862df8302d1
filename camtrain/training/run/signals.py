"""Ctrl-C and SIGTERM stop a training after its next whole optimizer step."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGINT, SIGTERM, Signals, getsignal, signal
from types import FrameType
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.utilities.exceptions import SIGTERMException

from camtrain.training.run.folder import RunFolder
from camtrain.training.run.loggers import finish_loggers
from camtrain.training.run.results import print_written

_MESSAGE = b"\ncamtrain: stopping after this step; Ctrl-C again stops at once\n"


class StopSignals:
    """While entered, remembers the first signal, so that the training can stop by itself.

    A second Ctrl-C interrupts at once, and so does a signal before or after the training itself.

    Attributes:
        received: The first signal, or None.
        is_training: Whether the training looks at ``received``; if not, signals interrupt at once.
    """

    def __init__(self) -> None:
        self.received: Signals | None = None
        self.is_training = False
        self._process = 0
        self._before: dict[Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        """Listen; only the main thread can."""
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: getsignal(number) for number in (SIGINT, SIGTERM)}
            self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop listening."""
        self.is_training = False
        for number, handler in self._before.items():
            signal(number, handler)

    def listen(self) -> None:
        """Take the signals back from Lightning, whose handler talks to other processes."""
        for number in self._before:
            signal(number, self._handle)

    def stop(self) -> None:
        """End the training; the signal may have been sent to another process.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            SIGTERMException: After SIGTERM.
        """
        self.received = self.received or SIGINT
        raise SIGTERMException if self.received == SIGTERM else KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child that has not set its own handlers yet
            return
        is_first, self.received = self.received is None, self.received or Signals(number)
        if not self.is_training or (not is_first and number == SIGINT):
            self.stop()
        elif is_first and number == SIGINT:
            os.write(2, _MESSAGE)  # the signal may have interrupted a print


@contextmanager
def ending_cleanly(
    trainer: Trainer, signals: StopSignals, run: RunFolder | None = None
) -> Iterator[None]:
    """Finish the loggers when a training ends early; after a signal, also print what was written.

    Raises:
        KeyboardInterrupt: After Ctrl-C, where Lightning exits with status 1.
        SystemExit: After SIGTERM, with status 143.
    """
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        if run is not None:
            print_written(run, trainer)
        finish_loggers(trainer.loggers)
        if signals.received == SIGTERM:
            sys.exit(128 + SIGTERM)
        raise KeyboardInterrupt from None
    except Exception:
        finish_loggers(trainer.loggers)  # what has been logged is not lost
        raise
