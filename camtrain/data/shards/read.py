"""Reads shards of a data set from a folder or a URL: the index of their samples, and their files.

The webdataset library opens the files and keeps what comes from a URL.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import IO, NamedTuple, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtrain.data.boxes import BoxTable
from camtrain.data.lists import PathList
from camtrain.data.source import Labels, Listing, Split, split_number
from camtrain.errors import (
    CamtrainError,
    CamtrainFileNotFoundError,
    CamtrainValueError,
    needs_extra,
    one_line,
)
from camtrain.files import check_names, check_nested, user_cache, write_text

INDEX = "index.json"
_FORMAT = 1
# webdataset's other schemes run commands: a checkpoint could bring one.
_SCHEMES = ("http", "https", "ftps", "sftp", "gs", "ais", "hf")


def import_webdataset(module: str) -> ModuleType:
    """A module of the webdataset library; raises CamtrainError if that is not installed."""
    with needs_extra("Reading and writing shards", extra="shards"):
        return importlib.import_module(f"webdataset.{module}")


def is_url(root: str | os.PathLike[str]) -> bool:
    """Whether a data folder is a URL and not on disk."""
    return "://" in os.fspath(root)


class Shard(NamedTuple):
    """One tar file, with samples of one split."""

    file: str  # its name in the folder of the index
    split: Split
    samples: int  # how many
    bytes: int  # size of the file


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """N samples, in the order of the shards and, within each, of the tar file."""

    class_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    labels: Labels  # (N,) int64, or multi-hot, (N, K) bool
    paths: PathList  # of the N pictures before, relative to their data folder
    places: NDArray[np.int64]  # (N, 2), first byte and number of bytes of each picture
    mask_places: NDArray[np.int64]  # (N, 2), the same of its mask; 0 bytes: it has none
    box_rows: NDArray[np.int64]  # (M,), the sample of each box
    boxes_xyxy: NDArray[np.int64]  # (M, 4), half-open

    @cached_property
    def shard_of(self) -> NDArray[np.int64]:
        """(N,), the place of each sample's shard in ``shards``."""
        return np.repeat(np.arange(len(self.shards)), [shard.samples for shard in self.shards])

    def save(self, folder: Path) -> None:
        """Write ``index.json``, for people and programs, and the file of arrays that it names."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            labels=self.labels,
            path_bytes=np.frombuffer(self.paths.buffer, np.uint8),
            path_ends=self.paths.ends,
            places=self.places,
            mask_places=self.mask_places,
            box_rows=self.box_rows,
            boxes_xyxy=self.boxes_xyxy,
        )
        # Named after the content, so that an index never meets arrays of another one.
        name = f"samples-{hashlib.sha256(buffer.getvalue()).hexdigest()[:12]}.npz"
        (folder / name).write_bytes(buffer.getvalue())
        content = {
            "camtrain_shards": _FORMAT,
            "class_names": self.class_names,
            "arrays": name,
            "shards": [shard._asdict() for shard in self.shards],
        }
        write_text(folder / INDEX, json.dumps(content, indent=1))


class Store:
    """The files of a folder of shards, by name.

    Args:
        root: A folder, or the URL of one.
        cache: The folder that keeps what comes from a URL; it holds one data set.
        cache_bytes: Its largest size; beyond it, the shards that were fetched first are deleted.
    """

    def __init__(
        self, root: str | os.PathLike[str], cache: Path = Path(), cache_bytes: int = 0
    ) -> None:
        self.is_url = is_url(root)
        self.root = (
            os.fspath(root).rstrip("/") if self.is_url else str(Path(root).expanduser().absolute())
        )
        if self.is_url and self.root.partition("://")[0] not in _SCHEMES:
            raise CamtrainValueError(
                f"{self.root} must be a folder or a URL of {', '.join(_SCHEMES)}; mount or copy "
                "the shards."
            )
        self.cache = cache.expanduser()
        self.cache_bytes = cache_bytes

    def read_all(self, name: str) -> bytes:
        """The content of a small file, which is not kept in the cache."""
        place = f"{self.root}/{name}"
        try:
            with _open(place) as file:
                return file.read()
        except OSError as error:
            raise CamtrainFileNotFoundError(
                f"{place} cannot be read ({error}); point --data.root at a folder or URL that "
                "camtrain shards has written."
            ) from error

    def read(self, shard: Shard, start: int, count: int) -> bytes:
        """``count`` bytes of a shard, from byte ``start`` on."""
        place = f"{self.root}/{shard.file}"
        try:
            with self._open_cached(place, shard.file) if self.is_url else _open(place) as file:
                size = os.fstat(file.fileno()).st_size
                if size == shard.bytes:
                    file.seek(start)
                    return file.read(count)
        except (OSError, ValueError) as error:
            raise CamtrainFileNotFoundError(
                f"The shard {place} cannot be read ({error}); copy it again, or check the "
                "connection."
            ) from error
        if self.is_url:
            (self.cache / shard.file).unlink(missing_ok=True)
        raise CamtrainValueError(
            f"The shard {place} must have {shard.bytes} bytes, got {size}; copy it again, or write "
            "the shards again with camtrain shards."
        )

    def _open_cached(self, url: str, name: str) -> IO[bytes]:
        """Open a shard in the cache; one process downloads it while the others wait."""
        try:
            return _open(str(self.cache / name))
        except FileNotFoundError:
            pass  # it is fetched below
        cache = import_webdataset("cache").FileCache(
            str(self.cache),
            url_to_name=lambda url: name,
            cache_size=self.cache_bytes,
            cache_cleanup_interval=0,
        )
        with _lock(self.cache.with_name(f"{self.cache.name}.locks") / name):
            try:
                return _open(cache.get_file(url))
            except FileNotFoundError:  # another process has just made room
                return _open(cache.get_file(url))


def _open(path: str) -> IO[bytes]:
    """Open a file or a URL."""
    file: IO[bytes] = import_webdataset("gopen").gopen(path)
    return file


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file."""
    import fcntl  # there is none on Windows, where URLs cannot be read then

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load_index(index_json: bytes, store: Store, folder: str) -> ShardIndex:
    """The index of the folder that ``store`` reads, from the content of ``index.json``."""
    try:
        content = json.loads(index_json)
        version = content["camtrain_shards"]
        if version > _FORMAT:
            raise CamtrainValueError(
                f"The shards of {folder} have format {version}, and this version of camtrain reads "
                f"up to {_FORMAT}; update camtrain."
            )
        check_nested(content)
        class_names = check_names("class_names", content["class_names"])
        shards = tuple(Shard(**shard) for shard in content["shards"])
        files = check_names("files", [content["arrays"], *(shard.file for shard in shards)])
        if any("/" in file for file in files) or any(
            s.split not in get_args(Split) for s in shards
        ):
            raise CamtrainValueError("it names files that are no shards beside it")
        with np.load(_unpacked(store.read_all(content["arrays"])), allow_pickle=False) as arrays:
            names = ("labels", "places", "mask_places", "box_rows", "boxes_xyxy")
            index = ShardIndex(
                class_names=class_names,
                shards=shards,
                paths=PathList.from_ends(arrays["path_bytes"].tobytes(), arrays["path_ends"]),
                **{name: arrays[name] for name in names},
            )
        count = sum(shard.samples for shard in index.shards)
        _check_arrays(index)
    except CamtrainError:
        raise
    except Exception as error:  # what a damaged file makes json and numpy raise cannot be known
        raise CamtrainValueError(
            f"{INDEX} of {folder} cannot be read ({one_line(error)}); write the "
            "shards again with camtrain shards."
        ) from error
    if not len(index.paths) == len(index.places) == count:
        raise CamtrainValueError(
            f"{INDEX} of {folder} counts {count} samples and lists {len(index.paths)}; write the "
            "shards again with camtrain shards."
        )
    return index


def _unpacked(data: bytes) -> io.BytesIO:
    """The file of arrays; raises where it would unpack to far more."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(info.file_size for info in archive.infolist()) > 64 * len(data) + 2**26:
            raise CamtrainValueError("the arrays unpack to far more than their file")
    return io.BytesIO(data)


def _check_arrays(index: ShardIndex) -> None:
    """Raise CamtrainValueError unless shapes and values of the arrays belong together."""
    count, classes, ends = len(index.paths), len(index.class_names), index.paths.ends
    is_hot = index.labels.dtype == np.bool_
    if min(shard.samples for shard in index.shards) < 0:
        raise CamtrainValueError("a shard holds less than no samples")
    expected = {
        "labels": (index.labels, (count, classes) if is_hot else (count,), 0, classes),
        "places": (index.places, (count, 2), 0, 2**63),
        "mask_places": (index.mask_places, (count, 2), 0, 2**63),
        "box_rows": (index.box_rows, (len(index.boxes_xyxy),), 0, count),
        "boxes_xyxy": (index.boxes_xyxy, (len(index.boxes_xyxy), 4), -(2**31), 2**31),
        "path_ends": (ends, (count,), 0, len(index.paths.buffer) + 1),
    }
    for name, (array, shape, low, end) in expected.items():
        is_fit = array.shape == shape and array.dtype.kind in "biu"
        if not is_fit or (array.size and not low <= int(array.min()) <= int(array.max()) < end):
            raise CamtrainValueError(f"{name} are no numbers of {shape} from {low} to {end - 1}")


def shards_listing(
    root: str | os.PathLike[str],
    *,
    shards_cache: str | os.PathLike[str] | None = None,
    shards_cache_gb: float = 100.0,
) -> Listing:
    """The pictures of a folder that ``camtrain shards`` has written.

    Args:
        root: The folder, or its URL.
        shards_cache: The folder that keeps fetched shards; None: one in the user's cache folder.
        shards_cache_gb: The most that it may hold, in 10^9 bytes.
    """
    folder = os.fspath(root)
    if not is_url(root) and not (Path(root).expanduser() / INDEX).is_file():
        raise CamtrainFileNotFoundError(
            f"{folder} holds no {INDEX}; point --data.root at a folder or URL that camtrain shards "
            "has written."
        )
    content = Store(root).read_all(INDEX)
    # One folder per content of the index: shards that were written anew are fetched anew.
    name = hashlib.sha256(folder.encode() + b"\0" + content).hexdigest()[:16]
    cache = user_cache() / "shards" if shards_cache is None else Path(shards_cache)
    store = Store(root, cache / name, int(shards_cache_gb * 1e9))
    index = load_index(content, store, folder)
    files = ShardFiles(store, index)
    splits = np.array([split_number(shard.split) for shard in index.shards], np.int8)
    return Listing(
        root=Path(store.root),
        paths=index.paths,
        labels=index.labels,
        splits=splits[index.shard_of],
        class_names=index.class_names,
        has_class_list=True,
        boxes=BoxTable(len(index.paths), index.box_rows.tolist(), index.boxes_xyxy.tolist()),
        masks=files.mask,
        contents=files.picture,
        groups=index.shard_of,
    )


@dataclass(frozen=True, eq=False)
class ShardFiles:
    """The files of the samples, by the row of their picture."""

    store: Store
    index: ShardIndex

    def picture(self, row: int) -> bytes:
        """The file of the picture at ``row``, byte for byte as it was."""
        return self._read(row, self.index.places)

    def mask(self, row: int) -> Tensor | None:
        """The mask of the picture at ``row``, (H, W) uint8, if it has one."""
        if not self.index.mask_places[row, 1]:
            return None
        data = np.frombuffer(self._read(row, self.index.mask_places), np.uint8)
        mask = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
        if mask is None:
            raise CamtrainValueError(
                f"The mask of {self.index.paths[row]} in the shards cannot be read; write the "
                "shards again with camtrain shards."
            )
        return torch.from_numpy(mask)

    def _read(self, row: int, places: NDArray[np.int64]) -> bytes:
        start, count = places[row].tolist()
        return self.store.read(self.index.shards[self.index.shard_of[row]], start, count)
