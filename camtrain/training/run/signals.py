"""Ctrl-C, SIGTERM and SIGUSR1 stop a training after its next whole optimizer step."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGINT, SIGTERM, Signals, getsignal, signal
from types import FrameType
from typing import Any

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.exceptions import SIGTERMException

from camtrain.data.workers import lost_worker
from camtrain.errors import CamtrainError, CamtrainOSError, CamtrainValueError, refused_by_system
from camtrain.training.run.folder import RunFolder
from camtrain.training.run.loggers import finish_loggers
from camtrain.training.run.machine import out_of_memory
from camtrain.training.run.results import print_run_files
from camtrain.training.run.trainer import lightnings_refusal

# Batch systems send it before they end a job (sbatch --signal=USR1@120); Windows has none.
SIGUSR1 = getattr(Signals, "SIGUSR1", SIGTERM)
_ENDS = (SIGTERM, SIGUSR1)
_MESSAGE = b"\ncamtrain: stopping after this step; Ctrl-C again stops at once\n"


class StopSignals:
    """A context manager that remembers the first signal, so that the training can stop.

    A second Ctrl-C interrupts at once, and so does the first signal before or after the training.

    Attributes:
        received: The first signal, or None.
        is_training: Whether the training checks ``received``; if not, signals interrupt at once.
    """

    def __init__(self) -> None:
        self.received: Signals | None = None
        self.is_training = False
        self._process_id = 0
        self._previous_handlers: dict[Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        """Install the handlers, if this is the main thread; no other thread can."""
        self._process_id = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: getsignal(number) for number in (SIGINT, *_ENDS)}
            self.install_handlers()
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the previous handlers."""
        self.is_training = False
        for number, handler in self._previous_handlers.items():
            signal(number, handler)

    def install_handlers(self) -> None:
        """Install the handlers, again after Lightning has installed its own.

        Lightning's handler of SIGTERM may wait for the other processes, and that of SIGUSR1 saves
        in the middle of a step.
        """
        for number in self._previous_handlers:
            signal(number, self._handle)

    def stop(self) -> None:
        """End the training by an exception.

        Raises:
            SIGTERMException: The first signal of this process was SIGTERM or SIGUSR1.
            KeyboardInterrupt: It was Ctrl-C, or only another process has received a signal.
        """
        self.received = self.received or SIGINT
        raise SIGTERMException if self.received in _ENDS else KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal, or interrupt at once."""
        if os.getpid() != self._process_id:  # a forked child that has not set its own handlers yet
            return
        is_first, self.received = self.received is None, self.received or Signals(number)
        if not is_first and number in _ENDS:
            return
        if not self.is_training or (not is_first and number == SIGINT):
            self.stop()
        elif is_first and number == SIGINT:
            os.write(2, _MESSAGE)  # the signal may have interrupted a print


@contextmanager
def ending_cleanly(
    trainer: Trainer, signals: StopSignals, run: RunFolder | None = None
) -> Iterator[None]:
    """Finish the loggers if the training in the context ends early.

    After a signal, also print which files of the run were written. A signal during Lightning's
    teardown ends the context; whatever error the interrupted teardown raises is no news.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; Lightning alone would exit with status 1.
        SystemExit: SIGTERM was received; the status is 143. Or SIGUSR1, with 138, upon which SLURM
            was asked to start the job again.
        CamtrainValueError: A worker of a loader has died, or Lightning refuses a setting; where
            nothing was trained, the folder of the run is emptied.
        CamtrainOSError: The system refuses a file, such as on a full disk.
    """
    try:
        yield
        signals.is_training = False
        if signals.received is not None:
            signals.stop()
    except BaseException as error:
        is_lightnings = isinstance(error, SystemExit) and trainer.interrupted
        is_stopped = is_lightnings or signals.received is not None
        if is_stopped and run is not None:
            print_run_files(run, trainer)
        finish_loggers(trainer.loggers)  # what has been logged is not lost
        if signals.received in _ENDS:
            if signals.received == SIGUSR1:
                _requeue(trainer)
            sys.exit(128 + int(signals.received or 0))
        if is_stopped:
            raise KeyboardInterrupt from None
        sentence = _sentence(error, run, trainer) if isinstance(error, Exception) else None
        is_refusal = isinstance(sentence or error, CamtrainValueError) and trainer.is_global_zero
        if is_refusal and run is not None and not run.checkpoints.exists():
            run.clear()  # nothing was trained
        if sentence is not None:
            raise sentence from error
        raise


def _requeue(trainer: Trainer) -> None:
    """Ask SLURM to start the job again, where Lightning's environment of SLURM would."""
    environment = trainer._accelerator_connector.cluster_environment
    is_asked = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
    if not is_asked or not trainer.is_global_zero:
        return
    array = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}"
    job = (array if "SLURM_ARRAY_JOB_ID" in os.environ else "{SLURM_JOB_ID}").format(**os.environ)
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"camtrain: SLURM does not start job {job} again ({error})", file=sys.stderr)
    else:
        print(f"SLURM starts job {job} again; with --ckpt_path auto it goes on from here.")


def _sentence(error: Exception, run: RunFolder | None, trainer: Trainer) -> CamtrainError | None:
    """The sentence for a dead worker, a refused file or setting, too little memory; else None."""
    refusal = refused_by_system(error) if isinstance(error, OSError) and error.errno else error
    if isinstance(refusal, CamtrainOSError) and run is not None and run.config.is_file():
        whole = f"{run.last} is whole, and goes on" if run.last.is_file() else "the run begins anew"
        return CamtrainOSError(f'{str(refusal).removesuffix(".")}; {whole} with ckpt_path="last".')
    if isinstance(refusal, CamtrainError) and refusal is not error:
        return refusal
    return lost_worker(error) or lightnings_refusal(error) or out_of_memory(error, trainer, run)
