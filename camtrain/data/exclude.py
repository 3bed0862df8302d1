"""Pictures that are left out of every split, by a list of their paths."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from camtrain.data.box_files import BoxError
from camtrain.data.faults import listed_faults
from camtrain.data.shards.read import is_url
from camtrain.data.source import FileSource, Shrink, Source, SourcePicture, Split
from camtrain.data.sources import SourceOptions, make_sources
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError, warn
from camtrain.files import open_regular, replacing
from camtrain.labels import class_counts

_COMMENT = "#"
_UTF8 = {"encoding": "utf-8", "errors": "surrogateescape"}  # any file name of the system


class Without:
    """A source without some of its pictures; the classes and the order of the others stay.

    Args:
        source: The source of all pictures; no picture is read.
        excluded: Tells of a ``SourcePicture.path`` whether that picture is left out.
    """

    def __init__(self, source: Source, excluded: Callable[[str], bool]) -> None:
        self._source = source
        self._rows = [row for row, path in enumerate(source.paths) if not excluded(path)]
        self.class_names = source.class_names
        labels, groups = source.labels, getattr(source, "groups", None)
        self.labels: list[int] | Tensor = (
            labels[self._rows]
            if isinstance(labels, Tensor)
            else [labels[row] for row in self._rows]
        )
        self.paths = [source.paths[row] for row in self._rows]
        self.groups = None if groups is None else groups[self._rows]

    def __len__(self) -> int:
        """The number of pictures that stay."""
        return len(self._rows)

    def boxes(self, index: int) -> Tensor:
        """The boxes of the picture at ``index``, (n, 4) int64 half-open xyxy."""
        return self._source.boxes(self._rows[index])

    def read(self, index: int) -> SourcePicture:
        """The picture at ``index``."""
        return self._source.read(self._rows[index])


class _FilesWithout(Without):
    """A source of picture files without some of them."""

    _source: FileSource  # checked by `without`; a check of each picture would cost time

    def read_file(
        self, index: int, *, exif: bool = True, shrink: Shrink | None = None
    ) -> SourcePicture:
        """The picture at ``index``; ``exif`` and ``shrink`` as for ``decode_image``."""
        return self._source.read_file(self._rows[index], exif=exif, shrink=shrink)


def make_sources_without(
    name: str, options: SourceOptions, exclude: Collection[str]
) -> tuple[dict[Split, Source], dict[Split, Source]]:
    """All splits of the named source, first with and then without the excluded pictures.

    A wrong box of an excluded picture is no error. See ``make_sources`` and ``without``.
    """
    if not exclude:
        all_sources = make_sources(name, options)
        return all_sources, all_sources
    with listed_faults(BoxError) as errors:
        all_sources = make_sources(name, options)
    return all_sources, without(all_sources, exclude, options.root, box_errors=errors)


def without(
    sources: Mapping[Split, Source],
    exclude: Collection[str],
    root: str | os.PathLike[str] | None,
    *,
    box_errors: Sequence[BoxError] = (),
) -> dict[Split, Source]:
    """The splits of a data set without the excluded pictures; warns of paths that no split has.

    Args:
        sources: All splits of the data set.
        exclude: Paths, relative to ``root`` where they lie below it, with forward slashes.
        root: The data folder.
        box_errors: The errors in the boxes of the sources; those of excluded pictures are ignored.

    Raises:
        CamtrainValueError: A split, or a class of train, is left without pictures; or a picture
            that is not excluded has a box error.
    """
    folder = absolute_data_folder(root)
    names = {name_in(folder, posixpath.normpath(name)) for name in exclude}
    unmatched = set(names)
    for error in box_errors:
        name = name_in(folder, posixpath.normpath(error.path))
        if name not in names:
            raise error
        unmatched.discard(name)

    def is_excluded(path: str) -> bool:
        name = name_in(folder, path)
        unmatched.discard(name)
        return name in names

    remaining: dict[Split, Source] = {
        split: (_FilesWithout if isinstance(source, FileSource) else Without)(source, is_excluded)
        for split, source in sources.items()
    }
    for split, source in remaining.items():
        if len(source) == len(sources[split]):
            continue
        before, after = (
            class_counts(pictures.labels, len(source.class_names))
            for pictures in (sources[split], source)
        )
        emptied = ((before > 0) & (after == 0)).nonzero()[:, 0].tolist()
        if not len(source) or (split == "train" and emptied):
            what = source.class_names[emptied[0]] if len(source) else "pictures"
            raise CamtrainValueError(
                f"exclude leaves no {what} in the {split} split; add pictures, or shorten the list."
            )
    if unmatched:
        warn(
            f"exclude names {len(unmatched)} pictures that the data does not have, the first is "
            f"{min(unmatched)}; paths are relative to the data folder.",
            stacklevel=2,
        )
    return remaining


def absolute_data_folder(root: str | os.PathLike[str] | None) -> str:
    """The absolute path of the data folder, for ``name_in``; "" if ``root`` is None.

    A file with a list of pictures gives its folder; a URL stays a URL.
    """
    if root is None:
        return ""
    path = Path(root).expanduser() if is_url(root) else Path(root).expanduser().absolute()
    return str(path.parent if path.is_file() else path)  # a list of pictures lies beside them


def name_in(folder: str, path: str) -> str:
    """The path of a picture as lists spell it: relative to the folder, with forward slashes."""
    if folder and path.startswith(os.path.join(folder, "")):
        return path[len(folder) :].lstrip(os.sep).replace(os.sep, "/")
    return path


def read_exclude(file: str | os.PathLike[str]) -> list[str]:
    """The paths in a text file, one per line; empty lines and those that begin with # are skipped.

    Raises:
        CamtrainFileNotFoundError: There is no such file.
    """
    try:
        with open_regular(Path(file).expanduser()) as content:
            data = content.read()
    except (FileNotFoundError, IsADirectoryError):
        raise CamtrainFileNotFoundError(
            f"--data.exclude must be a text file with one path per line, and {file} is none; "
            "camtrain check-data writes one."
        ) from None
    lines = [line.removesuffix("\r") for line in data.decode(**_UTF8).split("\n")]
    return [line for line in lines if line.strip() and not line.startswith(_COMMENT)]


def write_exclude(
    file: str | os.PathLike[str], reasons: Mapping[str, str], comments: Sequence[str] = ()
) -> None:
    """Write a list for ``read_exclude``, with reasons as comments.

    Args:
        file: The file to write.
        reasons: By path, why the picture is excluded; it becomes a comment above the path.
        comments: Comments for the top of the file.

    Raises:
        CamtrainValueError: A path contains a line break.
    """
    lines = [f"{_COMMENT} {comment}" for comment in comments]
    for path, reason in reasons.items():
        if "\n" in path:
            raise CamtrainValueError(
                f"A path in the list of excluded pictures has a line break: {path!r}; rename it."
            )
        lines += [f"{_COMMENT} {' '.join(reason.split())}"] * bool(reason)
        lines.append(f"./{path}" if path.startswith(_COMMENT) else path)
    text = "".join(f"{line}\n" for line in lines)
    with replacing(Path(file).expanduser().resolve()) as part:
        part.write_bytes(text.encode(**_UTF8))
