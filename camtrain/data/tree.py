"""Finding the pictures below a folder, and remembering them as long as the folders are the same."""

from __future__ import annotations

import os
import time
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from camtrain.data.lists import PathList
from camtrain.files import replacing, user_cache

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")

_VERSION = 1  # of the cached index
_WORTH_CACHING = 10_000  # pictures; a smaller tree is scanned in milliseconds
_SETTLED = 2.0  # seconds: a folder that changed later may change again at the same time stamp


@dataclass(frozen=True, eq=False)
class Tree:
    """The picture files below a folder, F folders and N pictures.

    Attributes:
        folders: Every folder, also the empty ones, relative, with forward slashes, sorted.
        counts: (F,) int64, the pictures that lie directly in each.
        paths: The pictures, relative, folder by folder, sorted by name within each.
        has_xml: Whether a folder holds a file that ends in ``.xml``.
    """

    folders: PathList
    counts: NDArray[np.int64]
    paths: PathList
    has_xml: bool


def scan(root: Path, tops: Sequence[str] = ("",)) -> Tree:
    """Find the pictures below some folders of a data folder, at any depth.

    Hidden files and folders are passed over, links are followed. What was found below 10,000
    pictures and more is kept in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``), and
    taken from there while no folder has changed: adding, removing or renaming changes the time
    stamp of the folder, so nothing but the folders is looked at again.

    Args:
        root: The data folder.
        tops: The folders in it, relative; the empty name is all of ``root``.
    """
    index = _index_file(root, tops)
    tree = _remembered(index, root)
    if tree is not None:
        return tree
    start = time.time()
    tree, times = _scanned(root, tops)
    if len(tree.paths) >= _WORTH_CACHING and times.max() < (start - _SETTLED) * 1e9:
        _remember(index, tree, times)
    return tree


def _scanned(root: Path, tops: Sequence[str]) -> tuple[Tree, NDArray[np.int64]]:
    """The tree, and the time stamp of each folder from before it was read."""
    folders, times, counts, lengths = [], array("q"), array("q"), array("q")
    chunks, has_xml = [], False
    for found in (found for top in sorted(tops) for found in _walk(root, top)):
        start = f"{found.folder}/" if found.folder else ""
        encoded = [os.fsencode(start + name) for name in sorted(found.names)]
        folders.append(found.folder)
        times.append(found.time)
        counts.append(len(encoded))
        lengths.extend(map(len, encoded))
        chunks.append(b"".join(encoded))
        has_xml = has_xml or found.has_xml
    ends = np.cumsum(np.array(lengths, np.int64), dtype=np.int64)
    paths = PathList.ending_at(b"".join(chunks), ends)
    tree = Tree(PathList.of(folders), np.array(counts, np.int64), paths, has_xml)
    return tree, np.array(times, np.int64)


class _Folder(NamedTuple):
    """One folder: its time stamp in ns, and the names of the pictures in it."""

    folder: str
    time: int
    names: list[str]
    has_xml: bool


def _walk(root: Path, folder: str) -> Iterator[_Folder]:
    """A folder and all below it; a link to one of its own parents ends there."""
    here = os.path.join(root, folder)
    stamp = os.stat(here).st_mtime_ns
    names, inner, has_xml = [], [], False
    with os.scandir(here) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                names.append(name)
            elif entry.is_dir():
                if not (entry.is_symlink() and _is_parent(entry.path, here)):
                    inner.append(name)
            elif name.endswith(".xml"):
                has_xml = True
    yield _Folder(folder, stamp, names, has_xml)
    for name in sorted(inner):
        yield from _walk(root, f"{folder}/{name}" if folder else name)


def _is_parent(folder: str, other: str) -> bool:
    return Path(other).resolve().is_relative_to(Path(folder).resolve())


def pictures_below(folder: str | os.PathLike[str]) -> list[str]:
    """The paths of the pictures in a folder and in its folders, sorted, without the hidden ones.

    Unlike ``scan`` it follows no links to folders and takes a folder that may not be read as empty.
    """
    paths: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [
            os.path.join(parent, name)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(paths, key=lambda path: path.split(os.sep))


def subfolders(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the folders in a folder, which need not exist, without the hidden ones."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def top_of(folder: str, tops: Iterable[str]) -> str:
    """The one of some relative folders that ``folder`` is, or lies in."""
    return next(top for top in tops if f"{folder}/".startswith(f"{top}/"))


def files_below(root: str | os.PathLike[str]) -> Iterator[str]:
    """All files below a folder, relative, with forward slashes; hidden ones are left out."""
    for folder, inside, files in os.walk(root):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        below = Path(folder).relative_to(root).as_posix()
        for name in sorted(name for name in files if not name.startswith(".")):
            yield name if below == "." else f"{below}/{name}"


def _index_file(root: Path, tops: Sequence[str]) -> Path:
    key = "\0".join([str(root), *sorted(tops), *IMAGE_SUFFIXES, str(_VERSION)])
    return user_cache() / "trees" / f"{blake2b(os.fsencode(key)).hexdigest()[:32]}.npz"


def _remember(index: Path, tree: Tree, times: NDArray[np.int64]) -> None:
    """Write the index atomically; a cache folder that cannot be written only costs time."""
    with suppress(OSError):
        index.parent.mkdir(parents=True, exist_ok=True)
        with replacing(index) as part:
            np.savez(
                part,
                folders=np.frombuffer(tree.folders.buffer, np.uint8),
                folder_ends=tree.folders.ends,
                times=times,
                counts=tree.counts,
                paths=np.frombuffer(tree.paths.buffer, np.uint8),
                ends=tree.paths.ends,
                has_xml=tree.has_xml,
            )


def _remembered(index: Path, root: Path) -> Tree | None:
    """The tree of the index, if there is one and no folder has changed since."""
    try:
        with index.open("rb") as file, np.load(file) as stored:
            folders = PathList.ending_at(stored["folders"].tobytes(), stored["folder_ends"])
            for folder, seen in zip(folders, stored["times"], strict=True):
                if os.stat(root / folder).st_mtime_ns != seen:
                    return None
            paths = PathList.ending_at(stored["paths"].tobytes(), stored["ends"])
            return Tree(folders, stored["counts"], paths, bool(stored["has_xml"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # none, or a damaged one
