"""Ctrl-C and SIGTERM stop a training after its next whole optimizer step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from pytorch_lightning.utilities.exceptions import SIGTERMException

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MESSAGE = b"\ncamtrain: stopping after this step; Ctrl-C again stops at once\n"


class StopSignals:
    """While entered, remembers the first signal, so that the training can stop by itself.

    A second Ctrl-C interrupts at once, and so does a signal before or after the training itself.

    Attributes:
        received: The first signal, or None.
        is_training: Whether the training looks at ``received``; without, signals interrupt at once.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.is_training = False
        self._process = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        """Listen; only the main thread can."""
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        """Listen no longer."""
        self.is_training = False
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals back from Lightning, whose handler talks to other processes."""
        if self._before:
            for number in _SIGNALS:
                signal.signal(number, self._handle)

    def stop(self) -> None:
        """End the training; the signal may have been sent to another process.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            SIGTERMException: After SIGTERM.
        """
        self.received = self.received or signal.SIGINT
        self._interrupt(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a child between its fork and its own handlers
            return
        is_first, self.received = self.received is None, self.received or signal.Signals(number)
        if not self.is_training or (not is_first and number == signal.SIGINT):
            self._interrupt(self.received)
        elif is_first and number == signal.SIGINT:
            os.write(2, _MESSAGE)  # print may itself be what is interrupted

    def _interrupt(self, number: signal.Signals) -> None:
        raise SIGTERMException if number == signal.SIGTERM else KeyboardInterrupt
