"""Which validation pictures are watched, and what is read of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, Subset

from camtrain.data import DamagedImageError, PreparedDataset, to_pixels
from camtrain.model.camnet import CAMNet
from camtrain.preprocessing import Preprocessing

MOST_PIXELS = 1024  # of the longer side of a watched picture; larger ones are reduced
_LABELS_READ = 512


@dataclass(frozen=True, eq=False)
class Watched:
    """A validation picture: as people see it, and as the network does.

    Attributes:
        shown: (C, H, W), uint8, at most 1,024 pixels along a side.
        image: (C, h, w), normalized: the network's input.
        labels: Its classes; one, unless the network is multi-label.
        boxes_xyxy: (n, 4), half-open, in pixels of ``shown``.
        preprocessing: From ``shown`` to ``image``.
        path: Where it came from, the last parts.
    """

    shown: Tensor
    image: Tensor
    labels: tuple[int, ...]
    boxes_xyxy: Tensor
    preprocessing: Preprocessing
    path: str

    @property
    def size_hw(self) -> tuple[int, int]:
        """(H, W) of ``shown``."""
        return self.shown.shape[1], self.shown.shape[2]


def stratified(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Places of ``count`` items: one of every class in turn, each class in its own random order.

    Example:
        >>> [[0, 0, 0, 0, 1, 2][i] for i in stratified([0, 0, 0, 0, 1, 2], 4, seed=0)]
        [0, 1, 2, 0]
    """
    generator = np.random.default_rng(seed)
    turns, every = [], np.asarray(labels)
    for label in sorted(set(labels)):
        places = generator.permutation(np.flatnonzero(every == label))
        turns += [(turn, label, int(place)) for turn, place in enumerate(places[:count])]
    return [place for _, _, place in sorted(turns)[:count]]


def validation_dataset(trainer: Trainer) -> Sequence[Any] | None:
    """The data set of the first validation loader, if it has places; every process must ask."""
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
    """Pictures that can be watched.

    Attributes:
        places: In the data set.
        labels: The first class of each, -1 for none.
    """

    places: Sequence[int]
    labels: Sequence[int]

    @property
    def identity(self) -> str:
        """The same for the same data."""
        known = ",".join(f"{p}:{c}" for p, c in zip(self.places, self.labels, strict=True))
        return hashlib.sha256(known.encode()).hexdigest()[:16]

    def in_turn(self, count: int, seed: int) -> list[int]:
        """Places, one of every class in turn, see ``stratified``."""
        return [self.places[row] for row in stratified(self.labels, count, seed)]


def candidates_of(dataset: Sequence[Any]) -> Candidates:
    """All pictures whose class the data set knows, or some of them, which are read."""
    known = _known_labels(dataset)
    if known is not None:
        return Candidates(range(len(known)), known)
    count = min(len(dataset), _LABELS_READ)
    places = [row * len(dataset) // count for row in range(count)]
    labels = [next(iter(classes_of(dataset[place][1])), -1) for place in places]
    return Candidates(places, labels)


def _known_labels(dataset: Sequence[Any]) -> list[int] | None:
    """The first class of each item, without reading one; None where the data set does not tell."""
    if isinstance(dataset, Subset):
        inside = _known_labels(cast("Sequence[Any]", dataset.dataset))
        return None if inside is None else [inside[place] for place in dataset.indices]
    for name in ("labels", "targets"):
        labels = getattr(dataset, name, None)
        with suppress(TypeError, ValueError, RuntimeError):  # names, or something else altogether
            if labels is not None and len(labels) == len(dataset):
                return [next(iter(classes_of(label)), -1) for label in labels]
    return None


def classes_of(label: object) -> tuple[int, ...]:
    """The classes of a label, which is a class number or multi-hot, (K,)."""
    label = torch.as_tensor(label)
    return (int(label),) if label.ndim == 0 else tuple(label.nonzero()[:, 0].tolist())


def read(dataset: Sequence[Any], index: int, net: CAMNet) -> Watched | None:
    """The picture at ``index``; None where its file is damaged, which the validation has to say."""
    if not isinstance(dataset, PreparedDataset):
        image, label = dataset[index][:2]
        return read_input(image, label, net, path=f"picture {index}")
    try:
        sample, picture = dataset[index], dataset.picture(index)
    except DamagedImageError:
        return None
    shown, boxes = _reduced(picture.image, sample.boxes_xyxy)
    labels, path = classes_of(sample.label), "/".join(Path(sample.path).parts[-3:])
    return Watched(shown, sample.image, labels, boxes, dataset.preprocessing, path)


def read_input(image: Tensor, label: object, net: CAMNet, *, path: str) -> Watched:
    """A picture of which only the network's input is known, (C, h, w)."""
    preprocessing = net.preprocessing or Preprocessing()
    shown = to_pixels(image, preprocessing)
    squash = replace(preprocessing, size=(image.shape[1], image.shape[2]), resize_mode="squash")
    no_boxes = torch.zeros(0, 4, dtype=torch.int64)
    return Watched(shown, image, classes_of(label), no_boxes, squash, path)


def _reduced(image: Tensor, boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """A picture (C, H, W) uint8 and its boxes at no more than ``MOST_PIXELS``."""
    height, width = image.shape[1:]
    scale = MOST_PIXELS / max(height, width)
    if scale >= 1:
        return image, boxes_xyxy
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    smaller = functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    factors = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float64)
    return smaller, (boxes_xyxy * factors).round().long()
