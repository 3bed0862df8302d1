"""Bytes of shards, from a folder or from a URL, through the webdataset library."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO

from camtrain.errors import CamtrainError, CamtrainFileNotFoundError, CamtrainValueError
from camtrain.files import user_cache

# Not the library's pipe: URLs, which run commands: a checkpoint could bring one.
_SCHEMES = ("http", "https", "ftps", "sftp", "gs", "ais", "hf")


def webdataset(module: str) -> ModuleType:
    """A module of the webdataset library."""
    try:
        return importlib.import_module(f"webdataset.{module}")
    except ImportError as error:
        raise CamtrainError(
            "Shards need the webdataset library; run: pip install 'camtrain[shards]'"
        ) from error


def is_url(root: str | os.PathLike[str]) -> bool:
    """Whether a data folder is somewhere else than on disk."""
    return "://" in os.fspath(root)


class Store:
    """The files of a folder of shards, by name.

    Args:
        root: A folder, or the URL of one.
        cache: The folder that keeps what comes from a URL; it holds one data set.
        cache_bytes: Its size; the shards that were fetched first are deleted beyond it.
    """

    def __init__(self, root: str | os.PathLike[str], cache: Path, cache_bytes: int) -> None:
        self.root = (
            os.fspath(root).rstrip("/") if is_url(root) else str(Path(root).expanduser().absolute())
        )
        scheme = self.root.partition("://")[0]
        if is_url(root) and scheme not in _SCHEMES:
            raise CamtrainValueError(
                f"--data.root must be a folder or a URL of {', '.join(_SCHEMES)}, got "
                f"{self.root}; mount or copy the shards."
            )
        self.cache = cache.expanduser()
        self.cache_bytes = cache_bytes

    def read_all(self, name: str) -> bytes:
        """A whole small file, which is not kept."""
        place = f"{self.root}/{name}"
        try:
            with webdataset("gopen").gopen(place) as stream:
                data: bytes = stream.read()
        except OSError as error:
            raise CamtrainFileNotFoundError(
                f"{place} cannot be read ({error}); --data.root must be a folder or URL that "
                "camtrain shards has written."
            ) from error
        return data

    def read(self, name: str, start: int, count: int, *, size: int) -> bytes:
        """Some bytes of a shard.

        Args:
            name: The shard.
            start: First byte.
            count: How many.
            size: Of the whole file, in bytes.
        """
        place = f"{self.root}/{name}"
        try:
            with self._open(place, name) as file:
                actual = os.fstat(file.fileno()).st_size
                if actual == size:
                    file.seek(start)
                    return file.read(count)
        except (OSError, ValueError) as error:
            raise CamtrainFileNotFoundError(
                f"The shard {place} cannot be read ({error}); copy it again, or check the "
                "connection."
            ) from error
        if is_url(self.root):
            (self.cache / name).unlink(missing_ok=True)
        raise CamtrainValueError(
            f"The shard {place} must have {size} bytes, got {actual}; copy it again, or write the "
            "shards again with camtrain shards."
        )

    def _open(self, place: str, name: str) -> IO[bytes]:
        if not is_url(self.root):
            return _opened(place)
        try:
            return _opened(str(self.cache / name))
        except FileNotFoundError:
            return self._fetched(place, name)

    def _fetched(self, url: str, name: str) -> IO[bytes]:
        """The shard as a file, fetched by one process while the others wait for it."""
        library = webdataset("cache")
        cache = library.FileCache(
            str(self.cache),
            url_to_name=lambda url: name,
            cache_size=self.cache_bytes,
            cache_cleanup_interval=0,
        )
        with _locked(self.cache.with_name(f"{self.cache.name}.locks") / name):
            try:
                return _opened(cache.get_file(url))
            except FileNotFoundError:  # another process has just made room
                return _opened(cache.get_file(url))


def _opened(path: str) -> IO[bytes]:
    file: IO[bytes] = webdataset("gopen").gopen(path)
    return file


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # there is none on Windows, where URLs cannot be read then

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache_folder(cache: str | os.PathLike[str] | None, root: str, index: bytes) -> Path:
    """Where the shards of one URL are kept; another place once they are written anew."""
    folder = user_cache() / "shards" if cache is None else Path(cache)
    return folder / hashlib.sha256(root.encode() + b"\0" + index).hexdigest()[:16]
