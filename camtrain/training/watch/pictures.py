"""Which validation pictures are watched, and how they are loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, Subset

from camtrain.data import DamagedImageError, PreparedDataset, to_pixels
from camtrain.labels import classes_of
from camtrain.model.camnet import CAMNet
from camtrain.preprocessing import Preprocessing
from camtrain.visualize.report.page import packed_picture

MOST_PIXELS = 1024  # of the longer side of a watched picture; larger ones are reduced
_LABELS_READ = 512


@dataclass(frozen=True, eq=False)
class ValidationPicture:
    """A validation picture, as people see it and as the network gets it."""

    pixels: Tensor  # (C, H, W), uint8, at most 1,024 pixels along a side
    image: Tensor  # (C, h, w), normalized: the network's input
    labels: tuple[int, ...]  # one class, unless the network is multi-label
    boxes_xyxy: Tensor  # (n, 4), half-open, in coordinates of `pixels`
    preprocessing: Preprocessing  # from `pixels` to `image`
    path: str  # the last parts of the file's path

    @property
    def size_hw(self) -> tuple[int, int]:
        """(H, W) of ``pixels``."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @cached_property
    def packed(self) -> dict[str, Any]:
        """The picture as the report shows it, encoded once."""
        return packed_picture(self.pixels)


def validation_dataset(trainer: Trainer) -> Sequence[Any] | None:
    """The indexed data set of the first validation loader, if it has one; call in every process."""
    if trainer.val_dataloaders is None:  # as Lightning does, but not where an epoch has none
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    loader: Any = trainer.val_dataloaders
    while isinstance(loader, (list, tuple, dict)) and loader:
        loader = next(iter(loader.values() if isinstance(loader, dict) else loader))
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    return cast("Sequence[Any]", loader.dataset)


@dataclass(frozen=True)
class Candidates:
    """Pictures that can be watched."""

    indices: Sequence[int]  # in the data set
    labels: Sequence[int]  # the first class of each picture, -1 for none

    @classmethod
    def of(cls, dataset: Sequence[Any]) -> Candidates:
        """All pictures where the data set knows the labels; else up to 512, which are read."""
        labels = _known_labels(dataset)
        if labels is not None:
            return cls(range(len(labels)), labels)
        count = min(len(dataset), _LABELS_READ)
        indices = [row * len(dataset) // count for row in range(count)]
        return cls(indices, [_first_class(dataset[index][1]) for index in indices])

    @property
    def identity(self) -> str:
        """A hash that is the same for the same data."""
        pairs = ",".join(f"{i}:{c}" for i, c in zip(self.indices, self.labels, strict=True))
        return hashlib.sha256(pairs.encode()).hexdigest()[:16]

    def stratified(self, count: int, seed: int) -> list[int]:
        """Indices of ``count`` pictures: classes take turns, each in its own random order.

        Example:
            >>> Candidates(range(6), [0, 0, 0, 0, 1, 2]).stratified(3, seed=0)[1:]
            [4, 5]
        """
        generator = np.random.default_rng(seed)
        labels, turns = np.asarray(self.labels), []
        for label in sorted(set(self.labels)):
            rows = generator.permutation(np.flatnonzero(labels == label))
            turns += [(turn, label, int(row)) for turn, row in enumerate(rows[:count])]
        return [self.indices[row] for _, _, row in sorted(turns)[:count]]


def _known_labels(dataset: Sequence[Any]) -> list[int] | None:
    """The first class of each item, without reading one; None if the data set has no labels."""
    if isinstance(dataset, Subset):
        labels = _known_labels(cast("Sequence[Any]", dataset.dataset))
        return None if labels is None else [labels[index] for index in dataset.indices]
    for name in ("labels", "targets"):
        values = getattr(dataset, name, None)
        with suppress(TypeError, ValueError, RuntimeError):  # names, or something else altogether
            if values is not None and len(values) == len(dataset):
                return [_first_class(label) for label in values]
    return None


def _first_class(label: object) -> int:
    return next(iter(classes_of(label)), -1)


def load_picture(dataset: Sequence[Any], index: int, net: CAMNet) -> ValidationPicture | None:
    """The picture at ``index``; None if its file is damaged, which the validation reports."""
    if not isinstance(dataset, PreparedDataset):
        image, label = dataset[index][:2]
        return picture_of_input(image, label, net, path=f"picture {index}")
    try:
        sample, source = dataset[index], dataset.picture(index)
    except DamagedImageError:
        return None
    pixels, boxes = _reduced(source.image, sample.boxes_xyxy)
    labels, path = classes_of(sample.label), "/".join(Path(sample.path).parts[-3:])
    return ValidationPicture(pixels, sample.image, labels, boxes, dataset.preprocessing, path)


def picture_of_input(image: Tensor, label: object, net: CAMNet, *, path: str) -> ValidationPicture:
    """The picture for the network's input (C, h, w), where nothing else is known of it."""
    preprocessing = net.preprocessing or Preprocessing()
    pixels = to_pixels(image, preprocessing)
    squash = replace(preprocessing, size=(image.shape[1], image.shape[2]), resize_mode="squash")
    no_boxes = torch.zeros(0, 4, dtype=torch.int64)
    return ValidationPicture(pixels, image, classes_of(label), no_boxes, squash, path)


def _reduced(image: Tensor, boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """A picture (C, H, W) uint8 and its boxes, scaled down to ``MOST_PIXELS`` if it is larger."""
    height, width = image.shape[1:]
    scale = MOST_PIXELS / max(height, width)
    if scale >= 1:
        return image, boxes_xyxy
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    smaller = functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    factors = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float64)
    return smaller, (boxes_xyxy * factors).round().long()
