"""Faults of a data set: they are raised, or listed where somebody wants to know all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from camtrain.errors import CamtrainError

Fault = TypeVar("Fault", bound=CamtrainError)


class _List(NamedTuple):
    kind: type[CamtrainError]
    faults: list[Any]  # of this kind


_list: ContextVar[_List | None] = ContextVar("_list", default=None)


def refuse(fault: CamtrainError) -> None:
    """Raise a fault; within ``listed_faults`` of its kind list it, and return to the reader."""
    current = _list.get()
    if current is None or not isinstance(fault, current.kind):
        raise fault
    current.faults.append(fault)


@contextmanager
def listed_faults(kind: type[Fault]) -> Iterator[list[Fault]]:
    """Let the readers of a data set go on after faults of a kind, which are added to the list."""
    faults: list[Fault] = []
    token = _list.set(_List(kind, faults))
    try:
        yield faults
    finally:
        _list.reset(token)
