"""Millions of paths in little memory."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from camtrain.errors import CamtrainValueError


def path_in(folder: str, path: str) -> str:
    """A path in one spelling: relative to a folder where it lies below it.

    Args:
        folder: Absolute.
        path: Relative to it or absolute; "" stays "".

    Example:
        >>> path_in("/photos", "./cat/1.jpg"), path_in("/photos", "/photos/cat/1.jpg")
        ('cat/1.jpg', 'cat/1.jpg')
    """
    return os.path.normpath(path).removeprefix(os.path.join(folder, "")) if path else ""


def utf8_lines(file: Path) -> Iterator[str]:
    """The lines of a text file with their ends, for ``csv``; a byte order mark is passed over."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CamtrainValueError(
            f"{file}, line {line}: the text must be UTF-8, got the byte "
            f"0x{error.object[error.start]:02x}; save the file as UTF-8."
        ) from None
    return io.StringIO(text, newline="")


class PathList(Sequence[str]):
    """Paths in one buffer of bytes: some 40 bytes per picture of ImageNet, and shared by its parts.

    Args:
        buffer: The paths one after another, as the file system spells them.
        starts: (N,) int64, where each path begins in ``buffer``.
        ends: (N,) int64, where it ends.
        folder: Put before every path that is not absolute.

    Example:
        >>> paths = PathList.of(["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"])
        >>> list(paths.take(np.array([2, 0])).below("photos"))
        ['photos/dog/1.jpg', 'photos/cat/1.jpg']
    """

    def __init__(
        self, buffer: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64], folder: str = ""
    ) -> None:
        self.buffer = buffer
        self.starts = starts
        self.ends = ends
        self.folder = folder

    @classmethod
    def of(cls, paths: Iterable[str]) -> PathList:
        """The same paths."""
        encoded = [os.fsencode(path) for path in paths]
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), dtype=np.int64)
        return cls.ending_at(b"".join(encoded), ends)

    @classmethod
    def ending_at(cls, buffer: bytes, ends: NDArray[np.int64]) -> PathList:
        """Paths that fill the buffer without gaps."""
        return cls(buffer, np.concatenate([np.zeros(1, np.int64), ends])[:-1], ends)

    def take(self, rows: NDArray[np.int64]) -> PathList:
        """The paths of some rows, in their order; the buffer is not copied."""
        return PathList(self.buffer, self.starts[rows], self.ends[rows], self.folder)

    def below(self, folder: str | os.PathLike[str]) -> PathList:
        """The paths as seen from where ``folder`` is."""
        return PathList(self.buffer, self.starts, self.ends, os.fspath(folder))

    def __eq__(self, other: object) -> bool:
        """Whether another sequence holds the same paths."""
        return isinstance(other, Sequence) and list(self) == list(other)

    def __len__(self) -> int:
        """The number of paths."""
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> PathList: ...

    def __getitem__(self, index: int | slice) -> str | PathList:
        """The path at ``index``, or the paths of a slice."""
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        path = os.fsdecode(self.buffer[self.starts[index] : self.ends[index]])
        return os.path.join(self.folder, path) if self.folder else path
