"""A data set of cached features, in place of the pictures they were computed from."""

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
    """The output of the frozen backbone for every picture, used like a ``PreparedDataset``.

    Args:
        pictures: The data set that it replaces.
        arrays: ``kept`` (N,), which pictures could be read; ``vectors`` (N, V, C) float32, ``maps``
            (M, V, C, h, w) or both; V is 2 if there are mirror images, else 1.
        places_with_maps: The places in ``pictures`` of the M maps.
        annotations: Samples without pixels by place, as far as they have been read.
        is_bfloat16: Whether the int16 numbers of ``maps`` are bfloat16, which NumPy lacks.
        for_training: True: samples are mirrored as those of ``pictures``, and know only their
            label. False: samples have boxes, sizes and masks.
    """

    def __init__(
        self,
        pictures: PreparedDataset,
        arrays: Arrays,
        *,
        places_with_maps: Sequence[int] = (),
        annotations: Mapping[int, Sample] | None = None,
        is_bfloat16: bool = False,
        for_training: bool,
    ) -> None:
        self.pictures = pictures
        self.labels = pictures.labels
        self._is_readable = arrays["kept"]
        self._vectors = arrays.get("vectors")
        self._maps = arrays.get("maps")
        self._row_of = {index: row for row, index in enumerate(places_with_maps)}
        self._is_bfloat16 = is_bfloat16
        self._for_training = for_training
        features = arrays["maps"] if self._vectors is None else self._vectors
        channels, *map_hw = features.shape[2:]
        height, width = map_hw or (1, 1)
        self._shape = (channels, height, width)
        self._has_mirrors = for_training and features.shape[1] == 2
        self._paths = [pictures.source.paths[index] for index in pictures.indices]
        self._annotations: dict[int, Sample] = dict(annotations or {})

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.pictures)

    def __getitem__(self, key: Key) -> Sample:
        """The sample at ``(epoch, index)``, with features in place of its image."""
        index = index_of(key)
        if not self._is_readable[index]:
            self.pictures[key]  # raises an error that names the fault of the file
            raise DamagedImageError(
                f"The image {self._paths[index]} could not be read when features were kept, and "
                "can be now; begin the training again."
            )
        if not self._for_training:
            return replace(self._sample_without_pixels(index), image=self.features(index))
        # The pictures' own augmentation decides, so features and pictures are mirrored in the same
        # epochs.
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
        """The samples of a batch; torch's loader calls this."""
        return [sample_or_damaged(self, key, self._shape) for key in keys]

    def features(self, index: int, view: int = 0) -> Tensor:
        """The feature map of a picture, (C, h, w), or its pooled vector, (C, 1, 1).

        If other pictures have maps, the vector is spread over a constant map.
        """
        row = self._row_of.get(index)
        if row is not None:
            assert self._maps is not None
            halves = torch.from_numpy(self._maps[row, view].copy())
            return halves.view(torch.bfloat16) if self._is_bfloat16 else halves
        assert self._vectors is not None
        vector = torch.from_numpy(self._vectors[index, view].copy())[:, None, None]
        return vector if self._maps is None else vector.expand(-1, *self._maps.shape[-2:])

    def vectors(self) -> tuple[Tensor, list[int]]:
        """Pooled vectors (N * V, C) of readable pictures, and the place of the picture of each."""
        assert self._vectors is not None, "maps only"
        channels = self._vectors.shape[2]
        places = np.flatnonzero(self._is_readable).repeat(self._vectors.shape[1]).tolist()
        return torch.from_numpy(self._vectors[self._is_readable].reshape(-1, channels)), places

    def _sample_without_pixels(self, index: int) -> Sample:
        """The sample of a picture without pixels; it is read only once, unless it has a mask."""
        if index not in self._annotations:
            sample = replace(self.pictures[index], image=torch.zeros(0))
            if sample.mask.numel():  # masks are as large as their pictures: too large to keep all
                return sample
            self._annotations[index] = sample
        return self._annotations[index]
