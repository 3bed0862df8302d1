"""A random order that reads one shard after the other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BUFFER = 8  # shards that are mixed with each other


def shuffled_by_shard(shard_of: Tensor, generator: torch.Generator) -> Tensor:
    """All samples in a random order in which few shards are needed at a time.

    The shards are shuffled, and the samples of 8 shards after each other are shuffled together.

    Args:
        shard_of: (N,) int64, the shard of each sample.
        generator: Where the randomness comes from.

    Returns:
        (N,) int64, every sample once.

    Example:
        >>> order = shuffled_by_shard(torch.arange(6) // 2, torch.Generator().manual_seed(0))
        >>> sorted(order.tolist())
        [0, 1, 2, 3, 4, 5]
    """
    shards, places = np.unique(shard_of.numpy(), return_inverse=True)
    turn = torch.randperm(len(shards), generator=generator) // _BUFFER
    order = torch.randperm(len(shard_of), generator=generator)
    return order[turn[torch.from_numpy(places)[order]].argsort(stable=True)]
