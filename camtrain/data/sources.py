"""The sources by name, as the command line spells them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

from camtrain.data.digits import ClutteredDigits
from camtrain.data.folder import ImageFolder, available_splits
from camtrain.data.source import Source
from camtrain.data.split import Split
from camtrain.errors import CamtrainValueError


@dataclass(frozen=True)
class SourceOptions:
    """What the sources need to know, each taking what concerns it.

    Attributes:
        root: The data folder; the digits need none.
        seed: Of the division into splits, and of the drawn digits.
        val_fraction: Part of each class for val, where the data has none.
        test_fraction: Part of each class for test, where the data has no splits at all.
        lengths: Numbers of drawn digits in train, val, test.
        class_names: The class list of a trained network; None: that of the data.
    """

    root: str | os.PathLike[str] | None = None
    seed: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    lengths: tuple[int, int, int] = (6000, 1000, 1000)
    class_names: Sequence[str] | None = None


class _Kind(NamedTuple):
    splits: Callable[[SourceOptions], tuple[Split, ...]]
    build: Callable[[Split, SourceOptions], Source]


def _folder_root(options: SourceOptions) -> str | os.PathLike[str]:
    if options.root is None:
        raise CamtrainValueError(
            "The source folder needs a data folder, got none; give --data.root PATH."
        )
    return options.root


def _folder_splits(options: SourceOptions) -> tuple[Split, ...]:
    return available_splits(
        _folder_root(options),
        val_fraction=options.val_fraction,
        test_fraction=options.test_fraction,
    )


def _folder(split: Split, options: SourceOptions) -> ImageFolder:
    return ImageFolder(
        _folder_root(options),
        split,
        seed=options.seed,
        val_fraction=options.val_fraction,
        test_fraction=options.test_fraction,
        class_names=options.class_names,
    )


def _digits_splits(options: SourceOptions) -> tuple[Split, ...]:
    return get_args(Split)


def _digits(split: Split, options: SourceOptions) -> ClutteredDigits:
    length = dict(zip(get_args(Split), options.lengths, strict=True))[split]
    return ClutteredDigits(split, length=length, seed=options.seed)


SOURCES = {
    "folder": _Kind(_folder_splits, _folder),
    "digits": _Kind(_digits_splits, _digits),
}


def source_splits(name: str, options: SourceOptions) -> tuple[Split, ...]:
    """The splits that a source has, in the order train, val, test.

    Raises:
        CamtrainValueError: There is no source of this name.
        CamtrainFileNotFoundError: The data folder does not exist or holds no images.
    """
    return _kind(name).splits(options)


def make_source(name: str, split: Split, options: SourceOptions) -> Source:
    """One split of the named source.

    Args:
        name: A key of ``SOURCES``.
        split: Among ``source_splits(name, options)``.
        options: What the source needs to know.

    Raises:
        CamtrainValueError: There is no source of this name, or the data contradicts itself.
        CamtrainFileNotFoundError: The data folder or the split does not exist, or holds no images.
    """
    return _kind(name).build(split, options)


def _kind(name: str) -> _Kind:
    if name not in SOURCES:
        raise CamtrainValueError(
            f"The data source must be one of {', '.join(SOURCES)}, got {name!r}; "
            "choose with --data.source."
        )
    return SOURCES[name]
