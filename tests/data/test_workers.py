"""Workers of a loader: how they share batches, and what ends them."""

import errno
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import time
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from camtrain.data import usable_workers, workers
from camtrain.data.dataset import Sample, collate
from camtrain.data.workers import choose_sharing, holding_signals
from tests.data.test_loading import loader_of

# Of each limit of open files and number of workers: the way of sharing.
LIMITS = [
    (1024, 2, "file_descriptor"),
    (1024, 64, "file_system"),
    (256, 4, "file_system"),
    (256, 0, "file_descriptor"),
    (resource.RLIM_INFINITY, 64, "file_descriptor"),
]


@pytest.mark.parametrize(("limit", "count", "strategy"), LIMITS)
def test_workers_share_as_the_limit_of_open_files_allows(
    limit: int, count: int, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ["file_descriptor"]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    monkeypatch.setattr(torch.multiprocessing, "get_sharing_strategy", lambda: chosen[-1])
    monkeypatch.setattr(torch.multiprocessing, "set_sharing_strategy", chosen.append)
    assert choose_sharing(count) == (strategy == "file_system")
    assert chosen[-1] == strategy
    assert not choose_sharing(count)  # said once


def test_a_batch_opens_few_files() -> None:
    """Before, two for each picture with a box: 1,024 in two batches of 256."""
    boxes = [torch.tensor([[0, 1, 2, n]]) for n in range(64)]
    batch = collate(
        [
            Sample(torch.ones(3, 4, 5), n, box, (8, 9), n, f"{n}.png", torch.ones(n, 2), box / 2)
            for n, box in enumerate(boxes)
        ]
    )
    before = len(os.listdir("/proc/self/fd"))
    data = ForkingPickler.dumps(batch)
    assert len(os.listdir("/proc/self/fd")) - before < 16  # two for each column
    again = pickle.loads(data)
    for column, expected in zip(again, batch, strict=True):
        assert type(column) is type(expected)
        pairs = (
            zip(column, expected, strict=True)
            if isinstance(expected, list)
            else [(column, expected)]
        )
        for value, other in pairs:
            assert torch.equal(value, other) if isinstance(other, torch.Tensor) else value == other


def test_a_worker_that_cannot_hand_over_ends() -> None:
    """Before, the loader waited for ever."""
    loader = loader_of(num_workers=1, collate_fn=lambda keys: open(os.devnull))  # noqa: SIM115
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        next(iter(loader))


@pytest.mark.parametrize(("megabytes", "is_piped"), [(0, True), (64, True), (200, False)])
def test_small_shared_memory_costs_no_batch(
    megabytes: int,
    is_piped: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two workers prepare two batches each, and one is in use: 5 x 20 MB."""
    size = SimpleNamespace(f_blocks=10**6, f_bavail=megabytes * 1000, f_frsize=1000)
    monkeypatch.setattr(os, "statvfs", lambda path: size)
    workers._announce_pipes.cache_clear()
    loader = loader_of(num_workers=2, collate_fn=lambda keys: torch.full((2, 2_500_000), len(keys)))
    batches = list(loader)
    assert [batch.unique().tolist() for batch in batches] == [[3], [3], [3], [1]]
    assert capsys.readouterr().out.count("/dev/shm is too small") == is_piped  # said once


def test_without_locks_there_are_no_workers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where ``/dev/shm`` is read-only or missing; before, a traceback."""
    assert usable_workers(2) == 2
    error = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(torch.multiprocessing, "Lock", Mock(side_effect=error))
    assert usable_workers(0) == usable_workers(2) == usable_workers(2) == 0
    assert capsys.readouterr().out.count("without workers") == 1


def test_a_worker_obeys_its_parent_alone() -> None:
    """As batch systems and systemd do: SIGTERM to every process of the job."""
    loader, others = loader_of(num_workers=2, batch_size=1), set(loader_workers())
    batches = iter(loader)
    first = next(batches)
    children = [worker.pid for worker in loader_workers() if worker not in others]
    assert len(children) == 2
    subprocess.run(["kill", "-TERM", *map(str, children)], check=True)
    assert len([first, *batches]) == 10
    batches = iter(loader)
    next(batches)
    for worker in set(loader_workers()) - others:
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0


def loader_workers() -> list[multiprocessing.process.BaseProcess]:
    return [child for child in multiprocessing.active_children() if child.daemon]


def test_signals_wait_until_workers_have_started() -> None:
    received: list[int] = []
    handler = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with holding_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            assert not received
        for _ in range(100):  # another thread may take it, and tell this one
            time.sleep(0.1 * (not received))
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, handler)
