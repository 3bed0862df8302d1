"""Sources as torch data sets: prepared samples, the order of an epoch, batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from camtrain.data.augmentations import augmentation
from camtrain.data.shards.order import shuffled_by_shard
from camtrain.data.source import Source
from camtrain.data.transforms import normalize
from camtrain.errors import CamtrainValueError
from camtrain.preprocessing import Preprocessing


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture as the network takes it.

    Attributes:
        image: (C, h, w) float32, normalized.
        label: Index of its class; for several labels multi-hot, (K,) float32.
        boxes_xyxy: (n, 4) int64, half-open, in pixels of the original picture; no augmentation
            applies to them.
        size_hw: (H, W) of the original picture.
        index: Its place in the data set.
        path: Where the picture came from.
        mask: (H, W) uint8 in pixels of the original picture, see ``Picture``; (0, 0) without one.
    """

    image: Tensor
    label: int | Tensor
    boxes_xyxy: Tensor
    size_hw: tuple[int, int]
    index: int
    path: str
    mask: Tensor


class Batch(NamedTuple):
    """Samples side by side.

    Attributes:
        images: (B, C, h, w) float32, normalized.
        labels: (B,) int64; for several labels per picture multi-hot, (B, K) float32.
        boxes_xyxy: B tensors (n, 4) int64, half-open, in pixels of the original pictures.
        sizes_hw: (B, 2) int64, height and width of the original pictures.
        indices: (B,) int64, places in the data set.
        paths: Where the B pictures came from.
        masks: B tensors (H, W) uint8 in pixels of the original pictures; (0, 0) without one.
    """

    images: Tensor
    labels: Tensor
    boxes_xyxy: list[Tensor]
    sizes_hw: Tensor
    indices: Tensor
    paths: list[str]
    masks: list[Tensor]


class PreparedDataset(Dataset[Sample]):
    """The pictures of a source, augmented and normalized.

    An item is asked for by ``(epoch, index)``, as ``EpochSampler`` does, or by ``index``, which
    means epoch 0. The augmentation depends on seed, epoch and index alone, and leaves torch's
    random state as it was.

    Args:
        source: Where the pictures come from.
        preprocessing: Size and normalization.
        augment: Name of the augmentation; ``"none"`` is what evaluation and prediction do.
        seed: Of the augmentation.
        limit: Keep at most this many pictures, evenly spaced over the source so that every class is
            met.

    Raises:
        CamtrainValueError: An unknown augmentation, or a limit below 1.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        *,
        augment: str = "none",
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        """Choose the items; no picture is read yet."""
        if limit is not None and limit < 1:
            raise CamtrainValueError(f"limit must be at least 1 picture, or None, got {limit}.")
        self.source = source
        self.preprocessing = preprocessing
        self.seed = seed
        self._augment = augmentation(augment, preprocessing)
        count = min(len(source), limit or len(source))
        self.indices = [place * len(source) // count for place in range(count)]

    @property
    def labels(self) -> list[int] | Tensor:
        """The label of every item; for several labels per picture multi-hot, (N, K)."""
        labels = self.source.labels
        if isinstance(labels, Tensor):
            return labels[self.indices]
        return [labels[index] for index in self.indices]

    @property
    def groups(self) -> Tensor | None:
        """See ``EpochSampler``."""
        groups = getattr(self.source, "groups", None)
        return None if groups is None else torch.as_tensor(groups)[self.indices]

    def __len__(self) -> int:
        """The number of items."""
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """The sample at ``(epoch, index)``."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        picture = self.source.read(self.indices[index])
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which would seed the GPU's random numbers too
            torch.default_generator.manual_seed(seed_of(self.seed, epoch, index))
            image = self._augment(picture.image)
        return Sample(
            image=normalize(image, self.preprocessing),
            label=picture.label,
            boxes_xyxy=picture.boxes_xyxy,
            size_hw=(picture.image.shape[-2], picture.image.shape[-1]),
            index=index,
            path=picture.path,
            mask=torch.zeros(0, 0, dtype=torch.uint8) if picture.mask is None else picture.mask,
        )


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(epoch, index)``; the order depends on seed and epoch alone.

    Args:
        length: Number of items.
        shuffle: A random order in every epoch, or 0, 1, 2, ...
        seed: Of the order.
        groups: (N,), items that had better be asked for one after the other, such as those of a
            shard; None: any order is as good.
    """

    def __init__(
        self, length: int, *, shuffle: bool, seed: int, groups: Tensor | None = None
    ) -> None:
        """Start at epoch 0."""
        self.groups = groups
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; Lightning calls it before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of items."""
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The keys of one epoch."""
        order = torch.arange(self.length)
        if self.shuffle:
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
            order = (
                torch.randperm(self.length, generator=generator)
                if self.groups is None
                else shuffled_by_shard(self.groups, generator)
            )
        return iter([(self.epoch, index) for index in order.tolist()])


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples to a batch; give it to a ``DataLoader`` as ``collate_fn``."""
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        labels=torch.stack([torch.as_tensor(sample.label) for sample in samples]),
        boxes_xyxy=[sample.boxes_xyxy for sample in samples],
        sizes_hw=torch.tensor([sample.size_hw for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples]),
        paths=[sample.path for sample in samples],
        masks=[sample.mask for sample in samples],
    )


def seed_of(*numbers: int) -> int:
    """A well mixed 64-bit seed from a few numbers, the same everywhere."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
