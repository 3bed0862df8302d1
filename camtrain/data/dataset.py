"""Sources as torch data sets: prepared samples and batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from camtrain.data.augmentations import augmentation
from camtrain.data.seeds import seed_of
from camtrain.data.source import Source
from camtrain.data.transforms import normalize
from camtrain.errors import CamtrainValueError
from camtrain.preprocessing import Preprocessing


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture as the network takes it.

    Attributes:
        image: (C, h, w) float32, normalized.
        label: Index of its class.
        boxes_xyxy: (n, 4) int64, half-open, in pixels of the original picture; no augmentation
            applies to them.
        size_hw: (H, W) of the original picture.
        index: Its place in the data set.
        path: Where the picture came from.
        mask: (H, W) uint8 in pixels of the original picture, see ``Picture``; (0, 0) without one.
    """

    image: Tensor
    label: int
    boxes_xyxy: Tensor
    size_hw: tuple[int, int]
    index: int
    path: str
    mask: Tensor


class Batch(NamedTuple):
    """Samples side by side.

    Attributes:
        images: (B, C, h, w) float32, normalized.
        labels: (B,) int64.
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
    means epoch 0. The augmentation depends on seed, epoch and index alone (where an epoch draws an
    item several times, also on the draw), and leaves torch's random state as it was.

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
    def labels(self) -> list[int]:
        """The label of every item."""
        return [self.source.labels[index] for index in self.indices]

    def __len__(self) -> int:
        """The number of items."""
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, ...]) -> Sample:
        """The sample at ``(epoch, index)`` or ``(epoch, index, draw)``."""
        key = key if isinstance(key, tuple) else (0, key)
        index = key[1]
        picture = self.source.read(self.indices[index])
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which would seed the GPU's random numbers too
            torch.default_generator.manual_seed(seed_of(self.seed, *key))
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


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples to a batch; give it to a ``DataLoader`` as ``collate_fn``."""
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        labels=torch.tensor([sample.label for sample in samples]),
        boxes_xyxy=[sample.boxes_xyxy for sample in samples],
        sizes_hw=torch.tensor([sample.size_hw for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples]),
        paths=[sample.path for sample in samples],
        masks=[sample.mask for sample in samples],
    )
