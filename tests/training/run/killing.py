"""Trainings in processes of their own, which kill themselves at a chosen place."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.by_two import PRELOADED


def run_in_child(
    args: list[str],
    kill: tuple[str | float, int] | None = None,
    signals: Sequence[signal.Signals] = (signal.SIGKILL,),
) -> int:
    """Run the command line; returns the exit status, minus the signal's number where one killed it.

    What it prints goes to ``RUNS_DIR/NAME.log``.

    Args:
        args: Of the command line.
        kill: A place of ``PLACES`` and how often it is passed before the signals come there; or
            seconds and 1.
        signals: Sent to the process with all that belong to it, as a terminal does.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    values = dict(pairwise(args))
    log = Path(values["--runs_dir"]) / f"{values['--name']}.log"
    child = context.Process(target=_run, args=(args, kill, signals, str(log)))
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def _run(
    args: list[str],
    kill: tuple[str | float, int] | None,
    signals: Sequence[signal.Signals],
    log: str,
) -> None:
    import torch

    from camtrain.cli import main

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    os.makedirs(os.path.dirname(log), exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    multiprocessing.set_start_method("fork", force=True)  # of the workers; inherited otherwise
    torch.set_num_threads(1)
    if kill is not None:
        place, count = kill
        way = after(place) if isinstance(place, float) else PLACES[place]
        way(_struck(count, signals))
    sys.exit(main(args))


def _struck(count: int, signals: Sequence[signal.Signals]) -> Callable[[], None]:
    """A function whose ``count``-th call brings the signals."""
    calls = iter(range(1, count + 1))
    own = os.getpid()

    def strike() -> None:
        if os.getpid() != own or next(calls, 0) != count:
            return
        for number in signals:
            if number == signal.SIGKILL:
                os.kill(own, number)
            workers = [str(worker.pid) for worker in multiprocessing.active_children()]
            if number != signal.SIGKILL and workers:  # not from their parent, which they obey
                subprocess.run(["kill", f"-{number.value}", *workers], check=False)
            os.killpg(0, number)

    return strike


def _before(owner: object, name: str, die: Callable[[], None], only: str = "") -> None:
    """Let ``die`` be called before a function, or only where a path among its arguments fits."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> object:
        if not only or any(isinstance(a, (str, Path)) and Path(a).name == only for a in args):
            die()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _in_start(die: Callable[[], None]) -> None:
    fit = importlib.import_module("camtrain.training.run.fit")
    _before(fit, "open_run", die)


def _in_step(die: Callable[[], None]) -> None:
    from camtrain.training.module import CAMModule

    _before(CAMModule, "training_step", die)


def _in_validation(die: Callable[[], None]) -> None:
    from camtrain.training.module import CAMModule

    _before(CAMModule, "validation_step", die)


def _in_the_teardown(die: Callable[[], None]) -> None:
    from pytorch_lightning import Trainer

    _before(Trainer, "_teardown", die)


def _in_last_validation(die: Callable[[], None]) -> None:
    from camtrain.training.module import CAMModule

    step = CAMModule.validation_step

    def wrapped(module: CAMModule, *args: Any) -> object:
        trainer: Any = module.trainer
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            die()
        return step(module, *args)

    CAMModule.validation_step = wrapped


def _within_the_checkpoint(die: Callable[[], None]) -> None:
    import torch

    save = torch.save

    def half(content: object, path: Path) -> None:
        save(content, path)
        os.truncate(path, os.path.getsize(path) // 2)
        die()
        save(content, path)

    torch.save = half


def _before_replacing(name: str) -> Callable[[Callable[[], None]], None]:
    return lambda die: _before(os, "replace", die, name)


def _before_the_bundle(die: Callable[[], None]) -> None:
    from camtrain.training.run import writer

    _before(writer, "write_bundle", die)


def _after_everything(die: Callable[[], None]) -> None:
    fit = importlib.import_module("camtrain.training.run.fit")
    _before(fit, "write_scores", die)


def after(seconds: float) -> Callable[[Callable[[], None]], None]:
    """A place in time, after everything was imported."""

    def strike_after(die: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, die)
        timer.daemon = True
        timer.start()

    return strike_after


PLACES: dict[str, Callable[[Callable[[], None]], None]] = {
    "in the start": _in_start,
    "in a step": _in_step,
    "in a validation": _in_validation,
    "in the teardown": _in_the_teardown,
    "in the last validation": _in_last_validation,
    "before the page of the end": _before_replacing("over_epochs.png"),
    "within the checkpoint": _within_the_checkpoint,
    "before last.ckpt": _before_replacing("last.ckpt"),
    "before metrics.csv": _before_replacing("metrics.csv"),
    "before best.ckpt": _before_replacing("best.ckpt"),
    "before the bundle": _before_the_bundle,
    "in a sheet": _before_replacing("epoch_001.jpg"),
    "in the test": _after_everything,
}


if __name__ == "__main__":  # place, count, arguments: for trainings of several processes
    rank, number = os.environ.get("STRUCK_RANK"), os.environ.get("STRUCK_BY", "SIGKILL")
    is_struck = rank in (None, os.environ.get("RANK"))  # where torchrun starts it, the first time
    is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if sys.argv[1] != "nowhere" and is_struck and is_first:
        PLACES[sys.argv[1]](_struck(int(sys.argv[2]), (signal.Signals[number],)))
    from camtrain.cli import main

    sys.exit(main(sys.argv[3:]))
