"""Reads the lists of pictures that data sets come with, and holds lists of paths in memory."""

from __future__ import annotations

import csv
import io
import logging
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.files import open_regular, read_utf8

_logger = logging.getLogger(__name__)
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@cache
def notice(text: str) -> None:
    """Print a text on the terminal, the same text only once."""
    _logger.warning(text)


class Line(NamedTuple):
    """One line of a list."""

    place: str  # its file and number, for messages
    fields: list[str]

    def integer(self, column: int, *, start: int = 0, below: int | None = None) -> int:
        """The whole number in a column; raises unless ``start <= number < below``."""
        text = self.fields[column]
        limits = f"{start}" if below is None else f"{start} to {below - 1}"
        number = int(text) if text.isdecimal() else -1
        if number < start or (below is not None and number >= below):
            raise CamtrainValueError(
                f"{self.place}: expected a whole number from {limits}, got {text!r}; correct "
                "the line, or download the list again."
            )
        return number

    def numbers(self, *columns: int) -> list[float]:
        """The numbers in some columns; raises if a field holds none."""
        texts = [self.fields[column] for column in columns]
        try:
            return [float(text) for text in texts]
        except ValueError:
            raise CamtrainValueError(
                f"{self.place}: expected numbers, got {', '.join(texts)}; correct the line, or "
                "download the list again."
            ) from None


def lines_of(
    file: Path, form: str, *, separator: str | None = None, from_right: bool = True
) -> Iterator[Line]:
    """The lines of a list, without the empty ones.

    Args:
        file: UTF-8, with or without a byte order mark.
        form: The names of the fields, such as ``path label``. Every line has as many fields.
        separator: It stands between the fields; None means blanks.
        from_right: Which field may contain the separator: the first if true, else the last.

    Raises:
        CamtrainValueError: The file is empty or no UTF-8, or a line has too few fields.
    """
    most = len(form.split(separator)) - 1
    is_empty = True
    try:
        with io.TextIOWrapper(open_regular(file), encoding="utf-8-sig") as lines:
            for number, text in enumerate(lines, start=1):
                line = text.strip()
                if not line:
                    continue
                refuse_null(line, file, number)
                split = line.rsplit if from_right else line.split
                fields = [field.strip() for field in split(separator, most)]
                place = f"{file}, line {number}"
                if len(fields) <= most:
                    raise CamtrainValueError(
                        f"{place}: expected {form}, got {line!r}; correct the line, or download "
                        "the list again."
                    )
                is_empty = False
                yield Line(place, fields)
    except UnicodeDecodeError as error:
        raise CamtrainValueError(
            f"{file} must be a text of lines {form}, but is none ({error.reason}); download it "
            "again."
        ) from None
    if is_empty:
        raise CamtrainValueError(f"{file} must have lines {form}, but is empty; download it again.")


def find_one_of(root: Path, names: Sequence[str], what: str) -> Path:
    """The first of some files or folders of ``root`` that exists.

    Args:
        root: The data folder.
        names: The names to try, in this order.
        what: The message's words for what is missing.

    Raises:
        CamtrainFileNotFoundError: None of them exists.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    alternatives = f" (or {', '.join(names[1:])})" if names[1:] else ""
    raise CamtrainFileNotFoundError(
        f"{root} lacks {names[0]}{alternatives}, {what}; put it there, or point --data.root at "
        "another folder."
    )


def check_first_picture(path: Path, list_file: Path) -> None:
    """Raise if the first picture of a list does not exist: the data folder is then wrong."""
    if not path.is_file():
        raise CamtrainFileNotFoundError(
            f"{list_file} names {path} first, which does not exist; put the pictures there, or "
            "point --data.root at another folder."
        )


def csv_reader(
    file: Path,
    columns: Sequence[str],
    *,
    header: str,
    advice: str = "add the header",
    errors: str = "strict",
) -> csv.DictReader[str]:
    """The rows of a CSV file in UTF-8, with or without a byte order mark.

    The columns are named in lower case where ``columns`` are. Commas, semicolons or tabs stand
    between them, and blanks may follow; a notice tells of anything but commas and of capitals.

    Args:
        file: Its first line holds the names of its columns.
        columns: Names that must be among them.
        header: The first line as the message asks for it.
        advice: What the message advises if a column is missing.
        errors: What to do about bytes that are no UTF-8, as in ``bytes.decode``.

    Raises:
        CamtrainValueError: A column is missing, or the file is no UTF-8, or has a null byte.
    """
    text = read_utf8(file, errors=errors)
    if "\0" in text:
        refuse_null(text, file, text.count("\n", 0, text.index("\0")) + 1)
    first_line = text.partition("\n")[0].strip()
    separator = max(_SEPARATORS, key=first_line.count)
    reader = _Rows(
        file,
        io.StringIO(text, newline=""),
        delimiter=separator,
        skipinitialspace=f"{separator} " in first_line,
    )
    names = [name.strip().lower() for name in reader.fieldnames or ()]
    is_lowered = len(set(names)) == len(names) and all(map(str.islower, columns))
    if is_lowered:
        reader.fieldnames = names
    missing_columns = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing_columns:
        raise CamtrainValueError(
            f"{file} must start with the line {header}, but it lacks {', '.join(missing_columns)}; "
            f"{advice}."
        )
    if separator != "," or (is_lowered and first_line != first_line.lower()):
        notice(
            f"{file} is read with {_SEPARATORS[separator]} between its columns "
            f"{', '.join(reader.fieldnames or ())}."
        )
    return reader


class _Rows(csv.DictReader):  # type: ignore[type-arg]
    """The rows of a file, whose damages are one sentence."""

    def __init__(self, file: Path, text: io.StringIO, **options: Any) -> None:
        super().__init__(text, **options)
        self._file = file
        with self._refusing():
            _ = self.fieldnames  # reads the first line

    def __next__(self) -> dict[str | Any, str | Any]:
        """The next row."""
        with self._refusing():
            return super().__next__()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except csv.Error as error:
            raise CamtrainValueError(
                f"{self._file}, line {self.line_num + 1}: {error}; correct the line, in which a "
                "quotation mark may be missing."
            ) from None


def refuse_null(text: str, file: Path, number: int) -> None:
    """Raise if a line, or what begins before it, holds a null byte, which no path can have."""
    if "\0" in text:
        raise CamtrainValueError(
            f"{file}, line {number}: the text holds a null byte, as damaged files do; correct or "
            "delete the line."
        )


def path_in(folder: str, path: str) -> str:
    """The normalized path, relative to ``folder`` if it lies below it.

    Args:
        folder: An absolute path.
        path: Relative to ``folder``, or absolute; "" stays "".

    Example:
        >>> path_in("/photos", "./cat/1.jpg"), path_in("/photos", "/photos/cat/1.jpg")
        ('cat/1.jpg', 'cat/1.jpg')
    """
    return os.path.normpath(path).removeprefix(os.path.join(folder, "")) if path else ""


class PathList(Sequence[str]):
    """Holds many paths in little memory: a buffer of bytes, which lists taken from it share.

    Args:
        buffer: The paths one after another, as the file system spells them.
        starts: (N,) int64, where each path begins in ``buffer``.
        ends: (N,) int64, where each path ends in ``buffer``.
        folder: It is put before every path that is not absolute.

    Example:
        >>> paths = PathList.of(["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"])
        >>> list(paths.take(np.array([2, 0])).below("photos"))
        ['photos/dog/1.jpg', 'photos/cat/1.jpg']
    """

    def __init__(
        self, buffer: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64], folder: str = ""
    ) -> None:
        self.buffer = buffer
        self.starts = starts
        self.ends = ends
        self.folder = folder

    @classmethod
    def of(cls, paths: Iterable[str]) -> PathList:
        """A list of the given paths."""
        buffer, ends = bytearray(), array("q")
        for path in paths:
            buffer += os.fsencode(path)
            ends.append(len(buffer))
        return cls.from_ends(bytes(buffer), np.array(ends, np.int64))

    @classmethod
    def from_ends(cls, buffer: bytes, ends: NDArray[np.int64]) -> PathList:
        """A list of paths that fill ``buffer`` without gaps; each one ends at one of ``ends``."""
        return cls(buffer, np.concatenate([np.zeros(1, np.int64), ends])[:-1], ends)

    def take(self, rows: NDArray[np.int64]) -> PathList:
        """The paths of some rows, in their order; the buffer is not copied."""
        return PathList(self.buffer, self.starts[rows], self.ends[rows], self.folder)

    def below(self, folder: str | os.PathLike[str]) -> PathList:
        """A list of the same paths, with ``folder`` put before those that are not absolute."""
        return PathList(self.buffer, self.starts, self.ends, os.fspath(folder))

    def __eq__(self, other: object) -> bool:
        """Whether another sequence holds the same paths."""
        return isinstance(other, Sequence) and list(self) == list(other)

    def __len__(self) -> int:
        """The number of paths."""
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> PathList: ...

    def __getitem__(self, index: int | slice) -> str | PathList:
        """The path at ``index``, or the paths of a slice."""
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        path = os.fsdecode(self.buffer[self.starts[index] : self.ends[index]])
        return os.path.join(self.folder, path) if self.folder else path
