"""The inputs of a predictor: files, folders, patterns, PIL images, arrays, tensors."""

from __future__ import annotations

import glob
import os
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camtrain.data.decoding import IMAGE_SUFFIXES, read_image, to_rgb
from camtrain.data.tree import FolderFiles, list_below
from camtrain.errors import (
    CamtrainError,
    CamtrainFileNotFoundError,
    CamtrainTypeError,
    CamtrainValueError,
    one_line,
)
from camtrain.files import open_regular

Input = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # pathlib makes one slash of two


@dataclass(frozen=True)
class StoredPicture:
    """A picture in a shard: its path, and a function that reads the content of its file."""

    path: str
    read: Callable[[], bytes]

    def __str__(self) -> str:
        """The path."""
        return self.path


class _StoredPictures(Sequence[StoredPicture]):
    """All pictures of a folder of shards."""

    def __init__(self, folder: str) -> None:
        from camtrain.data.shards.read import shards_listing  # late: files alone need no shards

        self._folder = folder
        self._listing = shards_listing(folder, shards_cache=None, shards_cache_gb=0)

    def __len__(self) -> int:
        return len(self._listing.paths)

    def __getitem__(self, row: Any) -> Any:  # noqa: ANN401
        assert self._listing.contents is not None
        path = os.path.join(self._folder, self._listing.paths[row])
        return StoredPicture(path, partial(self._listing.contents, row))


class _ListedPaths:
    """The paths in the lines of a text file; one of them is in memory at a time.

    Attributes:
        root: The absolute folder that holds all of them.
    """

    def __init__(self, name: str, lines: IO[bytes]) -> None:
        self._lines, self._count, folders = lines, 0, set[str]()
        weakref.finalize(self, lines.close)
        for path in self:
            self._count += 1
            if (folder := os.path.dirname(os.path.abspath(path))) not in folders:
                folders = {os.path.commonpath([*folders, folder]), folder}
        if not folders:
            raise CamtrainValueError(
                f"{name} holds no path; write the path of a picture in each line."
            )
        self.root = os.path.commonpath(folders)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        self._lines.seek(0)
        for line in self._lines:
            if path := line.rstrip(b"\r\n"):
                yield os.fsdecode(path)


class ExpandedInputs:
    """Inputs whose folders and patterns are expanded already; ``expand_inputs`` keeps them.

    Attributes:
        skipped: The files of the folders that are no pictures, by their names.
        root: The absolute folder that holds all the pictures; of one folder, that folder.
    """

    def __init__(
        self, paths: Iterable[str], *, without: Sequence[Path] = (), reads_stdin: bool = False
    ) -> None:
        """Search for pictures.

        Args:
            paths: Files, folders, patterns, folders of shards, ``.txt`` files of paths, or ``-``
                for the lines of standard input.
            without: Absolute paths of folders whose files are left out.
            reads_stdin: Whether this process has a standard input of its own.

        Raises:
            CamtrainFileNotFoundError: A path does not exist, a folder holds no pictures, or no file
                fits a pattern.
            CamtrainValueError: A path is an address, or a list of paths is empty.
        """
        self.skipped: list[str] = []
        self._parts: list[Sequence[Any] | _ListedPaths] = []
        self._pick: Callable[[Iterable[Input]], Iterator[Input]] = iter
        folders: set[str] = set()
        for path in paths:
            if path == "-" or (path.lower().endswith(".txt") and os.path.isfile(path)):
                listed = _ListedPaths(path, _open_list(path, reads_stdin=reads_stdin))
                self._parts.append(listed)
                folders.add(listed.root)
            elif os.path.isfile(os.path.join(path, "index.json")):
                self._parts.append(_StoredPictures(path))
                folders.add(path)
            else:
                pictures = self._search(path, set(without))
                self._parts.append(pictures)
                is_folder = os.path.isdir(path)
                folders |= {path} if is_folder else set(map(os.path.dirname, pictures))
        self.root = Path(os.path.commonpath(list(map(os.path.abspath, folders))))

    def _search(self, path: str, without: set[Path]) -> list[str]:
        """The pictures of a folder or a pattern, or the path itself."""

        def outside(files: Iterable[str]) -> list[str]:
            return [f for f in files if without.isdisjoint(Path(f).absolute().parents)]

        pictures, unread = map(outside, _listed_files(path))
        if not pictures:
            _check_path(path)
        self.skipped += unread
        return pictures or [path]

    def picked(self, pick: Callable[[Iterable[Input]], Iterator[Input]]) -> Self:
        """The inputs that a function picks of them, which is called when they are asked for."""
        inputs = copy(self)
        inputs._pick = pick
        return inputs

    def __len__(self) -> int:
        """How many there are, picked or not."""
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[Input]:
        """The inputs one by one."""
        return self._pick(chain.from_iterable(self._parts))


def _open_list(path: str, *, reads_stdin: bool) -> IO[bytes]:
    """A list of paths that can be read several times."""
    if path != "-":
        return open_regular(path)
    if not reads_stdin:
        raise CamtrainValueError(
            "Standard input reaches one process, and torchrun has started several; write the paths "
            "to a .txt file, and give that."
        )
    lines = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the inputs
    shutil.copyfileobj(sys.stdin.buffer, lines)
    return lines


def expand_inputs(inputs: Input | Iterable[Input]) -> Iterator[Input]:
    """The inputs one by one; batches, folders and patterns are replaced by their pictures.

    A folder stands for the pictures in it and below it, sorted, without the hidden ones. A pattern
    holds ``*``, ``?`` or ``[`` and is not the name of a file; ``**`` goes down any number of
    folders. A folder without pictures, and a pattern that no file fits, are returned as they are;
    ``pixels_of`` raises for them.
    """
    if isinstance(inputs, ExpandedInputs):
        yield from inputs
        return
    is_batch = isinstance(inputs, Tensor) and inputs.ndim == 4
    singles = (str, bytes, os.PathLike, Image.Image, np.ndarray, Tensor)
    is_single = isinstance(inputs, singles) and not is_batch
    is_many = isinstance(inputs, Iterable) and not is_single
    for item in cast("Iterable[Input]", inputs if is_many else [inputs]):
        if isinstance(item, os.PathLike) and not isinstance(item, Path):  # such as os.DirEntry
            item = os.fsdecode(item)
        if isinstance(item, (str, Path)) and (files := _listed_files(str(item)).pictures):
            yield from files
        else:
            yield item


def copy_input(item: Input) -> Input | CamtrainError:
    """A copy of a picture in memory, since the caller may change it; a path is returned as it is.

    If a picture cannot be copied, the error is returned, and ``pixels_of`` raises it.
    """
    if isinstance(item, Image.Image):
        try:
            return item.copy()
        except Exception as error:  # see `decode_image`
            return _pil_error(error)
    if isinstance(item, np.ndarray):
        return item.copy()
    return item.clone() if isinstance(item, Tensor) else item


def pixels_of(item: object) -> Tensor:
    """The picture of an input, (C, H, W), uint8 or float32 in [0, 1].

    Raises:
        CamtrainTypeError: The input has another type.
        CamtrainValueError: An address such as ``https://...``, a picture that cannot be read, or
            pixels of another shape or range.
        CamtrainFileNotFoundError: A path that does not exist, a folder without pictures, or a
            pattern that nothing fits.
    """
    if isinstance(item, (str, Path)):
        _check_path(str(item))
        return read_image(item)
    if isinstance(item, StoredPicture):
        return read_image(item.path, data=item.read())
    if isinstance(item, CamtrainError):
        raise item
    if isinstance(item, Image.Image):
        try:
            item = np.asarray(to_rgb(item))
        except Exception as error:  # see `decode_image`
            raise _pil_error(error) from error
    if not isinstance(item, (np.ndarray, Tensor)):
        raise CamtrainTypeError(
            "Each input must be a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W), got "
            f"{type(item).__name__}."
        )
    if isinstance(item, Tensor) and (item.is_meta or item.layout != torch.strided):
        raise _pixels_error(item)
    pixels = item.detach().cpu() if isinstance(item, Tensor) else _from_array(item)
    is_float = pixels.is_floating_point()
    is_picture = pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.numel() > 0
    if not is_picture or not (is_float or pixels.dtype == torch.uint8):
        raise _pixels_error(item)
    pixels = pixels.float() if is_float else pixels
    if is_float and not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN fails too
        raise CamtrainValueError(
            "Float pixels must lie in [0, 1], raw and never normalized, got "
            f"{pixels.min().item():.3g} to {pixels.max().item():.3g}."
        )
    return pixels


def _pil_error(error: Exception) -> CamtrainValueError:
    """The error for a PIL image that cannot be read because of ``error``."""
    return CamtrainValueError(
        f"The PIL image cannot be read ({one_line(error, with_type=False)}); open its file anew, "
        "or leave it out."
    )


def _listed_files(path: str) -> FolderFiles:
    """The files in a folder, or those that fit a pattern; empty for any other path."""
    if os.path.isdir(path):
        return list_below(path)
    if os.path.exists(path) or not glob.has_magic(path):
        return FolderFiles([], [])
    files = glob.glob(path, recursive=True)
    return FolderFiles(sorted(file for file in files if os.path.isfile(file)), [])


def _check_path(path: str) -> None:
    """Raise for an address, for a folder, and for a pattern that no file fits."""
    if _ADDRESS.match(path):
        raise CamtrainValueError(
            f"{path} is an address, and camtrain reads only files; download it first."
        )
    if os.path.isdir(path):
        raise CamtrainFileNotFoundError(
            f"The folder {path} holds no pictures ({' '.join(IMAGE_SUFFIXES)}); check the path."
        )
    if glob.has_magic(path) and not os.path.exists(path):
        raise CamtrainFileNotFoundError(f"No file fits the pattern {path}; check the path.")
    if not os.path.exists(path):
        raise CamtrainFileNotFoundError(f"The image {path} does not exist; check the path.")


def _from_array(array: NDArray[Any]) -> Tensor:
    """A tensor (C, H, W) with the pixels of an array (H, W, C) or (H, W)."""
    if array.ndim not in (2, 3) or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise _pixels_error(array)
    dtype = np.uint8 if array.dtype == np.uint8 else np.float32
    # A copy, since torch takes neither read-only memory nor the negative strides of BGR[..., ::-1].
    pixels = torch.from_numpy(np.array(array, dtype, order="C"))
    return pixels[None] if array.ndim == 2 else pixels.permute(2, 0, 1)


def _pixels_error(pixels: NDArray[Any] | Tensor) -> CamtrainValueError:
    """The error for pixels of a wrong shape or type."""
    return CamtrainValueError(
        "Pixels must be arrays (H, W, 3) or (H, W), or tensors (3, H, W) or (1, H, W), uint8 "
        f"0..255 or float 0..1, got {type(pixels).__name__} of shape {tuple(pixels.shape)} and "
        f"type {pixels.dtype}."
    )
