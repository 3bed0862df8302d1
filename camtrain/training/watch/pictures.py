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
from camtrain.labels import as_pair, classes_of
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
    def packed_pixels(self) -> dict[str, Any]:
        """The pixels as the report stores them, see ``packed_picture``."""
        return packed_picture(self.pixels)


def validation_dataset(trainer: Trainer) -> Sequence[Any] | None:
    """The data set of the first validation loader; None if it has no items by index, or is missing.

    Every process must call it, since it may set up the loaders.
    """
    if not trainer.enable_validation:
        return None
    if trainer.val_dataloaders is None:  # Lightning waits for the first epoch with a validation
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    return dataset_of(trainer.val_dataloaders)


def dataset_of(loader: object) -> Sequence[Any] | None:
    """The data set of a loader, or of the first of several; None if it has no items by index."""
    while isinstance(loader, (list, tuple, dict)) and loader:
        loader = next(iter(loader.values() if isinstance(loader, dict) else loader))
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    return cast("Sequence[Any]", loader.dataset)


@dataclass(frozen=True)
class Candidates:
    """The validation pictures from which the watched ones are chosen."""

    indices: Sequence[int]  # in the data set
    labels: Sequence[int]  # the first class of each picture, -1 for none

    @classmethod
    def of(cls, dataset: Sequence[Any]) -> Candidates:
        """All pictures if the data set lists their labels; else up to 512, which are read."""
        labels = _known_labels(dataset)
        if labels is not None:
            return cls(range(len(labels)), labels)
        count = min(len(dataset), _LABELS_READ)
        indices = [row * len(dataset) // count for row in range(count)]
        return cls(indices, [_first_class(as_pair(dataset[index])[1]) for index in indices])

    @property
    def identity(self) -> str:
        """A hash of indices and labels, by which a resumed training recognizes its data."""
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
    """The first class of each item, without reading any; None if labels are not listed."""
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
    """The first class of a label, -1 if it has none."""
    return next(iter(classes_of(label)), -1)


def load_picture(dataset: Sequence[Any], index: int, net: CAMNet) -> ValidationPicture | None:
    """The picture at ``index``; None if its file is damaged, which the validation reports."""
    if not isinstance(dataset, PreparedDataset):
        image, label = as_pair(dataset[index])[:2]
        return picture_from_input(image, label, net, path=f"picture {index}")
    try:
        sample, source = dataset[index], dataset.picture(index)
    except DamagedImageError:
        return None
    pixels, boxes = _scale_down(source.image, sample.boxes_xyxy)
    labels, path = classes_of(sample.label), "/".join(Path(sample.path).parts[-3:])
    return ValidationPicture(pixels, sample.image, labels, boxes, dataset.preprocessing, path)


def picture_from_input(
    image: Tensor, label: object, net: CAMNet, *, path: str
) -> ValidationPicture:
    """A picture made from the network's input (C, h, w) alone; it has no boxes."""
    preprocessing = net.preprocessing or Preprocessing()
    pixels = to_pixels(image, preprocessing)
    squash = replace(preprocessing, size=(image.shape[1], image.shape[2]), resize_mode="squash")
    no_boxes = torch.zeros(0, 4, dtype=torch.int64)
    return ValidationPicture(pixels, image, classes_of(label), no_boxes, squash, path)


def _scale_down(image: Tensor, boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Scale a picture (C, H, W) uint8 and its boxes down to ``MOST_PIXELS`` if it is larger."""
    height, width = image.shape[1:]
    scale = MOST_PIXELS / max(height, width)
    if scale >= 1:
        return image, boxes_xyxy
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    smaller = functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    factors = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float64)
    return smaller, (boxes_xyxy * factors).round().long()
