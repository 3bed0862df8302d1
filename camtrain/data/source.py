"""Sources of labelled pictures: what all of them offer, and those of data sets on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtrain.data.decoding import decode_image
from camtrain.data.lists import PathList
from camtrain.errors import CamtrainValueError

Split = Literal["train", "val", "test"]
Labels = NDArray[np.int64] | NDArray[np.bool_]
Shrink = Callable[[tuple[int, int]], float]  # from (H, W) to the most a picture may be reduced

UNDECIDED = -1  # the split of a picture that the data set leaves open


class SourcePicture(NamedTuple):
    """One labelled picture as it lies on disk, after its EXIF orientation is applied.

    Attributes:
        image: (C, H, W) uint8.
        label: Index into the source's ``class_names``; for several labels multi-hot, (K,) float32.
        boxes_xyxy: (n, 4) int64, half-open, in pixels of the whole picture: boxes of the labelled
            class; (0, 4) where none is known.
        path: Where the picture came from, for messages and reports.
        mask: (H, W) uint8, 1 where the labelled object is, 0 background, 255 unknown; or None.
        whole_hw: (H, W) of the whole picture, where ``image`` was decoded smaller; else None.
        factor: By how much the decoder shrank it, see ``Decoded``.
    """

    image: Tensor
    label: int | Tensor
    boxes_xyxy: Tensor
    path: str
    mask: Tensor | None = None
    whole_hw: tuple[int, int] | None = None
    factor: int = 1

    @property
    def size_hw(self) -> tuple[int, int]:
        """(H, W) of the whole picture."""
        return self.whole_hw or (self.image.shape[-2], self.image.shape[-1])


Picture = SourcePicture  # its earlier name, which sources of users import


class Source(Protocol):
    """Labelled pictures; only their pixels have to be decoded, all else is known before."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the labels."""

    @property
    def labels(self) -> list[int] | Tensor:
        """The label of every picture; for several labels multi-hot, (N, K) float32."""

    @property
    def paths(self) -> Sequence[str]:
        """The ``SourcePicture.path`` of every picture."""

    def boxes(self, index: int) -> Tensor:
        """The boxes of the picture at ``index``, see ``SourcePicture``."""

    def __len__(self) -> int:
        """The number of pictures."""

    def read(self, index: int) -> SourcePicture:
        """The picture at ``index``."""


@runtime_checkable
class FileSource(Source, Protocol):
    """A source of picture files, which can be decoded smaller, or as they are stored."""

    def read_file(
        self, index: int, *, exif: bool = True, shrink: Shrink | None = None
    ) -> SourcePicture:
        """The picture at ``index``; ``exif`` and ``shrink`` as for ``decode_image``."""


def split_number(split: Split) -> int:
    """The number that stands for a split in a listing."""
    return get_args(Split).index(split)


def no_boxes(row: int) -> Tensor:
    """No boxes, (0, 4) int64, whatever the row."""
    return torch.zeros(0, 4, dtype=torch.int64)


def no_mask(row: int) -> Tensor | None:
    """No mask, whatever the row."""
    return None


@dataclass(frozen=True, eq=False, kw_only=True)
class Listing:
    """All pictures of a data set, of all its splits: N rows. The reader of every layout makes one.

    The functions take a row. Their boxes and masks are as in ``SourcePicture``.
    """

    root: Path  # the data folder
    paths: PathList  # relative to root, with forward slashes, or absolute
    labels: Labels  # (N,) int64, places in class_names; for several labels multi-hot, (N, K) bool
    splits: NDArray[np.int8]  # (N,), a split_number or UNDECIDED
    class_names: tuple[str, ...]  # K
    has_class_list: bool = False  # class_names is the data set's own list; else: with pictures only
    boxes: Callable[[int], Tensor] = no_boxes
    masks: Callable[[int], Tensor | None] = no_mask
    images: Tensor | None = None  # (N, C, H, W) uint8, where no picture has a file of its own
    contents: Callable[[int], bytes] | None = None  # the picture's file, where it is not on disk
    groups: NDArray[np.int64] | None = None  # (N,), pictures to be read one after the other
    is_divided: bool = False  # splits were decided by the seed or split.csv, not by the data set

    def rows_of(self, split: Split) -> NDArray[np.int64]:
        """The rows of a split, in order."""
        return np.flatnonzero(self.splits == split_number(split))

    def rows_by_split(self) -> dict[Split, NDArray[np.int64]]:
        """The rows of each split that has pictures, in the order train, val, test."""
        rows: dict[Split, NDArray[np.int64]] = {s: self.rows_of(s) for s in get_args(Split)}
        return {split: places for split, places in rows.items() if len(places)}


class ListedSource:
    """One split of a listing, which is shared, not copied: a ``Source``. See ``source_of``."""

    def __init__(self, listing: Listing, split: Split) -> None:
        """Choose the pictures; none is read yet."""
        self.split = split
        self.root = listing.root
        self.class_names = listing.class_names
        self.is_divided = listing.is_divided
        self._listing = listing
        self._rows = listing.rows_of(split)
        self.groups = None if listing.groups is None else listing.groups[self._rows]
        self.paths = listing.paths.take(self._rows).below(listing.root)
        labels = torch.from_numpy(listing.labels[self._rows])
        self.labels: list[int] | Tensor = labels.float() if labels.ndim == 2 else labels.tolist()

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._rows)

    def boxes(self, index: int) -> Tensor:
        """The boxes of the picture at ``index``, (n, 4) int64, half-open xyxy."""
        return self._listing.boxes(int(self._rows[index])).clone()

    def read(self, index: int) -> SourcePicture:
        """The picture at ``index``, which is in memory."""
        images, row = self._listing.images, int(self._rows[index])
        assert images is not None
        boxes_xyxy, mask = self.boxes(index), self._listing.masks(row)
        return SourcePicture(
            images[row].clone(), self.labels[index], boxes_xyxy, self.paths[index], mask
        )


class ListedFiles(ListedSource):
    """One split of a listing whose pictures are files."""

    def read(self, index: int) -> SourcePicture:
        """Decode the whole picture at ``index``."""
        return self.read_file(index)

    def read_file(
        self, index: int, *, exif: bool = True, shrink: Shrink | None = None
    ) -> SourcePicture:
        """Decode the picture at ``index``; ``exif`` and ``shrink`` as for ``decode_image``."""
        row, path, contents = int(self._rows[index]), self.paths[index], self._listing.contents
        data = None if contents is None else contents(row)
        image, size_hw, factor = decode_image(path, data=data, exif=exif, shrink=shrink)
        mask = self._listing.masks(row)
        if mask is not None and contents is None:  # masks in shards are as large as the pictures
            mask = _resize_mask(mask, size_hw, path)
        boxes_xyxy = self.boxes(index)
        return SourcePicture(image, self.labels[index], boxes_xyxy, path, mask, size_hw, factor)


def source_of(listing: Listing, split: Split) -> ListedSource:
    """The source of one split of a listing."""
    return ListedFiles(listing, split) if listing.images is None else ListedSource(listing, split)


def _resize_mask(mask: Tensor, size_hw: tuple[int, int], path: str) -> Tensor:
    """A mask resized to its picture, since it may have been drawn at another resolution."""
    if mask.shape == size_hw:
        return mask
    if mask.shape == size_hw[::-1]:
        raise CamtrainValueError(
            f"The mask of {path} must have the height and width of its picture, {size_hw}, got "
            f"{tuple(mask.shape)}; turn the mask as the EXIF turns the picture, or change "
            "--data.exif."
        )
    array = cv2.resize(mask.numpy(), size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    return torch.from_numpy(array)
