"""The sources of pictures by name, and the options that each of them takes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

from camtrain.arguments import metavar_of
from camtrain.data.classes import with_classes
from camtrain.data.digits import ClutteredDigits
from camtrain.data.readers.csv_list import csv_listing
from camtrain.data.readers.cub import cub_listing
from camtrain.data.readers.folder import data_folder, folder_listing
from camtrain.data.readers.hf import hf_listing
from camtrain.data.readers.imagenet import imagenet_listing
from camtrain.data.readers.inria import inria_listing
from camtrain.data.readers.mnist import mnist_listing
from camtrain.data.readers.pets import pets_listing
from camtrain.data.readers.places import places205_listing, places365_listing
from camtrain.data.readers.wsol import wsol_listing
from camtrain.data.shards.read import shards_listing
from camtrain.data.source import ListedFiles, ListedSource, Listing, Source, Split, source_of
from camtrain.data.splits import with_splits
from camtrain.errors import CamtrainError, CamtrainFileNotFoundError, CamtrainValueError


@dataclass(frozen=True)
class SourceOptions:
    """What the sources need to know; ``SOURCES`` says which options each of them takes.

    Those with a help text are also options of ``check-data`` and ``shards``.
    """

    root: str | os.PathLike[str] | None = None  # the data folder; the digits need none
    seed: Annotated[int, "of the division into splits"] = 0
    val_fraction: Annotated[
        float, "part of each class for validation, where the source has no such split"
    ] = 0.15
    test_fraction: Annotated[
        float, "part of each class for test, where the source has no splits"
    ] = 0.15
    split_file: Annotated[
        str | os.PathLike[str] | None, "split.csv of a run, which says the split of each picture"
    ] = None
    lengths: tuple[int, int, int] = (6000, 1000, 1000)  # drawn digits in train, val, test
    class_names: Sequence[str] | None = None  # of a trained network; None: those of the data
    path_column: Annotated[str, "of csv, hf: name of the column of paths or pictures"] = "path"
    label_column: Annotated[str, "of csv, hf: name of the column of labels"] = "label"
    objects_column: Annotated[str | None, "of hf: name of the column of objects with boxes"] = None
    head_boxes: Annotated[bool, "of pets: boxes of the heads, not of the animals"] = False
    metadata: Annotated[
        str | os.PathLike[str] | None, "of wsol: the folder of its lists (default root/metadata)"
    ] = None
    shards_cache: Annotated[
        str | os.PathLike[str] | None, "of shards behind a URL: the folder that keeps them"
    ] = None
    shards_cache_gb: Annotated[float, "the most that it may hold, in 10^9 bytes"] = 100.0

    def values_of(self, names: Sequence[str]) -> dict[str, Any]:
        """The values of the options with these names."""
        return {name: getattr(self, name) for name in names}


_HELP_TEXTS = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(SourceOptions, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}


class SourceKind(NamedTuple):
    """A source and the options it takes.

    Every data set on disk also takes ``root``, ``class_names`` and the options of ``with_splits``.
    """

    read: Callable[..., Listing] | None  # lists the pictures of a data folder; None: drawn digits
    options: tuple[str, ...] = ()  # of SourceOptions, what `read` takes beside the folder
    is_downloaded: bool = False  # where the folder does not exist


SOURCES: dict[str, SourceKind] = {
    "folder": SourceKind(folder_listing),
    "csv": SourceKind(csv_listing, ("path_column", "label_column")),
    "imagenet": SourceKind(imagenet_listing),
    "places365": SourceKind(places365_listing),
    "places205": SourceKind(places205_listing),
    "cub": SourceKind(cub_listing),
    "inria": SourceKind(inria_listing),
    "mnist": SourceKind(mnist_listing, is_downloaded=True),
    "pets": SourceKind(pets_listing, ("head_boxes",), is_downloaded=True),
    "wsol": SourceKind(wsol_listing, ("metadata", "class_names")),
    "hf": SourceKind(hf_listing, ("path_column", "label_column", "objects_column")),
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
    if name == "digits":
        return {
            split: ClutteredDigits(split, length=length, seed=options.seed)
            for split, length in zip(get_args(Split), options.lengths, strict=True)
        }
    listing = _listing(name, options)
    return {split: source_of(listing, split) for split in listing.rows_by_split()}


def _listing(name: str, options: SourceOptions) -> Listing:
    """The pictures of a data set on disk, with splits and classes decided."""
    read, names, is_downloaded = SOURCES[name]
    assert read is not None
    if options.root is None:
        raise CamtrainValueError(
            f"The source {name} needs a data folder, got none; give --data.root FOLDER."
        )
    place: str | Path = os.fspath(options.root)  # of shards perhaps a URL, of hf a name
    if is_downloaded:
        place = Path(place).expanduser().absolute()
    elif name != "shards" and (name != "hf" or os.path.isdir(place)):
        place = data_folder(place, or_file=name == "csv")
    listing = with_splits(read(place, **options.values_of(names)), **options.values_of(_DIVISION))
    return with_classes(listing, options.class_names)


class ImageFolder(ListedFiles):
    """One split of pictures in folders, see ``folder_listing``.

    Where ``root/train`` exists without ``root/val``, val is split off train, stratified and seeded.
    The classes are the folders of train (where there is no train, those of the split itself),
    sorted; purely numeric names sort as numbers.

    Args:
        root: The data folder.
        split: ``train``, ``val`` or ``test``.
        options: ``seed``, ``val_fraction``, ``test_fraction``, ``split_file`` and ``class_names``
            of ``SourceOptions``.

    Raises:
        CamtrainFileNotFoundError: No such folder, no images in it, or no such split.
        CamtrainValueError: Fewer than two classes, a class without images in train, a class unknown
            to train, or damaged boxes.
    """

    def __init__(self, root: str | os.PathLike[str], split: Split, **options: Any) -> None:
        """List the pictures; no picture is read yet."""
        listing = _listing("folder", SourceOptions(root, **options))
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
    """Add the data folder and the options of reading it to a parser, named as in ``fit``."""
    parser.add_argument("path", nargs="?", metavar="FOLDER", help="the data folder")
    data = parser.add_argument_group("the data, as camtrain fit reads it by --data.OPTION")
    sources = f"one of {', '.join(SOURCES)} (default folder)"
    data.add_argument("--source", default="folder", metavar="NAME", help=sources)
    for name, text in _HELP_TEXTS.items():
        default = getattr(SourceOptions, name)
        if isinstance(default, bool):
            data.add_argument(f"--{name}", action="store_true", help=text)
            continue
        kind = (
            "NAME" if "column" in name else "PATH" if default is None else metavar_of(type(default))
        )
        data.add_argument(
            f"--{name}",
            type=str if default is None else type(default),
            default=default,
            metavar="0..1" if "fraction" in name else kind,
            help=text if default is None else f"{text} (default {default})",
        )


@contextmanager
def naming_arguments_of(verb: str) -> Iterator[None]:
    """Let errors about the data name the arguments of a verb instead of the options of ``fit``."""
    try:
        yield
    except CamtrainError as error:
        message = str(error).replace("--data.root", f"camtrain {verb}")
        raise type(error)(message.replace("--data.", "--")) from error


def source_options(settings: argparse.Namespace) -> SourceOptions:
    """The options given with ``add_source_arguments``."""
    values = {name: getattr(settings, name) for name in _HELP_TEXTS}
    return SourceOptions(root=settings.path, **values)
