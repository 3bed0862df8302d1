"""Files that are written whole or not at all, and where the user's caches lie."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

from camtrain.errors import CamtrainError, CamtrainOSError, CamtrainValueError

if TYPE_CHECKING:
    from PIL.Image import Image

_locks: set[int] = set()  # descriptors of this process


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold a lock on a file or folder, which the system releases when this process ends.

    Where there are no such locks, as on some network drives, nothing is held.

    Args:
        path: Of the file or folder.
        message: Of the error.

    Raises:
        CamtrainValueError: Another process holds the lock, or another part of this one.
    """
    descriptor = os.open(path, os.O_RDONLY)
    _locks.add(descriptor)
    try:
        with suppress(ImportError, OSError):  # on Windows, and where the file system has no locks
            import fcntl

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CamtrainValueError(message) from None
        yield
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)


def _leave_locks_to_parent() -> None:
    """Close the locks in a forked process, which would hold them after the end of its parent."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_parent)


@contextmanager
def replacing(path: Path, *, needed: int = 0, is_synced: bool = True) -> Iterator[Path]:
    """A path to write to, which replaces ``path`` at the end if no exception was raised.

    The other path lies in the same folder, since renaming is atomic only within a file system. Its
    content reaches the disk before the renaming: a power cut leaves the old file or the new one.
    It keeps the suffix, and no other process uses its name.

    Args:
        path: The file.
        needed: Bytes that it takes at least, if that is known before.
        is_synced: Let the content reach the disk; otherwise a power cut may leave an empty file.

    Raises:
        CamtrainOSError: The disk is full, or the system refuses the file otherwise.
    """
    if path.exists() and not path.is_file():  # such as /dev/stdout
        with writing(path):
            yield path
        return
    part = path.with_name(f".{path.stem}-{uuid4().hex}.part{path.suffix}")
    try:
        with writing(path, part, needed=needed):
            yield part
            if is_synced:
                with open(part, "rb+") as file:
                    os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def writing(path: Path, part: Path | None = None, *, needed: int = 0) -> Iterator[None]:
    """Say in a sentence that the system refuses to write a file.

    Args:
        path: The file, for the sentence.
        part: What is really written, until it replaces the file.
        needed: Bytes that it takes at least.

    Raises:
        CamtrainOSError: The disk is full, or the system refuses the file otherwise.
    """
    try:
        if needed > (free := free_bytes(path)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except CamtrainError:
        raise
    except Exception as error:
        # torch, NumPy and safetensors have errors of their own for a full disk: one more try tells.
        reason = getattr(error, "strerror", None) or (_refusal(part) if part else None)
        if not reason:
            raise
        needed = needed or (path.stat().st_size if part and path.is_file() else 0)
        takes = f", it takes about {format_bytes(needed)}" if needed else ""
        free = free_bytes(path)
        raise CamtrainOSError(
            f"{path} cannot be written ({reason}: {format_bytes(free)} are free{takes}); make "
            "room, or choose another place."
        ) from error


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file all of the content, or nothing.

    Raises:
        CamtrainOSError: The disk is full, or the system refuses the file otherwise.
    """
    size = path.stat().st_size if path.exists() else 0
    try:
        with writing(path), open(path, "ab") as file:
            file.write(content)
    except CamtrainError:
        with suppress(OSError):
            os.truncate(path, size)
        raise


def _refusal(path: Path) -> str | None:
    """Why the system takes no more bytes for a file, which is of no more use; None if it does."""
    try:
        with open(path, "ab") as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror
    return None


def free_bytes(path: Path) -> int:
    """Free space, in bytes, of the disk of a file or folder that need not exist yet."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def format_bytes(nbytes: int) -> str:
    """A number of bytes in decimal units.

    Example:
        >>> format_bytes(900), format_bytes(66_200_000), format_bytes(2_100_000_000)
        ('0.0 MB', '66.2 MB', '2.1 GB')
    """
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def check_writable(path: Path, option: str) -> None:
    """Check that a file or folder can be made, before the work whose result it shall hold.

    Args:
        path: Of the file or folder; the folders above it may be missing too. Nothing is left there.
        option: The option that named it, for the message.

    Raises:
        CamtrainValueError: Nothing can be written there.
    """
    parents = (parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=path if path.is_dir() else next(parents)):
            pass
    except OSError as error:
        raise CamtrainValueError(
            f"{option} must name a place where files can be written, got {path} "
            f"({error.strerror or error}); choose another."
        ) from error


def write_text(path: Path, text: str, *, encoding: str | None = "utf-8") -> None:
    """Write a file atomically; an encoding of None is that of the locale."""
    with replacing(path) as part:
        part.write_text(text, encoding=encoding)


def write_picture(path: Path, picture: Image, *, is_synced: bool = True) -> None:
    """Write a PNG or JPEG atomically; Pillow itself passes over what a full disk cuts off."""
    content = BytesIO()
    kind: dict[str, Any] = {"format": "JPEG", "quality": 90}
    picture.save(content, **({"format": "PNG"} if path.suffix == ".png" else kind))
    with replacing(path, is_synced=is_synced) as part:
        part.write_bytes(content.getbuffer())


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file to read it; a pipe, a socket or a device is refused, not waited for.

    Raises:
        OSError: It is no regular file, or the system refuses it.
    """
    no_waiting = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda path, flags: os.open(path, flags | no_waiting))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return file


def read_utf8(file: Path, *, errors: str = "strict") -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Args:
        file: The file.
        errors: What to do about bytes that are no UTF-8, as in ``bytes.decode``.

    Raises:
        CamtrainValueError: The file is no UTF-8; names the line.
    """
    try:
        with open_regular(file) as content:
            return content.read().decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CamtrainValueError(
            f"{file}, line {line}: the text must be UTF-8, got the byte "
            f"0x{error.object[error.start]:02x}; save the file as UTF-8."
        ) from None


_MOST_VALUES, _DEEPEST, _LONGEST_TEXT, _LARGEST = 2_000_000, 50, 2**20, 2**64
_LONGEST_NAME = 10_000


def check_nested(values: object) -> None:
    """Refuse the values of a file that nobody could print: too many, too deep, too long.

    A list that is used a hundred times counts a hundred times.

    Raises:
        CamtrainValueError: They are.
    """
    end, count = object(), 0
    levels = [iter([values])]
    while levels:
        value = next(levels[-1], end)
        if value is end:
            levels.pop()
            continue
        count += 1
        if count > _MOST_VALUES or len(levels) > _DEEPEST:
            raise CamtrainValueError(
                f"its values are more than {_MOST_VALUES} or nested deeper than {_DEEPEST}"
            )
        if isinstance(value, (list, tuple, set, frozenset)):
            levels.append(iter(value))
        elif isinstance(value, dict):
            levels += [iter(value.keys()), iter(value.values())]
        elif isinstance(value, int) and abs(value) > _LARGEST:
            raise CamtrainValueError("it holds a number beyond 64 bits")
        elif isinstance(value, (str, bytes)) and len(value) > _LONGEST_TEXT:
            raise CamtrainValueError(f"it holds a text of {len(value)} characters")


def check_names(part: str, names: Any) -> tuple[str, ...]:  # noqa: ANN401
    """The names themselves; raise CamtrainValueError unless they are a list of short texts."""
    are_names = isinstance(names, list) and all(
        isinstance(name, str) and len(name) <= _LONGEST_NAME for name in names
    )
    if not are_names:
        raise CamtrainValueError(f"{part} must be a list of names")
    return tuple(names)


def checked_numbers(part: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by name, as floats; raise CamtrainValueError for anything else."""
    if not isinstance(values, Mapping) or not all(
        isinstance(value, int | float) for value in values.values()
    ):
        raise CamtrainValueError(f"{part} must hold numbers")
    check_names(part, list(values))
    return {name: float(value) for name, value in values.items()}


def check_stored(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse a zip file of ``size`` bytes whose members are compressed, which could be any amount.

    Raises:
        CamtrainValueError: They are.
    """
    infos = archive.infolist()
    stored = sum(info.file_size for info in infos)
    if stored > size or any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise CamtrainValueError(f"its members unpack to {stored} bytes, the file has {size}")


def duplicate(source: Path, path: Path) -> None:
    """Link ``path`` to a file that is only ever replaced, or copy the file where links fail."""
    if path.exists() and path.samefile(source):  # renaming one name to the other does nothing
        return
    with replacing(path) as part:
        try:
            os.link(source, part)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, part)


def remove_parts(folder: Path) -> None:
    """Delete the unfinished files that a killed process left in a folder and below it."""
    for pattern in (".*.part", ".*.part.*"):  # without a suffix, and with one
        for part in folder.rglob(pattern):
            part.unlink()


def user_cache() -> Path:
    """The folder ``camtrain`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; it may be deleted.

    It cannot be made for a user without a home.
    """
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.devnull if folder.startswith("~") else folder) / "camtrain"
