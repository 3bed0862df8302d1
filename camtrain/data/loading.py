"""The order of an epoch, and a DataLoader that can go on in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from camtrain.data.workers import choose_sharing, holding_signals, usable_workers
from camtrain.errors import CamtrainError, CamtrainTypeError, CamtrainValueError


def seed_of(*numbers: int) -> int:
    """A well mixed 64-bit seed from a few numbers, the same everywhere."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


_BUFFER = 8  # shards that are mixed with each other


def shuffled_by_shard(shard_of: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of all samples, (N,) int64, in which few shards are needed at a time.

    The shards ``shard_of``, (N,) int64, are shuffled, and the samples of 8 shards after each other
    are shuffled together.
    """
    shards, places = np.unique(shard_of.numpy(), return_inverse=True)
    turn = torch.randperm(len(shards), generator=generator) // _BUFFER
    order = torch.randperm(len(shard_of), generator=generator)
    return order[turn[torch.from_numpy(places)[order]].argsort(stable=True)]


SamplerName = Literal["shuffle", "balanced"]


class EpochSampler(DistributedSampler[tuple[int, ...]]):
    """Yields ``(epoch, index)`` in an order that depends on seed and epoch alone.

    A balanced epoch may draw an item several times. It yields ``(epoch, index, draw)`` with the
    number of the draw, so that an item is augmented in another way each time.

    Several processes share an epoch as with torch's ``DistributedSampler``, of which this is a
    subclass since Lightning leaves such samplers as they are: process r of n takes the items r,
    r + n, ..., and the first items are repeated at the end to give all as many.

    Args:
        length: Number of items.
        shuffle: A random order in every epoch, or 0, 1, 2, ...
        seed: Of the order.
        labels: The class of every item; then items are drawn with replacement, every class that
            occurs equally likely. None: every item once.
        groups: (N,), the shard of every item, so that few shards are needed at a time; or None.
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
        label = next(label for label in labels if not isinstance(label, int))
        raise CamtrainTypeError(
            "A balanced order needs exactly one class per picture, a number, got "
            f"{type(label).__name__}; choose sampler shuffle for multi-label pictures."
        )
    label_of_item = torch.tensor(labels)
    return [(label_of_item == label).nonzero()[:, 0] for label in sorted(set(labels))]


T = TypeVar("T")

_MEANING = {
    "batch_size": "batch size",
    "pictures": "number of training pictures",
    "processes": "number of processes",
    "balanced": "balanced sampler",
}


class ResumableLoader(DataLoader[T]):
    """Batches in the order of an ``EpochSampler``, with a state: how many of an epoch were given.

    Batches that workers prepared ahead do not count. The sampler is asked for the order of an epoch
    with the first batch, since Lightning sets the epoch only after it has made the iterator.
    Lightning's fit loop saves and loads the state.

    Takes the arguments of a ``DataLoader``; give ``worker_init_fn=leave_signals_to_parent`` with
    workers.
    """

    _epoch = 0
    _batches_done = 0
    _continued: tuple[int, int] | None = None  # epoch, batches to leave out

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]  # torch promises its own class
        """The batches of the sampler's epoch that were not yet given."""
        self._epoch = int(getattr(self.sampler, "epoch", 0))
        epoch, done = self._continued or (-1, 0)
        self._continued = None
        self.num_workers = usable_workers(self.num_workers)
        if choose_sharing(self.num_workers):
            print(
                f"So few files may be open that {self.num_workers} workers hand their batches over "
                "through the file system (ulimit -n is the limit)."
            )
        self._batches_done = done if epoch == self._epoch else 0
        if self._batches_done:
            assert isinstance(self.sampler, EpochSampler)
            assert self.batch_size is not None
            self.sampler.start = self._batches_done * self.batch_size
        try:
            with holding_signals():
                batches = super().__iter__()
            for batch in batches:
                self._batches_done += 1
                yield batch
        except CamtrainError as error:
            raise _original_error(error) from None

    def state_dict(self) -> dict[str, int | bool]:
        """Epoch and number of the batches given, and what the batches depend on; plain values."""
        epoch, given = self._continued or (
            self._epoch,
            self._batches_done,
        )  # loaded, and not used yet
        return {"epoch": epoch, "batches": given, "length": len(self), **self._layout()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on at this state, if it is of the same epoch.

        Raises:
            CamtrainValueError: The batches of an epoch are no longer what they were.
        """
        if 0 < state["batches"] < state["length"]:
            if not isinstance(self.sampler, EpochSampler):
                raise CamtrainValueError(
                    "Only an order of camtrain's own can be continued within an epoch, got "
                    f"{type(self.sampler).__name__}; leave --trainer.overfit_batches out."
                )
            for name, now in self._layout().items():
                if state[name] != now:
                    raise CamtrainValueError(
                        "A training that stopped within an epoch goes on with the same batches; "
                        f"the {_MEANING[name]} was {state[name]}, got {now}; give the same "
                        "settings and data, or start a new run from its network with "
                        "--model.weights."
                    )
        self._continued = (int(state["epoch"]), int(state["batches"]))

    def _layout(self) -> dict[str, int | bool]:
        """What the batches of an epoch depend on, beside seed and epoch."""
        sampler = self.sampler if isinstance(self.sampler, EpochSampler) else None
        return {
            "batch_size": self.batch_size or 0,
            "pictures": sampler.length if sampler else 0,
            "processes": sampler.num_replicas if sampler else 1,
            "balanced": sampler is not None and sampler.is_balanced,
        }


def _original_error(error: CamtrainError) -> CamtrainError:
    """The error without the worker's traceback, which torch puts into its text."""
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    text = str(error)
    return type(error)(text.rpartition(name)[2].rstrip()) if text.startswith("Caught ") else error
