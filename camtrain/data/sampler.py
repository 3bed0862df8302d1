"""The order of an epoch: shuffled, balanced over the classes, shared by processes, continued."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from camtrain.data.seeds import seed_of
from camtrain.data.shards.order import shuffled_by_shard
from camtrain.errors import CamtrainTypeError, CamtrainValueError

SamplerName = Literal["shuffle", "balanced"]


class EpochSampler(DistributedSampler[tuple[int, ...]]):
    """Yields ``(epoch, index)``; the order depends on seed and epoch alone.

    A balanced epoch may draw an item several times. It yields ``(epoch, index, draw)`` with the
    number of the draw, so that an item is augmented in another way each time.

    Several processes share an epoch as with torch's ``DistributedSampler``: process r of n takes
    the items r, r + n, ..., and the first items are repeated at the end to give all as many. It
    inherits from that class, since Lightning leaves such samplers as they are.

    Args:
        length: Number of items.
        shuffle: A random order in every epoch, or 0, 1, 2, ...
        seed: Of the order.
        labels: The class of every item: as many items as there are, drawn with replacement, every
            class that occurs equally likely. None: every item once.
        groups: (N,), items that had better be asked for one after the other, such as those of a
            shard; None: any order is as good.
        num_replicas: Number of processes.
        rank: Of this process.

    Raises:
        CamtrainTypeError: An item to be balanced has no or several classes.
        CamtrainValueError: Not as many labels as items.

    Attributes:
        epoch: Of the next iteration.
        start: Items of this process that the next iteration leaves out, and only that one.

    Example:
        >>> sampler = EpochSampler(5, shuffle=False, seed=0, num_replicas=2, rank=1)
        >>> list(sampler)
        [(0, 1), (0, 3), (0, 0)]
    """

    def __init__(
        self,
        length: int,
        *,
        shuffle: bool,
        seed: int,
        labels: Sequence[int] | Tensor | None = None,
        groups: Tensor | None = None,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        """Start at epoch 0."""
        super().__init__(range(length), num_replicas, rank, shuffle, seed)  # type: ignore[arg-type]  # only its length counts
        self.length = length
        self.groups = groups
        self.start = 0
        self._classes = None if labels is None else _places_by_class(labels, length)

    @property
    def is_balanced(self) -> bool:
        """Whether every class is equally likely."""
        return self._classes is not None

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """The keys of one epoch."""
        start, self.start = self.start, 0
        return self._keys(self.epoch, start)

    def _keys(self, epoch: int, start: int) -> Iterator[tuple[int, ...]]:
        order = self._order(epoch)
        for place in range(start, self.num_samples):
            draw = (self.rank + place * self.num_replicas) % self.length
            index = int(order[draw])
            yield (epoch, index) if self._classes is None else (epoch, index, draw)

    def _order(self, epoch: int) -> Tensor:
        """The items of an epoch for all processes, (length,), int64."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        if self._classes is not None:
            sizes = torch.tensor([len(places) for places in self._classes])
            classes = torch.randint(len(sizes), (self.length,), generator=generator)
            within = torch.rand(self.length, generator=generator, dtype=torch.float64)
            first = sizes.cumsum(0) - sizes
            return torch.cat(self._classes)[first[classes] + (within * sizes[classes]).long()]
        if self.shuffle and self.groups is not None:
            return shuffled_by_shard(self.groups, generator)
        if self.shuffle:
            return torch.randperm(self.length, generator=generator)
        return torch.arange(self.length)


def _places_by_class(labels: Sequence[int] | Tensor, length: int) -> list[Tensor]:
    if len(labels) != length:
        raise CamtrainValueError(
            f"labels must be as many as items, {length}, got {len(labels)}; give one per item."
        )
    if not all(isinstance(label, int) for label in labels):
        other = next(label for label in labels if not isinstance(label, int))
        raise CamtrainTypeError(
            "A balanced order needs exactly one class per picture, a number, got "
            f"{type(other).__name__}; choose sampler shuffle for multi-label pictures."
        )
    found = torch.tensor(labels)
    return [(found == label).nonzero()[:, 0] for label in sorted(set(labels))]
