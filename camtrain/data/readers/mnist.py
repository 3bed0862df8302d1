"""MNIST, and whatever else comes in its idx files (LeCun et al., 1998)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from camtrain.data.lists import PathList
from camtrain.data.readers.download import downloading
from camtrain.data.source import Listing, Split, split_number
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError

_FOLDERS = ("", "MNIST/raw", "raw")
_PARTS: dict[Split, str] = {"train": "train", "test": "t10k"}
_KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")


def mnist_listing(root: Path) -> Listing:
    """The pictures of ``train-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte`` and so on.

    The four files, plain or ``.gz``, lie in ``root``, in ``root/raw`` or, where torchvision puts
    them, in ``root/MNIST/raw``. If there is none of them, torchvision downloads them. The pictures
    are gray and kept in memory. The data set has no val split: it is split off train.
    """
    if not any(_find_file(root, f"{part}-images-idx3-ubyte") for part in _PARTS.values()):
        _download(root)
    images, labels, splits, paths = [], [], [], []
    for split, part in _PARTS.items():
        pictures = _read_idx(root, f"{part}-images-idx3-ubyte", dimensions=3)
        numbers = _read_idx(root, f"{part}-labels-idx1-ubyte", dimensions=1)
        if len(pictures) != len(numbers):
            raise CamtrainValueError(
                f"The {split} files of {root} must hold as many labels as pictures, got "
                f"{len(numbers)} and {len(pictures)}; download them again."
            )
        images.append(pictures)
        labels.append(numbers.astype(np.int64))
        splits += [split_number(split)] * len(numbers)
        paths += [f"{part}/{place:05d}" for place in range(len(numbers))]
    if images[0].shape[1:] != images[1].shape[1:]:
        raise CamtrainValueError(
            f"Pictures of train and test in {root} must have one size, got {images[0].shape[1:]} "
            f"and {images[1].shape[1:]}; download the files again."
        )
    all_labels = np.concatenate(labels)
    return Listing(
        root=root,
        paths=PathList.of(paths),
        labels=all_labels,
        splits=np.array(splits, np.int8),
        class_names=tuple(str(number) for number in range(int(all_labels.max()) + 1)),
        has_class_list=True,
        images=torch.from_numpy(np.concatenate(images)[:, None]),
    )


def _download(root: Path) -> None:
    """Download the four files with torchvision."""
    files = [f"{part}-{kind}" for part in _PARTS.values() for kind in _KINDS]
    with downloading(root, "the files of MNIST", f"put {', '.join(files)}, plain or .gz, there"):
        from torchvision.datasets import MNIST  # takes a second to import

        MNIST(root, train=True, download=True)


def _find_file(root: Path, name: str) -> Path | None:
    """The path of one of the four files, plain or ``.gz``; None if it is missing."""
    files = (root / folder / f"{name}{end}" for folder in _FOLDERS for end in ("", ".gz"))
    return next((file for file in files if file.is_file()), None)


def _read_idx(root: Path, name: str, *, dimensions: int) -> NDArray[np.uint8]:
    """Read the array of an idx file.

    The file holds two zeros, the type 8 (uint8), the number of dimensions, their sizes (32-bit,
    high byte first) and the values.
    """
    file = _find_file(root, name)
    if file is None:
        raise CamtrainFileNotFoundError(
            f"{root} lacks {name} or {name}.gz, and holds others of the four files of MNIST; put "
            "it there, or point --data.root at an empty folder to download them."
        )
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise CamtrainValueError(
            f"{file} cannot be unpacked ({error}); download it again."
        ) from error
    start = 4 + 4 * dimensions
    header = content[:start].ljust(start, b"\0")
    sizes = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != start + math.prod(sizes):
        raise CamtrainValueError(
            f"{file} must be an idx file of {dimensions} dimensions of bytes, but begins with "
            f"{content[:4].hex()} and is {len(content)} bytes long; download it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)
