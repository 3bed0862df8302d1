"""The pictures below a folder, found by a walk or, while no folder has changed, in a cache."""

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
    """The picture files below a folder, F folders and N pictures."""

    folders: PathList  # all folders, also the empty ones, relative, sorted
    counts: NDArray[np.int64]  # (F,), the pictures that lie directly in each
    paths: PathList  # the pictures, relative, folder by folder, sorted by name within each
    has_xml: bool  # whether a folder holds a file that ends in .xml


def scan(root: Path, tops: Sequence[str] = ("",)) -> Tree:
    """Find the pictures below some folders of a data folder, at any depth.

    Hidden files and folders are skipped, links are followed. A tree of 10,000 pictures or more is
    kept in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``), and taken from there
    while no folder has another time stamp: adding, removing or renaming a file changes it.
    ``tops`` are relative to the data folder; the empty name is all of it.
    """
    index = _index_file(root, tops)
    tree = _load(index, root)
    if tree is not None:
        return tree
    start = time.time()
    tree, times = _scanned(root, tops)
    if len(tree.paths) >= _WORTH_CACHING and times.max() < (start - _SETTLED) * 1e9:
        _save(index, tree, times)
    return tree


def _scanned(root: Path, tops: Sequence[str]) -> tuple[Tree, NDArray[np.int64]]:
    """Walk the folders: the tree, and the time stamp of each folder before it was read."""
    folders, times, counts = [], array("q"), array("q")
    has_xml = False

    def pictures() -> Iterator[str]:
        nonlocal has_xml
        for folder in (folder for top in sorted(tops) for folder in _walk(root, top)):
            folders.append(folder.path)
            times.append(folder.time)
            counts.append(len(folder.pictures))
            has_xml = has_xml or folder.has_xml
            yield from (_joined(folder.path, name) for name in sorted(folder.pictures))

    paths = PathList.of(pictures())
    tree = Tree(PathList.of(folders), np.array(counts, np.int64), paths, has_xml)
    return tree, np.array(times, np.int64)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


class _Folder(NamedTuple):
    """One folder: its relative path, its time stamp in ns, and the names of its pictures."""

    path: str
    time: int
    pictures: list[str]
    has_xml: bool


def _walk(root: Path, folder: str) -> Iterator[_Folder]:
    """A folder and all below it; a link to one of its own parents is not followed."""
    path = os.path.join(root, folder)
    stamp = os.stat(path).st_mtime_ns
    pictures, subfolder_names, has_xml = [], [], False
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                pictures.append(name)
            elif entry.is_dir():
                if not (entry.is_symlink() and _is_parent(entry.path, path)):
                    subfolder_names.append(name)
            elif name.endswith(".xml"):
                has_xml = True
    yield _Folder(folder, stamp, pictures, has_xml)
    for name in sorted(subfolder_names):
        yield from _walk(root, _joined(folder, name))


def _is_parent(folder: str, inner: str) -> bool:
    """Whether ``inner`` is ``folder`` or lies below it, once all links are followed."""
    return Path(inner).resolve().is_relative_to(Path(folder).resolve())


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
    """The one of ``tops`` that is ``folder`` or contains it."""
    return next(top for top in tops if f"{folder}/".startswith(f"{top}/"))


def files_below(root: str | os.PathLike[str]) -> Iterator[str]:
    """All files below a folder, relative, with forward slashes; hidden ones are left out."""
    for folder, subfolder_names, files in os.walk(root):
        subfolder_names[:] = sorted(name for name in subfolder_names if not name.startswith("."))
        below = Path(folder).relative_to(root)
        for name in sorted(name for name in files if not name.startswith(".")):
            yield (below / name).as_posix()


def _index_file(root: Path, tops: Sequence[str]) -> Path:
    """The file of the user's cache that keeps the tree of these folders."""
    key = "\0".join([str(root), *sorted(tops), *IMAGE_SUFFIXES, str(_VERSION)])
    return user_cache() / "trees" / f"{blake2b(os.fsencode(key)).hexdigest()[:32]}.npz"


def _save(index: Path, tree: Tree, times: NDArray[np.int64]) -> None:
    """Keep the tree in the cache, if that can be written."""
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


def _load(index: Path, root: Path) -> Tree | None:
    """The tree in the cache, if there is one and no folder has changed since."""
    try:
        with index.open("rb") as file, np.load(file) as arrays:
            folders = PathList.ending_at(arrays["folders"].tobytes(), arrays["folder_ends"])
            for folder, stamp in zip(folders, arrays["times"], strict=True):
                if os.stat(root / folder).st_mtime_ns != stamp:
                    return None
            paths = PathList.ending_at(arrays["paths"].tobytes(), arrays["ends"])
            return Tree(folders, arrays["counts"], paths, bool(arrays["has_xml"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # there is no index, or it is damaged
