"""Processes that prepare batches: whether they can start, how they hand over, how they end."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.data import get_worker_info

from camtrain.errors import CamtrainValueError, one_line

_LOST_WORKER = re.compile(r"DataLoader worker|Communication with the\s+workers")


def choose_sharing(workers: int) -> bool:
    """Let workers share batches by file names where too few files may be open to share by those.

    Returns:
        Whether that has changed anything.
    """
    sharing: Any = torch.multiprocessing
    if not workers or sharing.get_sharing_strategy() != "file_descriptor":
        return False
    import resource  # not on Windows, which shares otherwise

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # For each worker of two loaders: pipes, and the tensors of two batches, sent and received.
    is_enough = limit == resource.RLIM_INFINITY or limit >= 256 + 2 * 32 * workers
    if not is_enough:
        sharing.set_sharing_strategy("file_system")
    return not is_enough


_SHARED_MEMORY = "/dev/shm"


def _fits_shared_memory(nbytes: int, workers: int) -> bool:
    """Whether workers may hand over tensors of so many bytes in shared memory.

    It must hold those of all workers, two of each, and the one in use; a container gives 64 MB.
    """
    if not os.path.isdir(_SHARED_MEMORY):
        return True
    status = os.statvfs(_SHARED_MEMORY)
    needed = nbytes * (2 * workers + 1) * int(os.environ.get("WORLD_SIZE", 1))
    return not status.f_blocks or needed <= status.f_bavail * status.f_frsize  # 0: no limit


def _reduce_tensor(tensor: Tensor) -> tuple[Any, ...]:
    """How a worker hands over a tensor: in shared memory, or where that is too small by a pipe."""
    worker = get_worker_info()
    if worker is None or _fits_shared_memory(tensor.nbytes, worker.num_workers):
        return reduce_tensor(tensor)  # type: ignore[no-any-return,no-untyped-call]
    return _tensor_of_pipe, (tensor.numpy(force=True),)


def _tensor_of_pipe(array: NDArray[Any]) -> Tensor:
    _announce_pipes()
    return torch.from_numpy(array)


@cache
def _announce_pipes() -> None:
    print(
        f"{_SHARED_MEMORY} is too small for these batches, so the workers send them through pipes, "
        "which takes longer (docker run --shm-size 2g gives more)."
    )


def usable_workers(workers: int) -> int:
    """The number of workers; 0 where this machine cannot start any, which one line says."""
    try:
        if workers:
            torch.multiprocessing.Lock()
    except OSError as error:
        _announce_no_workers(one_line(error))
        return 0
    return workers


@cache
def _announce_no_workers(reason: str) -> None:
    print(f"Batches are prepared without workers, which cannot share locks here ({reason}).")


def lost_worker(error: Exception) -> CamtrainValueError | None:
    """The sentence for an error of torch that says that a worker has died; else None."""
    if not isinstance(error, RuntimeError) or not _LOST_WORKER.search(str(error)):
        return None
    return CamtrainValueError(
        f"A process that prepares batches has ended ({one_line(error, with_type=False)}); the "
        "memory, /dev/shm or the number of open files may be too small: give fewer workers, or "
        'data.workers=0. A training that has a checkpoint goes on with ckpt_path="last".'
    )


def _end_worker(error: Exception, batch: object) -> None:
    """End a worker that cannot hand over a batch, which the training would wait for."""
    print(f"camtrain: a worker cannot hand over a batch ({one_line(error)})", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def holding_signals() -> Iterator[None]:
    """Let signals to stop wait until workers have started: half a loader cannot be torn down.

    The workers begin with them blocked.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = {number: signal.signal(number, remember) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        for name, handler in handlers.items():
            signal.signal(name, signal.SIG_DFL if handler is None else handler)
        for number in received:  # by a thread in which it is not blocked
            os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _obey_parent() -> None:
    """End this worker when its parent sends SIGTERM, and ignore that of others."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def leave_signals_to_parent(worker: int) -> None:
    """A ``worker_init_fn``: signals to stop do not end the worker, unless its parent sends SIGTERM.

    A worker that dies of them would end the training before it could write its checkpoint. If it
    cannot hand over a batch it ends, so that the training does too.
    """
    info = get_worker_info()
    choose_sharing(0 if info is None else info.num_workers)
    ForkingPickler.register(Tensor, _reduce_tensor)  # of this process, as the next line
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
