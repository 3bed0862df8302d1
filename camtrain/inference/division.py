"""The pictures of a prediction, divided among the processes that ``torchrun`` has started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Division:
    """Which of all inputs this process predicts.

    Attributes:
        rank: The number of this process, from 0.
        processes: How many there are.
        block: Inputs that the processes take in turn: the first ``block`` inputs are those of
            process 0, the next ones those of process 1, and so on.
    """

    rank: int = 0
    processes: int = 1
    block: int = 1

    def pick(self, inputs: Iterable[T], *, first: int = 0) -> Iterator[T]:
        """The inputs of this process, without the ``first`` ones of them.

        Example:
            >>> list(Division(rank=1, processes=2, block=2).pick("abcdefg"))
            ['c', 'd', 'g']
        """
        turn = self.block * self.processes
        start = self.rank * self.block
        picked = (
            item
            for number, item in enumerate(inputs)
            if start <= number % turn < start + self.block
        )
        return islice(picked, first, None)

    def number(self, place: int) -> int:
        """The number among all inputs of the input at ``place`` among those of this process.

        Example:
            >>> Division(rank=1, processes=2, block=2).number(2)
            6
        """
        turns, remainder = divmod(place, self.block)
        return (turns * self.processes + self.rank) * self.block + remainder

    def count(self, total: int) -> int:
        """How many of ``total`` inputs are those of this process.

        Example:
            >>> [Division(rank, processes=2, block=2).count(7) for rank in (0, 1)]
            [4, 3]
        """
        turns, remainder = divmod(total, self.block * self.processes)
        return turns * self.block + min(max(remainder - self.rank * self.block, 0), self.block)


@contextmanager
def torchrun_processes() -> Iterator[tuple[int, int]]:
    """The number of this process and of all those of ``torchrun``; (0, 1) where it started none.

    Meanwhile ``wait_for_all`` and ``share`` work. A CUDA device without a number is that of the
    process on its machine.
    """
    if not distributed.is_torchelastic_launched():
        yield 0, 1
        return
    # A process may be ahead of another by as much as the other's pictures take longer.
    distributed.init_process_group("gloo", timeout=timedelta(days=365))
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        yield distributed.get_rank(), distributed.get_world_size()
    finally:
        distributed.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if distributed.is_initialized():
        distributed.barrier()


def share(value: Any) -> list[Any]:  # noqa: ANN401
    """The values of all processes, in order of rank."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
