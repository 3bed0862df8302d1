"""Feature caches on disk: folders of arrays that are whole or not there."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from camtrain.files import user_cache

Arrays = dict[str, npt.NDArray[Any]]

_ABOUT = "about.json"
_LOCK = "lock"
_WHOLE = re.compile(r"[0-9a-f]{20}")
_PART = re.compile(r"\.[0-9a-f]{20}\.[0-9a-f]{8}\.part")
_KEPT_DAYS = 30


class ArraySpec(NamedTuple):
    """Shape and NumPy type of an array."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def cache_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    """Where caches lie: the given folder, or ``camtrain/features`` in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser().absolute()
    return user_cache() / "features"


def is_complete(folder: Path) -> bool:
    """Whether the cache is there; it gets its name only when it is whole."""
    return (folder / _ABOUT).is_file()


def open_arrays(folder: Path) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of a whole cache, memory-mapped for reading, and what was noted about it."""
    about = json.loads((folder / _ABOUT).read_text())
    os.utime(folder / _ABOUT)  # see `remove_unused`
    # As plain arrays over the mapped memory: a row of an np.memmap takes ten times as long.
    names = about["arrays"]
    return {n: np.asarray(np.load(folder / f"{n}.npy", mmap_mode="r")) for n in names}, about


def unique() -> str:
    """A text that no other process makes; torch's random state stays as it was."""
    return uuid.uuid4().hex


def part_of(folder: Path, name: str) -> Path:
    """Where a cache lies while it is filled by those who share a name."""
    return folder.with_name(f".{folder.name}.{hashlib.sha256(name.encode()).hexdigest()[:8]}.part")


def begin(part: Path, specs: Mapping[str, ArraySpec]) -> int:
    """Make an unfinished cache, its disk space reserved.

    Returns:
        Its lock, a file descriptor, to be closed when the cache is finished. It tells others that
        somebody is at work; the lock of a process that is killed is gone.

    Raises:
        OSError: There is not so much space.
    """
    part.mkdir(parents=True)
    import fcntl  # not on Windows, where no cache is used

    lock = os.open(part / _LOCK, os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        for name, spec in specs.items():
            _allocate(part / f"{name}.npy", spec)
    except OSError:
        shutil.rmtree(part)
        os.close(lock)
        raise
    return lock


def _allocate(path: Path, spec: ArraySpec) -> None:
    np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(spec.dtype), shape=spec.shape)
    if hasattr(os, "posix_fallocate"):
        # A full disk is an error here; met while writing to mapped memory it kills the process.
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def open_part(part: Path, specs: Mapping[str, ArraySpec]) -> Arrays:
    """The arrays of an unfinished cache, for writing."""
    return {name: np.load(part / f"{name}.npy", mmap_mode="r+") for name in specs}


def flush(arrays: Arrays) -> None:
    """Write what this process has put into the arrays to the disk."""
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()


def finish(part: Path, folder: Path | None, about: dict[str, Any]) -> None:
    """Give a filled cache its name, once everything is on the disk; None means delete it."""
    if folder is None:
        shutil.rmtree(part)
        return
    about = {**about, "arrays": sorted(path.stem for path in part.glob("*.npy"))}
    (part / _ABOUT).write_text(json.dumps(about))
    (part / _LOCK).unlink()
    for path in (*part.iterdir(), part):
        _sync(path)
    try:
        os.rename(part, folder)
    except OSError:  # another run was faster, and what it made of the same key is the same
        if not is_complete(folder):
            raise
        shutil.rmtree(part)
    _sync(folder.parent)


def remove_unused(root: Path) -> None:
    """Delete what killed runs left, and caches that no run has used for 30 days; nothing else."""
    if not root.is_dir():
        return
    oldest = time.time() - _KEPT_DAYS * 24 * 3600
    for folder in root.iterdir():
        about = folder / _ABOUT
        is_dead = _PART.fullmatch(folder.name) and not _is_locked(folder)
        is_whole = _WHOLE.fullmatch(folder.name) and about.is_file()
        if is_dead or (is_whole and about.stat().st_mtime < oldest):
            shutil.rmtree(folder, ignore_errors=True)


def free_bytes(root: Path) -> int:
    """Free space of the disk that a folder, which need not exist, will lie on."""
    there = next(path for path in (root, *root.parents) if path.exists())
    return shutil.disk_usage(there).free


def _is_locked(part: Path) -> bool:
    import fcntl

    try:
        with open(part / _LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return time.time() - part.stat().st_mtime < 60  # about to be locked, or about to be named
    return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
