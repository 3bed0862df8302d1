"""What every source of labelled pictures looks like to the rest of the project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from camtrain.data.decoding import Decode


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
