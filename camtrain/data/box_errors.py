"""Boxes that cannot be right: refused at once, or listed by whoever wants to know them all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from camtrain.errors import CamtrainValueError


class BoxError(CamtrainValueError):
    """An entry in a file of boxes that cannot be right.

    Args:
        message: The file and the line, what was expected, and what is there.
        path: The picture that the entry is about, as the file spells it; "" where it says none,
            or where the error comes from a worker.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


_listed: ContextVar[list[BoxError] | None] = ContextVar("_listed", default=None)


def refuse_box(message: str, path: str) -> None:
    """Called by the readers of boxes, which pass the entry over if this returns.

    Raises:
        BoxError: Nobody lists the errors.
    """
    errors, error = _listed.get(), BoxError(message, path)
    if errors is None:
        raise error
    errors.append(error)


@contextmanager
def listed_box_errors() -> Iterator[list[BoxError]]:
    """Meanwhile the readers of boxes go on after an error, and it is added to the list."""
    errors: list[BoxError] = []
    token = _listed.set(errors)
    try:
        yield errors
    finally:
        _listed.reset(token)
