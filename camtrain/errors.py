"""The errors that camtrain raises on purpose: the command line shows them as one sentence."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import SupportsIndex

_MOST_CHARACTERS = 300
_LAST_CHARACTERS = 120
_LONGEST_MESSAGE = 900  # whatever a file holds that it quotes


class CamtrainError(Exception):
    """An error that the caller can correct; its text says how."""

    def __str__(self) -> str:
        """The text; of a very long one beginning and end."""
        return _shortened(super().__str__(), _LONGEST_MESSAGE)


class CamtrainValueError(CamtrainError, ValueError):
    """An argument has a value that cannot work."""


class CamtrainTypeError(CamtrainError, TypeError):
    """An argument has a type that cannot work."""


class CamtrainFileNotFoundError(CamtrainError, FileNotFoundError):
    """A path does not exist or holds nothing usable."""


class CamtrainOSError(CamtrainError, OSError):
    """The system refuses to write or read a file."""


def refused_by_system(error: OSError) -> CamtrainOSError:
    """The sentence for an error of the system that no other one explains."""
    name = "a file" if error.filename is None else os.fsdecode(error.filename)
    return CamtrainOSError(
        f"The system refuses {name} ({error.strerror}); check that it may be read or written, and "
        "the room on its disk."
    )


def one_line(error: BaseException, *, with_type: bool = True) -> str:
    r"""An exception within a message, on one line of at most 300 characters.

    A longer text loses its middle: its end may name the next step.

    Args:
        error: Of an error of camtrain only the text is given.
        with_type: Give the type of other errors before their text, not only where they have none.

    Example:
        >>> one_line(KeyError("size"))
        "KeyError: 'size'"
        >>> one_line(CamtrainValueError("size must be positive,\n got 0."))
        'size must be positive, got 0.'
    """
    text, name = " ".join(str(error).split()), type(error).__name__
    if with_type and text and not isinstance(error, CamtrainError):
        text = f"{name}: {text}"
    text = text or name
    return _shortened(text, _MOST_CHARACTERS)


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most - _LAST_CHARACTERS - 5]} ... {text[-_LAST_CHARACTERS:]}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's text; the name of its type where it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise CamtrainValueError unless the value of an option is one of the choices."""
    if value not in choices:
        raise CamtrainValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def check_positive(name: str, value: object) -> int:
    """An integer above 0; raise CamtrainValueError for anything else, such as True and 2.0."""
    number = 0
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        with suppress(TypeError):  # a tensor of floats
            number = operator.index(value)
    if number < 1:
        raise CamtrainValueError(f"{name} must be an integer of at least 1, got {value!r}.")
    return number


def join_first(texts: Sequence[str], most: int = 10, *, separator: str = ", ") -> str:
    """The first of several texts for a message, and how many more there are.

    Example:
        >>> join_first(["ant", "bee", "cat"], 2), join_first(["ant", "bee"], 1, separator="; ")
        ('ant, bee and 1 more', 'ant; and 1 more')
    """
    more = f"{separator.strip(' ,')} and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + more


def warn(message: str, *, stacklevel: int = 2) -> None:
    """Warn as ``warnings.warn``; of the processes of one training, the first alone does so."""
    if {os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")} == {"0"}:
        warnings.warn(message, stacklevel=stacklevel + 1)


@contextmanager
def needs_extra(purpose: str, *, extra: str = "export") -> Iterator[None]:
    """Turn a missing package into one sentence that names the pip command.

    Raises:
        CamtrainValueError: A package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise CamtrainValueError(
            f"{purpose} needs the package {error.name}, which is not installed; run "
            f"`pip install {error.name}`, or `pip install -e '.[{extra}]'` in camtrain's folder."
        ) from error
