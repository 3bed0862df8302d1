"""The sources of pictures by name, and the options that each of them takes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, get_args

from camtrain.arguments import metavar_of
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
from camtrain.data.shards.read import shards_listing
from camtrain.data.source import ListedFiles, ListedSource, Listing, Source, Split, source_of
from camtrain.data.splits import with_splits
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError


@dataclass(frozen=True)
class SourceOptions:
    """What the sources need to know; ``SOURCES`` says which options each of them takes.

    Attributes:
        root: The data folder; the digits need none.
        lengths: Numbers of drawn digits in train, val, test.
        class_names: The class list of a trained network; None: that of the data.

    The other options are described by the help texts beside them.
    """

    root: str | os.PathLike[str] | None = None
    seed: int = field(default=0, metadata={"help": "of the division into splits"})
    val_fraction: float = field(
        default=0.15,
        metadata={"help": "part of each class for validation, where the source has no such split"},
    )
    test_fraction: float = field(
        default=0.15,
        metadata={"help": "part of each class for test, where the source has no splits"},
    )
    split_file: str | os.PathLike[str] | None = field(
        default=None, metadata={"help": "split.csv of a run, which says the split of each picture"}
    )
    lengths: tuple[int, int, int] = (6000, 1000, 1000)
    class_names: Sequence[str] | None = None
    metadata: str | os.PathLike[str] | None = field(
        default=None, metadata={"help": "of wsol: the folder of its lists (default root/metadata)"}
    )
    shards_cache: str | os.PathLike[str] | None = field(
        default=None, metadata={"help": "of shards behind a URL: the folder that keeps them"}
    )
    shards_cache_gb: float = field(
        default=100.0, metadata={"help": "the most that it may hold, in 10^9 bytes"}
    )

    def named(self, names: Sequence[str]) -> dict[str, Any]:
        """The values of the options with these names."""
        return {name: getattr(self, name) for name in names}


class SourceKind(NamedTuple):
    """A source and the options it takes.

    Attributes:
        read: Lists the pictures of a data folder; None for drawn digits.
        options: Names in ``SourceOptions`` of what ``read`` takes beside the folder. Every data set
            on disk also takes ``root``, ``class_names`` and the options of ``with_splits``.
    """

    read: Callable[..., Listing] | None
    options: tuple[str, ...] = ()


SOURCES: dict[str, SourceKind] = {
    "folder": SourceKind(folder_listing),
    "csv": SourceKind(csv_listing),
    "imagenet": SourceKind(imagenet_listing),
    "places365": SourceKind(places365_listing),
    "places205": SourceKind(places205_listing),
    "cub": SourceKind(cub_listing),
    "inria": SourceKind(inria_listing),
    "mnist": SourceKind(mnist_listing),
    "wsol": SourceKind(wsol_listing, ("metadata", "class_names")),
    "shards": SourceKind(shards_listing, ("shards_cache", "shards_cache_gb")),
    "digits": SourceKind(None, ("seed", "lengths")),
}
_DIVISION = ("seed", "val_fraction", "test_fraction", "split_file")


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
    read, names = SOURCES[name]
    if read is None:
        return {
            split: ClutteredDigits(split, length=length, seed=options.seed)
            for split, length in zip(get_args(Split), options.lengths, strict=True)
        }
    listing = _listing(name, read, options.named(names), options)
    return {split: source_of(listing, split) for split in listing.rows_by_split()}


def _listing(
    name: str, read: Callable[..., Listing], settings: dict[str, Any], options: SourceOptions
) -> Listing:
    """The pictures of a data set on disk, with splits and classes decided."""
    if options.root is None:
        raise CamtrainValueError(
            f"The source {name} needs a data folder, got none; give --data.root PATH."
        )
    place: str | Path = os.fspath(options.root)  # of shards perhaps a URL
    if name != "shards":
        place = data_folder(place, or_file=name == "csv")
    listing = with_splits(read(place, **settings), **options.named(_DIVISION))
    return with_classes(listing, options.class_names)


class ImageFolder(ListedFiles):
    """One split of pictures in folders, see ``folder_listing``.

    Where ``root/train`` exists without ``root/val``, val is split off train, stratified and seeded.
    The classes are the folders of train (where there is no train, those of the split itself),
    sorted; purely numeric names sort as numbers.

    Args:
        root: The data folder.
        split: ``train``, ``val`` or ``test``.
        seed: Of the division into splits.
        val_fraction: Part of each class for val, where val is split off.
        test_fraction: Part of each class for test, for ``root/CLASS/*``.
        class_names: The class list of a trained network, for a folder that may lack some of its
            classes.

    Raises:
        CamtrainFileNotFoundError: No such folder, no images in it, or no such split.
        CamtrainValueError: Fewer than two classes, a class without images in train, a class unknown
            to train, or damaged boxes.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Split,
        *,
        seed: int = 0,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """List the pictures; no picture is read yet."""
        options = SourceOptions(root, seed, val_fraction, test_fraction, class_names=class_names)
        listing = _listing("folder", folder_listing, {}, options)
        splits = list(listing.rows_by_split())
        if split not in splits:
            raise CamtrainFileNotFoundError(
                f"{listing.root} has no {split} split, it has {', '.join(splits)}; add the folder "
                f"{listing.root / split}, or choose another --data.root."
            )
        super().__init__(listing, split)


def is_divided(sources: dict[Split, Source]) -> bool:
    """Whether the pictures were divided into splits by the seed, or by an earlier run."""
    return any(
        isinstance(source, ListedSource) and source.is_divided for source in sources.values()
    )


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data folder and the options to read it, spelled as in the data module."""
    parser.add_argument("path", nargs="?", metavar="FOLDER", help="the data folder")
    data = parser.add_argument_group("the data, as camtrain fit reads it by --data.OPTION")
    sources = f"one of {', '.join(SOURCES)} (default folder)"
    data.add_argument("--source", default="folder", metavar="NAME", help=sources)
    for option in _OFFERED:
        default, text = option.default, option.metadata["help"]
        kind = "PATH" if default is None else metavar_of(type(default))
        data.add_argument(
            f"--{option.name}",
            type=str if default is None else type(default),
            default=default,
            metavar="0..1" if "fraction" in option.name else kind,
            help=text if default is None else f"{text} (default {default})",
        )


def source_options(settings: argparse.Namespace) -> SourceOptions:
    """The options given with ``add_source_arguments``."""
    given = {option.name: getattr(settings, option.name) for option in _OFFERED}
    return SourceOptions(root=settings.path, **given)


_OFFERED = [option for option in fields(SourceOptions) if "help" in option.metadata]
