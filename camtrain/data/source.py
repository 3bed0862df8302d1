"""Sources of labelled pictures: their protocol, and the one of data sets that lie on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camtrain.data.decoding import Decode, read_image
from camtrain.data.paths import PathList
from camtrain.errors import CamtrainValueError

Split = Literal["train", "val", "test"]


class Picture(NamedTuple):
    """One labelled picture as it lies on disk, after its EXIF orientation is applied.

    Attributes:
        image: (C, H, W) uint8.
        label: Index into the source's ``class_names``; for several labels multi-hot, (K,) float32.
        boxes_xyxy: (n, 4) int64, half-open, in pixels of the whole picture (a ``FileSource`` may
            be asked for a smaller ``image``): boxes of the labelled class. None known: (0, 4).
        path: Where the picture came from, for messages and reports.
        mask: (H, W) uint8, 1 where the labelled object is, 0 background, 255 unknown; None where no
            mask is known.
    """

    image: Tensor
    label: int | Tensor
    boxes_xyxy: Tensor
    path: str
    mask: Tensor | None = None


class Source(Protocol):
    """Labelled pictures: all but the pixels is known without decoding a picture."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the labels."""

    @property
    def labels(self) -> list[int] | Tensor:
        """The label of every picture; for several labels multi-hot, (N, K) float32."""

    @property
    def paths(self) -> Sequence[str]:
        """What ``Picture.path`` will be, of every picture."""

    def boxes(self, index: int) -> Tensor:
        """The boxes of the picture at ``index``, see ``Picture``."""

    def __len__(self) -> int:
        """The number of pictures."""

    def read(self, index: int) -> Picture:
        """The picture at ``index``."""


@runtime_checkable
class FileSource(Source, Protocol):
    """A source of picture files, which others may decode: smaller, or as they are stored."""

    def read_with(self, index: int, decode: Decode) -> Picture:
        """As ``read``, with the image that ``decode`` makes of its file; all else is the same."""


UNDECIDED = -1  # the split of a picture that the data set leaves open
Labels = NDArray[np.int64] | NDArray[np.bool_]


def split_number(split: Split) -> int:
    """The number that stands for a split in a listing."""
    return get_args(Split).index(split)


def no_boxes(row: int) -> Tensor:
    """The boxes of a picture without any, (0, 4) int64."""
    return torch.zeros(0, 4, dtype=torch.int64)


def no_mask(row: int) -> Tensor | None:
    """The mask of a picture without one."""
    return None


@dataclass(frozen=True, eq=False, kw_only=True)
class Listing:
    """All pictures of a data set, of all its splits: N rows. Every reader of a layout makes one.

    Attributes:
        root: The data folder.
        paths: Relative to ``root``, with forward slashes, or absolute.
        labels: (N,) int64, places in ``class_names``; for several labels multi-hot, (N, K) bool.
        splits: (N,) int8, a ``split_number`` or ``UNDECIDED``.
        class_names: K names.
        has_class_list: The data set itself lists its classes, with or without pictures; else they
            are those of the training pictures.
        boxes: From a row to its boxes, (n, 4) int64, half-open xyxy, of the labelled class.
        masks: From a row to its mask, (H, W) uint8 as in ``Picture``, or None.
        images: (N, C, H, W) uint8 of pictures that come in one file; then no path is opened.
        contents: From a row to the content of the picture's file, where there is no such file; then
            no path is opened either.
        groups: (N,) int64, pictures that had better be read one after the other; None: any order
            is as good.
        is_divided: Splits were decided here, by the seed, and not by the data set.
    """

    root: Path
    paths: PathList
    labels: Labels
    splits: NDArray[np.int8]
    class_names: tuple[str, ...]
    has_class_list: bool = False
    boxes: Callable[[int], Tensor] = no_boxes
    masks: Callable[[int], Tensor | None] = no_mask
    images: Tensor | None = None
    contents: Callable[[int], bytes] | None = None
    groups: NDArray[np.int64] | None = None
    is_divided: bool = False

    def rows_of(self, split: Split) -> NDArray[np.int64]:
        """The rows of a split, in order."""
        return np.flatnonzero(self.splits == split_number(split))

    def counts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of some rows are of each class, (K,)."""
        labels = self.labels[rows]
        if labels.ndim == 2:
            return np.asarray(labels.sum(0, dtype=np.int64))
        return np.bincount(labels.astype(np.int64), minlength=len(self.class_names))


class ListedSource:
    """One split of a listing: the source of every data set that lies on disk. See ``source_of``.

    Attributes:
        split: Its name.
        class_names: K names.
        labels: The label of every picture; for several labels multi-hot, (N, K) float32.
        paths: The full path of every picture.
        is_divided: See ``Listing``.
        groups: See ``Listing``; (N,).
    """

    def __init__(self, listing: Listing, split: Split) -> None:
        """Choose the pictures; none is read yet.

        Args:
            listing: Of all splits; it is shared, not copied.
            split: Which of them.
        """
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

    def read(self, index: int) -> Picture:
        """The picture at ``index``, which is in memory."""
        images = self._listing.images
        assert images is not None
        return self._picture(index, images[int(self._rows[index])].clone())

    def _picture(self, index: int, image: Tensor) -> Picture:
        mask = self._listing.masks(int(self._rows[index]))
        return Picture(image, self.labels[index], self.boxes(index), self.paths[index], mask)


class ListedFiles(ListedSource):
    """One split of a listing whose pictures are files."""

    def read(self, index: int) -> Picture:
        """Decode the picture at ``index``."""
        return self.read_with(index, read_image)

    def read_with(self, index: int, decode: Decode) -> Picture:
        """As ``read``, with the image that ``decode`` makes of the file; all else is the same."""
        path, contents = self.paths[index], self._listing.contents
        if contents is not None:  # their masks are as large as the pictures
            return self._picture(index, decode(path, data=contents(int(self._rows[index]))))
        picture = self._picture(index, decode(path))
        if picture.mask is None:
            return picture
        return picture._replace(mask=_as_large_as(path, picture.mask, picture.image))


def source_of(listing: Listing, split: Split) -> ListedSource:
    """The source of one split of a listing."""
    return ListedFiles(listing, split) if listing.images is None else ListedSource(listing, split)


def _as_large_as(path: str, mask: Tensor, image: Tensor) -> Tensor:
    """A mask at the resolution of its picture, should it have been drawn at another.

    Args:
        path: The file of the picture.
        mask: (H, W), or smaller or larger.
        image: The picture as it was decoded, (3, h, w), perhaps turned by its EXIF, or smaller.

    Raises:
        CamtrainValueError: The mask was not turned as the picture is.
    """
    with Image.open(path) as file:
        width, height = file.size
    h, w = image.shape[-2:]
    is_turned = (h < w and height > width) or (h > w and height < width)
    size_hw = (width, height) if is_turned else (height, width)
    if mask.shape == size_hw:
        return mask
    if mask.shape == size_hw[::-1]:
        raise CamtrainValueError(
            f"The mask of {path} must have the height and width of its picture, {size_hw}, got "
            f"{tuple(mask.shape)}; turn the mask as the EXIF turns the picture, or change "
            "--data.exif."
        )
    resized = cv2.resize(mask.numpy(), size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    return torch.from_numpy(resized)
