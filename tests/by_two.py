"""Two processes of one training, forked from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

PRELOADED = ["camtrain.training.cli.main", "tests.by_two"]


def run_by_two(target: Callable[..., object], *args: object) -> list[str]:
    """Call a function of a module in two processes; returns what each has printed.

    They find in their environment what Lightning's own launcher would have put there, so that a
    trainer with ``devices=2`` and ``strategy="ddp"`` starts no others.

    Raises:
        AssertionError: One ended with another status than 0, or took more than four minutes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(rank) for rank in range(2)]
        children = []
        for rank, log in enumerate(logs):
            environment = {**os.environ, **rendezvous, "LOCAL_RANK": str(rank)}
            child = context.Process(target=_run, args=(environment, log, target, args))
            child.start()
            children.append(child)
        for child in children:
            child.join(240)
            child.kill()
            child.join()
        printed = [log.read_text() for log in logs]
    assert [child.exitcode for child in children] == [0, 0], "\n".join(printed)
    return printed


def _run(
    environment: dict[str, str], log: Path, target: Callable[..., object], args: tuple[object, ...]
) -> None:
    import torch
    from torch import distributed

    os.environ.update(environment)  # that of the test, not of the server's first one
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    multiprocessing.set_start_method("fork", force=True)  # of workers; inherited otherwise
    torch.set_num_threads(1)
    status = target(*args)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    sys.exit(status if isinstance(status, int) else 0)
