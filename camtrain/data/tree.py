"""Finds the pictures below a folder, or reads them from a cache if no folder has changed."""

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

from camtrain.data.decoding import IMAGE_SUFFIXES, SUFFIX_ADVICE
from camtrain.data.lists import PathList
from camtrain.errors import join_first, warn
from camtrain.files import replacing, user_cache

_VERSION = 1  # of the cached index
_WORTH_CACHING = 10_000  # pictures; a smaller tree is scanned in milliseconds
# What lies beside pictures in many data sets.
OTHER_SUFFIXES = (".csv", ".txt", ".xml", ".json", ".md", ".yaml", ".mat", ".npy", ".zip", ".tar")
_SETTLED = 2.0  # seconds: a folder that changed later may change again at the same time stamp


@dataclass(frozen=True, eq=False)
class Tree:
    """The picture files below a folder, F folders and N pictures."""

    folders: PathList  # all folders, also the empty ones, relative, sorted
    counts: NDArray[np.int64]  # (F,), the pictures that lie directly in each
    paths: PathList  # the pictures, relative, folder by folder, sorted by name within each
    has_xml: bool  # whether a folder holds a file that ends in .xml
    skipped: str = ""  # in words, what is left out: files of other kinds, and links to nowhere


def scan(root: Path, tops: Sequence[str] = ("",)) -> Tree:
    """The pictures below some folders of a data folder, at any depth.

    Hidden files and folders are skipped, links are followed. A tree of 10,000 pictures or more is
    saved in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``), and read from there if
    the time stamps of all folders are the same; whoever adds, removes or renames a file changes the
    time stamp of its folder. A tree with files that are left out is not saved, so that every run
    says so.

    Args:
        root: The data folder.
        tops: The folders, relative to ``root``; "" is ``root`` itself.
    """
    index = _index_file(root, tops)
    tree = _load(index, root)
    if tree is not None:
        return tree
    start = time.time()
    tree, times = _scan_disk(root, tops)
    is_settled = times.max() < (start - _SETTLED) * 1e9
    if len(tree.paths) >= _WORTH_CACHING and is_settled and not tree.skipped:
        _save(index, tree, times)
    return tree


def _scan_disk(root: Path, tops: Sequence[str]) -> tuple[Tree, NDArray[np.int64]]:
    """The tree on disk, and the time stamp that each folder had before it was read."""
    folders, times, counts = [], array("q"), array("q")
    has_xml = False
    unread: list[str] = []

    def pictures() -> Iterator[str]:
        nonlocal has_xml
        for folder in (folder for top in sorted(tops) for folder in _walk(root, top)):
            folders.append(folder.path)
            times.append(folder.time)
            counts.append(len(folder.pictures))
            has_xml = has_xml or folder.has_xml
            unread.extend(folder.unread)
            yield from (_join(folder.path, name) for name in sorted(folder.pictures))

    paths = PathList.of(pictures())
    skipped = describe_skipped(unread)
    if skipped and len(paths):  # without any picture, the reader's error says it
        warn(f"Skipped in {root}: {skipped}.", stacklevel=4)
    tree = Tree(PathList.of(folders), np.array(counts, np.int64), paths, has_xml, skipped)
    return tree, np.array(times, np.int64)


def _join(folder: str, name: str) -> str:
    """The path of a name in a relative folder, which may be ""."""
    return f"{folder}/{name}" if folder else name


class _Folder(NamedTuple):
    """What a walk has found directly in one folder."""

    path: str  # relative to the data folder
    time: int  # time stamp of the folder, in ns
    pictures: list[str]  # names, not sorted
    unread: list[str]  # paths of files that nothing here reads, and of links to nowhere
    has_xml: bool


def _walk(root: Path, folder: str, links: tuple[str, ...] = ()) -> Iterator[_Folder]:
    """A folder and all folders below it; links to a folder that contains them are skipped.

    ``links`` are the folders with the links that led here.
    """
    path = os.path.join(root, folder)
    stamp = os.stat(path).st_mtime_ns
    pictures, unread, has_xml = [], [], False
    links_below: dict[str, tuple[str, ...]] = {}  # of each subfolder
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if _is_hidden(name):
                continue
            if name.lower().endswith(IMAGE_SUFFIXES) and _is_file(entry):
                pictures.append(name)
            elif os.path.isdir(entry):
                below = (*links, path) if entry.is_symlink() else links
                if below is links or not any(_contains(entry.path, inner) for inner in below):
                    links_below[name] = below
                else:
                    unread.append(entry.path)
            elif folder and not name.lower().endswith(OTHER_SUFFIXES):  # else beside the data
                unread.append(entry.path)
            has_xml = has_xml or name.endswith(".xml")
    yield _Folder(folder, stamp, pictures, unread, has_xml)
    for name in sorted(links_below):
        yield from _walk(root, _join(folder, name), links_below[name])


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the data set; a disk holds ``lost+found``."""
    return name.startswith(".") or name == "lost+found"


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file or a link to one; a link to itself is none."""
    return os.path.isfile(entry) if entry.is_symlink() else entry.is_file()


def _contains(folder: str, inner: str) -> bool:
    """Whether ``folder`` is ``inner`` or contains it at any depth; links are resolved first."""
    return Path(inner).resolve().is_relative_to(Path(folder).resolve())


_NOWHERE, _ABOVE = "links to no file", "links to a folder that holds them"
_SPECIAL = "pipes, sockets or devices"


def describe_skipped(paths: Sequence[str]) -> str:
    """How many files of each kind were skipped; links and pictures by name, with advice.

    Example:
        >>> describe_skipped(["a/b.svg", "a/notes.txt"])
        '1 .svg (b.svg; draw it as a PNG), 1 .txt'
    """
    names: dict[str, list[str]] = {}
    for path in map(Path, paths):
        kind = path.suffix.lower() or "without suffix"
        if path.is_symlink() and not os.path.isfile(path):
            kind = _ABOVE if os.path.isdir(path) else _SPECIAL if os.path.exists(path) else _NOWHERE
        elif os.path.exists(path) and not os.path.isfile(path):
            kind = _SPECIAL
        names.setdefault(kind, []).append(path.name)
    kinds = []
    advice = {_NOWHERE: "", _ABOVE: "", _SPECIAL: "", **SUFFIX_ADVICE}
    for kind in sorted(names, key=lambda kind: (kind not in advice, kind)):
        by_name = "; ".join(filter(None, (join_first(names[kind], 3), advice.get(kind))))
        kinds.append(f"{len(names[kind])} {kind}" + f" ({by_name})" * (kind in advice))
    return ", ".join(kinds)


class FolderFiles(NamedTuple):
    """The paths of the files in a folder and in its folders, sorted, without the hidden ones."""

    pictures: list[str]
    unread: list[str]  # files that no reader of pictures takes, by their names


def list_below(folder: str | os.PathLike[str]) -> FolderFiles:
    """The files below a folder, at any depth.

    Unlike ``scan``, it follows no links to folders, and treats unreadable folders as empty.
    """
    files = FolderFiles([], [])
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in (name for name in names if not _is_hidden(name)):
            is_picture = name.lower().endswith(IMAGE_SUFFIXES)
            (files.pictures if is_picture else files.unread).append(os.path.join(parent, name))
    for paths in files:
        paths.sort(key=lambda path: path.split(os.sep))
    return files


def subfolders(folder: str | os.PathLike[str]) -> list[str]:
    """The sorted names of the folders in a folder, without hidden ones; none if it is missing."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not _is_hidden(e.name) and os.path.isdir(e))


def top_of(folder: str, tops: Iterable[str]) -> str:
    """The one of ``tops`` that is ``folder`` or contains it."""
    return next(top for top in tops if f"{folder}/".startswith(f"{top}/"))


def files_below(root: str | os.PathLike[str]) -> Iterator[str]:
    """The relative paths of all files below a folder, with forward slashes, without hidden ones."""
    for folder, subfolder_names, files in os.walk(root):
        subfolder_names[:] = sorted(name for name in subfolder_names if not _is_hidden(name))
        below = Path(folder).relative_to(root)
        for name in sorted(name for name in files if not name.startswith(".")):
            yield (below / name).as_posix()


def _index_file(root: Path, tops: Sequence[str]) -> Path:
    """The path of the cache file for the tree of these folders."""
    key = "\0".join([str(root), *sorted(tops), *IMAGE_SUFFIXES, str(_VERSION)])
    return user_cache() / "trees" / f"{blake2b(os.fsencode(key)).hexdigest()[:32]}.npz"


def _save(index: Path, tree: Tree, times: NDArray[np.int64]) -> None:
    """Write the tree to its cache file; do nothing if the cache folder cannot be written."""
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
    """The tree in a cache file; None if there is none, or a folder has changed since."""
    try:
        with index.open("rb") as file, np.load(file) as arrays:
            folders = PathList.from_ends(arrays["folders"].tobytes(), arrays["folder_ends"])
            for folder, stamp in zip(folders, arrays["times"], strict=True):
                if os.stat(root / folder).st_mtime_ns != stamp:
                    return None
            paths = PathList.from_ends(arrays["paths"].tobytes(), arrays["ends"])
            return Tree(folders, arrays["counts"], paths, bool(arrays["has_xml"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # there is no index, or it is damaged
