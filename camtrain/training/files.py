"""Files that are replaced whole: whoever is killed while writing leaves the old one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path to write to instead; it takes the place of ``path`` at the end, if all went well.

    It lies in the same folder, since only within a file system is renaming atomic, and is on the
    disk before it takes the place: a power cut leaves the old file or the new one.
    """
    part = path.with_name(f".{path.name}.part")
    yield part
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def write_text(path: Path, text: str, *, encoding: str | None = "utf-8") -> None:
    """Write a file atomically; an encoding of None is that of the locale."""
    with replacing(path) as part:
        part.write_text(text, encoding=encoding)


def duplicate(source: Path, path: Path) -> None:
    """Make ``path`` a second name of a file that is only ever replaced; a copy where links fail."""
    if path.exists() and path.samefile(source):  # renaming one name to the other does nothing
        return
    with replacing(path) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, part)


def remove_parts(folder: Path) -> None:
    """Delete what a killed run had begun to write."""
    for part in folder.rglob(".*.part"):
        part.unlink()
