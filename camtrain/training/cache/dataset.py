"""Data sets of kept features, in place of the pictures they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from camtrain.data import (
    Damaged,
    DamagedImageError,
    Key,
    PreparedDataset,
    Sample,
    index_of,
    sample_or_damaged,
)
from camtrain.training.cache.store import Arrays

_NO_MASK = torch.zeros(0, 0, dtype=torch.uint8)


class FeatureDataset(Dataset[Sample]):
    """What the frozen backbone made of every picture, asked for as a ``PreparedDataset`` is.

    Args:
        pictures: The data set it takes the place of.
        arrays: ``kept`` (N,), which pictures could be read; ``vectors`` (N, V, C) float32, ``maps``
            (M, V, C, h, w) or both; V is 2 where the mirror images are kept too.
        mapped: Places in ``pictures`` of the M maps.
        known: Samples without pixels by place, as far as they have been read.
        is_bfloat16: Whether ``maps`` holds bfloat16, which NumPy does not know, as int16.
        for_training: Its pictures are mirrored as ``pictures`` would mirror them, and know their
            label only; else they bring boxes, sizes and masks.
    """

    def __init__(
        self,
        pictures: PreparedDataset,
        arrays: Arrays,
        *,
        mapped: Sequence[int] = (),
        known: Mapping[int, Sample] | None = None,
        is_bfloat16: bool = False,
        for_training: bool,
    ) -> None:
        """Nothing is read yet."""
        self.pictures = pictures
        self.labels = pictures.labels
        self._is_kept = arrays["kept"]
        self._vectors = arrays.get("vectors")
        self._maps = arrays.get("maps")
        self._row_of = {index: row for row, index in enumerate(mapped)}
        self._is_bfloat16 = is_bfloat16
        self._for_training = for_training
        some = self._maps if self._vectors is None else self._vectors
        assert some is not None
        channels, *map_hw = some.shape[2:]
        height, width = map_hw or (1, 1)
        self._shape = (channels, height, width)
        self._has_mirrors = for_training and some.shape[1] == 2
        self._paths = [pictures.source.paths[index] for index in pictures.indices]
        self._known: dict[int, Sample] = dict(known or {})

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.pictures)

    def __getitem__(self, key: Key) -> Sample:
        """The sample at ``(epoch, index)``, its features for an image."""
        index = index_of(key)
        if not self._is_kept[index]:
            self.pictures[key]  # which says what is wrong with it
            raise DamagedImageError(
                f"The image {self._paths[index]} could not be read when features were kept, and "
                "can be now; begin the training again."
            )
        if not self._for_training:
            return replace(self._annotated(index), image=self.features(index))
        # The very augmentation decides, so that the features come mirrored in the same epochs as
        # the pictures would.
        view = int(self._has_mirrors and self.pictures.is_mirrored(key))
        return Sample(
            image=self.features(index, view),
            label=self.labels[index],
            boxes_xyxy=torch.zeros(0, 4, dtype=torch.int64),
            size_hw=(0, 0),
            index=index,
            path=self._paths[index],
            mask=_NO_MASK,
            input_boxes_xyxy=torch.zeros(0, 4),
        )

    def __getitems__(self, keys: Sequence[Key]) -> list[Sample | Damaged]:
        """The samples of a batch; torch's loader asks for them so."""
        return [sample_or_damaged(self, key, self._shape) for key in keys]

    def features(self, index: int, view: int = 0) -> Tensor:
        """The feature map of a picture, (C, h, w), or its pooled vector, (C, 1, 1).

        Where some pictures have maps, a vector is spread over a constant one, whose mean it is.
        """
        row = self._row_of.get(index)
        if row is not None:
            assert self._maps is not None
            kept = torch.from_numpy(self._maps[row, view].copy())
            return kept.view(torch.bfloat16) if self._is_bfloat16 else kept
        assert self._vectors is not None
        vector = torch.from_numpy(self._vectors[index, view].copy())[:, None, None]
        return vector if self._maps is None else vector.expand(-1, *self._maps.shape[-2:])

    def vectors(self) -> tuple[Tensor, list[int]]:
        """Pooled vectors (N * V, C), and which picture each belongs to."""
        assert self._vectors is not None, "maps only"
        _, views, channels = self._vectors.shape
        places = [index for index in np.flatnonzero(self._is_kept).tolist() for _ in range(views)]
        return torch.from_numpy(self._vectors[self._is_kept].reshape(-1, channels)), places

    def _annotated(self, index: int) -> Sample:
        """Everything about a picture but its pixels; read once, unless it has a mask."""
        if index not in self._known:
            sample = replace(self.pictures[index], image=torch.zeros(0))
            if sample.mask.numel():  # masks have the size of the picture: too many to keep
                return sample
            self._known[index] = sample
        return self._known[index]
