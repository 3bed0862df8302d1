"""Feature caches on disk: folders of arrays, named by a hash of all that the features depend on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from camtrain.data import Source
from camtrain.files import user_cache
from camtrain.model.camnet import CAMNet
from camtrain.model.modules import is_import_path

Arrays = dict[str, npt.NDArray[Any]]
WritableArrays = dict[str, "np.memmap[Any, Any]"]

_ABOUT = "about.json"
_LOCK = "lock"
_COMPLETE = re.compile(r"[0-9a-f]{20}")
_PART = re.compile(r"\.[0-9a-f]{20}\.[0-9a-f]{8}\.part")
_MAX_UNUSED_DAYS = 30

# Parts of a network's recipe that come after the backbone.
_AFTER_THE_BACKBONE = ("num_classes", "pool", "dropout", "task", "foreground")
_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless")
# Settings of the data module that change no picture, or are in the key in another form. Any other
# setting, also one that is added later, is in the key.
_NOT_IN_KEY = (
    *("source", "root", "seed", "val_fraction", "test_fraction", "class_names", "lengths"),
    *("split_file", "metadata", "exclude", "shards_cache", "shards_cache_gb"),
    *("head_boxes", "objects_column"),
    *("batch_size", "workers", "sampler", "augment", "cache_features", "cache_dir"),
    *("auto_augment", "hide_and_seek", "max_damaged", "allow_damaged"),
    *("size", "resize_mode", "crop_pct", "interpolation", "mean", "std", "channel_order"),
)
# The modules of camtrain that compute pixels and features.
_CODE_IN_KEY = ("data/**/*.py", "model/*.py", "training/cache/*.py", "maps.py", "preprocessing.py")


def key_of(parts: dict[str, Any]) -> str:
    """The name of a cache: 20 hexadecimal digits, a hash of plain values.

    Example:
        >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
        True
    """
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def backbone_parts(net: CAMNet) -> dict[str, Any]:
    """The backbone, for ``key_of``: how it is built, and a hash of its parameters and buffers."""
    architecture: Mapping[str, Any] = net.description.architecture or {}
    parts = {
        "architecture": {
            name: value
            for name, value in architecture.items()
            if name not in _AFTER_THE_BACKBONE and not name.startswith("neck")
        },
        "tensors": hash_of_tensors(net.backbone),
    }
    if is_import_path(architecture["backbone"]):  # code that may change
        parts["operations"] = str(getattr(net.backbone, "graph", net.backbone))
    return parts


def hash_of_tensors(module: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of a module's parameters and buffers."""
    total = hashlib.sha256()
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(_bytes_of(tensor))
    return total.hexdigest()


def hash_of_pictures(source: Source) -> str:
    """SHA-256 of a source's pictures.

    It depends on the path, size and modification time of each file, and on the pixels of a picture
    that has no file (drawn, or in memory).
    """
    total = hashlib.sha256()
    for index, path in enumerate(source.paths):
        try:
            status = os.stat(path)
            total.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:  # it has no file
            image = source.read(index).image
            total.update(f"{path} {tuple(image.shape)}".encode())
            total.update(_bytes_of(image))
    return total.hexdigest()


def settings_in_key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a data module that may change a picture, as text, for ``key_of``.

    Settings that are in the key in another form are left out.
    """
    return {name: repr(value) for name, value in settings.items() if name not in _NOT_IN_KEY}


@cache
def versions() -> dict[str, str]:
    """The versions of the libraries that compute the features, and a hash of camtrain's code."""
    folder = Path(__file__).parents[2]
    files = sorted(path for pattern in _CODE_IN_KEY for path in folder.glob(pattern))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return {"camtrain": code, **{library: version(library) for library in _LIBRARIES}}


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


class ArraySpec(NamedTuple):
    """Shape and NumPy type of an array."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """The size of the array in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def cache_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of all caches: ``cache_dir``, or ``features`` in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser().absolute()
    return user_cache() / "features"


def is_complete(folder: Path) -> bool:
    """Whether a complete cache lies in ``folder``; see ``part_folder`` for an incomplete one."""
    return (folder / _ABOUT).is_file()


def open_arrays(folder: Path) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of a complete cache, memory-mapped for reading, and its metadata."""
    about = json.loads((folder / _ABOUT).read_text())
    with suppress(OSError):  # of another user, or on a read-only disk
        os.utime(folder / _ABOUT)  # see `remove_unused`
    # As plain arrays over the mapped memory: a row of an np.memmap takes ten times as long.
    names = about["arrays"]
    return {n: np.asarray(np.load(folder / f"{n}.npy", mmap_mode="r")) for n in names}, about


def part_folder(folder: Path, name: str) -> Path:
    """The folder that a cache has while it is filled; later it is renamed to ``folder``.

    Processes that fill one cache together pass the same ``name``, all others another one.
    """
    return folder.with_name(f".{folder.name}.{hashlib.sha256(name.encode()).hexdigest()[:8]}.part")


def create_part(part: Path, specs: Mapping[str, ArraySpec]) -> int:
    """Create the folder of an incomplete cache, and reserve the disk space of its arrays.

    Returns:
        A lock: a file descriptor that is to be closed when the cache is complete. It tells other
        runs that the cache is in use. The system removes the lock of a killed process.

    Raises:
        OSError: The disk is too small.
    """
    part.mkdir(parents=True)
    import fcntl  # not on Windows, where no cache is used

    lock = os.open(part / _LOCK, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, spec in specs.items():
            _allocate(part / f"{name}.npy", spec)
    except OSError:
        shutil.rmtree(part)
        os.close(lock)
        raise
    return lock


def _allocate(path: Path, spec: ArraySpec) -> None:
    """Create the file of an array and reserve its disk space."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(spec.dtype), shape=spec.shape)
    if hasattr(os, "posix_fallocate"):
        # A full disk is an error here; when mapped memory is written, it kills the process.
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def open_part(part: Path, specs: Mapping[str, ArraySpec]) -> WritableArrays:
    """The arrays of an incomplete cache, memory-mapped for writing."""
    return {name: np.load(part / f"{name}.npy", mmap_mode="r+") for name in specs}


def finish_part(part: Path, folder: Path | None, about: dict[str, Any]) -> None:
    """Rename ``part`` to ``folder``, with ``about`` as metadata; if ``folder`` is None, delete it.

    Everything is written to the disk before.
    """
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
    except OSError:  # another run was faster, and its cache of the same key is the same
        if not is_complete(folder):
            raise
        shutil.rmtree(part)
    _sync(folder.parent)


def remove_unused(root: Path) -> None:
    """Delete caches that killed runs left incomplete, or that no run has used for 30 days."""
    if not root.is_dir():
        return
    oldest = time.time() - _MAX_UNUSED_DAYS * 24 * 3600
    for folder in root.iterdir():
        about = folder / _ABOUT
        is_dead = _PART.fullmatch(folder.name) and not _is_locked(folder)
        is_cache = _COMPLETE.fullmatch(folder.name) and about.is_file()
        if is_dead or (is_cache and about.stat().st_mtime < oldest):
            shutil.rmtree(folder, ignore_errors=True)


def _is_locked(part: Path) -> bool:
    """Whether a process is filling an incomplete cache."""
    import fcntl

    try:
        with open(part / _LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return time.time() - part.stat().st_mtime < 60  # about to be locked, or about to be renamed
    except OSError:  # it is locked, or of another user
        return True
    return False


def _sync(path: Path) -> None:
    """Write a file or a folder from memory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
