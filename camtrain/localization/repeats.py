"""Which samples a distributed sampler repeats, so that metrics can leave them out."""

from __future__ import annotations

import torch
from torch import Tensor


def is_repeat(first: int, batch_size: int, *, rank: int, world_size: int, length: int) -> Tensor:
    """Which samples of a process' batch are repeats, padding of torch's ``DistributedSampler``.

    The sampler deals a list of the data set's indices, shuffled or not, to the processes in turn:
    the j-th sample of process r stands at place ``j * world_size + r`` of the list. To give every
    process as many samples, the list is continued with repeats of its beginning: those are the
    places from ``length`` on. Without them every sample is counted once, whatever the number of
    processes. (A sampler with ``drop_last=True`` repeats nothing.)

    Args:
        first: How many samples this process was given before this batch.
        batch_size: Samples in this batch.
        rank: This process, in [0, world_size).
        world_size: The number of processes.
        length: Samples in the data set.

    Returns:
        (batch_size,) bool.

    Example:
        Five samples, two processes: the second process is given samples 1, 3, and 0 again.

        >>> is_repeat(0, 3, rank=1, world_size=2, length=5)
        tensor([False, False,  True])
    """
    return torch.arange(first, first + batch_size) * world_size + rank >= length
