"""The sources of pictures by name, and the options that each of them takes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from camtrain.data.classes import with_classes
from camtrain.data.digits import ClutteredDigits
from camtrain.data.readers.csv_list import csv_listing
from camtrain.data.readers.cub import cub_listing
from camtrain.data.readers.folder import data_folder, folder_listing
from camtrain.data.readers.imagenet import imagenet_listing
from camtrain.data.readers.inria import inria_listing
from camtrain.data.readers.mnist import mnist_listing
from camtrain.data.readers.places import places205_listing, places365_listing
from camtrain.data.readers.wsol import wsol_listing
from camtrain.data.shards.index import shards_listing
from camtrain.data.source import ListedSource, Listing, Source, Split, source_of
from camtrain.data.splits import with_splits
from camtrain.errors import CamtrainValueError


@dataclass(frozen=True)
class SourceOptions:
    """What the sources need to know, each taking what concerns it.

    Attributes:
        root: The data folder; the digits need none.
        seed: Of the division into splits, and of the drawn digits.
        val_fraction: Part of each class for val, where the data has none.
        test_fraction: Part of each class for test, where the data has no splits at all.
        split_file: The splits of an earlier run, see ``with_splits``; None: divided by the seed.
        lengths: Numbers of drawn digits in train, val, test.
        class_names: The class list of a trained network; None: that of the data.
        metadata: Of ``wsol``: the folder with the lists; None: ``root/metadata``.
        shards_cache: Of ``shards`` behind a URL: the folder that keeps them; None: one in the
            user's cache folder.
        shards_cache_gb: The most that it may hold, in 10^9 bytes.
    """

    root: str | os.PathLike[str] | None = None
    seed: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    split_file: str | os.PathLike[str] | None = None
    lengths: tuple[int, int, int] = (6000, 1000, 1000)
    class_names: Sequence[str] | None = None
    metadata: str | os.PathLike[str] | None = None
    shards_cache: str | os.PathLike[str] | None = None
    shards_cache_gb: float = 100.0


Builder = Callable[[SourceOptions], dict[Split, Source]]


def _listed(read: Callable[[Any, SourceOptions], Listing], name: str) -> Builder:
    """The builder of a data set that lies on disk, from the function that lists its pictures."""

    def build(options: SourceOptions) -> dict[Split, Source]:
        if options.root is None:
            raise CamtrainValueError(
                f"The source {name} needs a data folder, got none; give --data.root PATH."
            )
        place: str | Path = os.fspath(options.root)  # of shards perhaps a URL
        if name != "shards":
            place = data_folder(place, or_file=name == "csv")
        listing = with_splits(
            read(place, options),
            seed=options.seed,
            val_fraction=options.val_fraction,
            test_fraction=options.test_fraction,
            split_file=options.split_file,
        )
        listing = with_classes(listing, options.class_names)
        present = [split for split in get_args(Split) if len(listing.rows_of(split))]
        return {split: source_of(listing, split) for split in present}

    return build


def _digits(options: SourceOptions) -> dict[Split, Source]:
    lengths = zip(get_args(Split), options.lengths, strict=True)
    return {
        split: ClutteredDigits(split, length=length, seed=options.seed) for split, length in lengths
    }


_LISTINGS: dict[str, Callable[[Any, SourceOptions], Listing]] = {
    "folder": lambda root, _: folder_listing(root),
    "csv": lambda root, _: csv_listing(root),
    "imagenet": lambda root, _: imagenet_listing(root),
    "places365": lambda root, _: places365_listing(root),
    "places205": lambda root, _: places205_listing(root),
    "cub": lambda root, _: cub_listing(root),
    "inria": lambda root, _: inria_listing(root),
    "mnist": lambda root, _: mnist_listing(root),
    "wsol": lambda root, options: wsol_listing(root, options.metadata, options.class_names),
    "shards": lambda root, options: shards_listing(
        root, cache=options.shards_cache, cache_gb=options.shards_cache_gb
    ),
}
SOURCES: dict[str, Builder] = {
    **{name: _listed(read, name) for name, read in _LISTINGS.items()},
    "digits": _digits,
}


def make_sources(name: str, options: SourceOptions) -> dict[Split, Source]:
    """All splits of the named source, in the order train, val, test; the folder is read once.

    Args:
        name: A key of ``SOURCES``.
        options: What the source needs to know.

    Raises:
        CamtrainValueError: There is no source of this name, or the data contradicts itself.
        CamtrainFileNotFoundError: The data folder or a file of it does not exist, or holds no
            images.
    """
    if name not in SOURCES:
        raise CamtrainValueError(
            f"The data source must be one of {', '.join(SOURCES)}, got {name!r}; "
            "choose with --data.source."
        )
    return SOURCES[name](options)


def is_divided(sources: dict[Split, Source]) -> bool:
    """Whether the pictures were divided into splits by the seed, or by an earlier run."""
    return any(isinstance(one, ListedSource) and one.is_divided for one in sources.values())


# By name, as in the data module: what is said of them.
_TEXTS = {
    "seed": "of the division into splits",
    "val_fraction": "part of each class for validation, where the source has no such split",
    "test_fraction": "part of each class for test, where the source has no splits",
    "split_file": "split.csv of a run, which says the split of each picture",
    "metadata": "of wsol: the folder of its lists (default root/metadata)",
    "shards_cache": "of shards behind a URL: the folder that keeps them",
    "shards_cache_gb": "the most that it may hold, in 10^9 bytes",
}


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data folder and what is to be known to read it."""
    defaults = SourceOptions()
    parser.add_argument("path", nargs="?", metavar="FOLDER", help="the data folder")
    data = parser.add_argument_group("the data, as camtrain fit reads it by --data.OPTION")
    sources = f"one of {', '.join(SOURCES)} (default folder)"
    data.add_argument("--source", default="folder", metavar="NAME", help=sources)
    for name, text in _TEXTS.items():
        default = getattr(defaults, name)
        data.add_argument(
            f"--{name}",
            type=str if default is None else type(default),
            default=default,
            metavar="PATH" if default is None else "VALUE",
            help=text if default is None else f"{text} (default {default})",
        )


def source_options(settings: argparse.Namespace) -> SourceOptions:
    """What was given of ``add_source_arguments``."""
    return SourceOptions(root=settings.path, **{name: getattr(settings, name) for name in _TEXTS})
