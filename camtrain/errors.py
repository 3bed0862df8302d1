"""The errors that camtrain raises on purpose: the command line shows them as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_MOST_CHARACTERS = 300


class CamtrainError(Exception):
    """Something the caller can mend: what is wrong, what was expected, and the next step."""


class CamtrainValueError(CamtrainError, ValueError):
    """An argument has a value that cannot work."""


class CamtrainTypeError(CamtrainError, TypeError):
    """An argument has a type that cannot work."""


class CamtrainFileNotFoundError(CamtrainError, FileNotFoundError):
    """A path does not exist or holds nothing usable."""


def one_line(error: BaseException) -> str:
    r"""An exception within a message: its type and its text, on one line of at most 300 characters.

    Example:
        >>> one_line(KeyError("size"))
        "KeyError: 'size'"
        >>> one_line(CamtrainValueError("size must be positive,\n got 0."))
        'size must be positive, got 0.'
    """
    text, name = " ".join(str(error).split()), type(error).__name__
    if not isinstance(error, CamtrainError) or not text:
        text = f"{name}: {text}" if text else name
    return text[:_MOST_CHARACTERS]


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
            f"`pip install 'camtrain[{extra}]'`."
        ) from error
