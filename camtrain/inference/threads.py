"""Threads that read and finish pictures beside the network, in the order of the pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def helper_threads(count: int) -> Iterator[Executor]:
    """Threads of which each computes on one core; the caller keeps the number of cores it had.

    Left to itself each would bring torch's threads for every core: they would wait for one another
    longer than they compute.

    Args:
        count: Of the threads. When left, what has not begun is dropped.
    """
    cores = torch.get_num_threads()
    started = Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # whose first call in a thread sets the number
        torch.set_num_threads(1)  # of this thread, and of those that start later
        started.wait()

    pool = ThreadPoolExecutor(count, "camtrain", initializer=start)
    try:
        for _ in range(count):
            pool.submit(int)
        started.wait()
        torch.set_num_threads(cores)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], *, ahead: int
) -> Iterator[R]:
    """``map(function, items)``, with at most ``ahead`` results computed before they are asked for.

    Args:
        pool: Where the function runs.
        function: Of one item.
        items: Taken in the caller's thread.
        ahead: At least 1.
    """
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
