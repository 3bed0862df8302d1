"""The plain-text lists that data sets come with: one picture per line, fields side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError


class Line(NamedTuple):
    """One line of a list: where it stands, for messages, and what."""

    place: str
    fields: list[str]

    def integer(self, column: int, *, below: int | None = None, first: int = 0) -> int:
        """The whole number in a column, from ``first`` on and below ``below``."""
        text = self.fields[column]
        last = "" if below is None else f" to {below - 1}"
        number = int(text) if text.isdecimal() else -1
        if number < first or (below is not None and number >= below):
            raise CamtrainValueError(
                f"{self.place}: expected a whole number from {first}{last}, got {text!r}; correct "
                "the line, or download the list again."
            )
        return number

    def numbers(self, *columns: int) -> list[float]:
        """The numbers in some columns."""
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
    """The lines of a list that are not empty.

    Args:
        file: UTF-8, with or without a byte order mark.
        form: The fields of a line, for the count and for messages, such as ``path label``.
        separator: Between the fields; None means blanks.
        from_right: The first field may hold the separator, else the last.
    """
    most = len(form.split(separator)) - 1
    empty = True
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, text in enumerate(lines, start=1):
                line = text.strip()
                if not line:
                    continue
                split = line.rsplit if from_right else line.split
                fields = [field.strip() for field in split(separator, most)]
                place = f"{file}, line {number}"
                if len(fields) <= most:
                    raise CamtrainValueError(
                        f"{place}: expected {form}, got {line!r}; correct the line, or download "
                        "the list again."
                    )
                empty = False
                yield Line(place, fields)
    except UnicodeDecodeError as error:
        raise CamtrainValueError(
            f"{file} must be a text of lines {form}, but is none ({error.reason}); download it "
            "again."
        ) from None
    if empty:
        raise CamtrainValueError(f"{file} must have lines {form}, but is empty; download it again.")


def find(root: Path, names: Sequence[str], what: str) -> Path:
    """The first of some files or folders that exists."""
    for name in names:
        if (root / name).exists():
            return root / name
    others = f" (or {', '.join(names[1:])})" if names[1:] else ""
    raise CamtrainFileNotFoundError(
        f"{root} lacks {names[0]}{others}, {what}; put it there, or point --data.root at another "
        "folder."
    )


def check_first(path: Path, place: Path) -> None:
    """Make sure that the first picture of a list is there; a wrong folder is found out at once."""
    if not path.is_file():
        raise CamtrainFileNotFoundError(
            f"{place} names {path} first, which does not exist; put the pictures there, or point "
            "--data.root at another folder."
        )
