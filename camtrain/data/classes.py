"""One class list for all splits: its order, and the checks of the splits against it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from camtrain.data.source import UNDECIDED, Labels, Listing, Split
from camtrain.errors import CamtrainValueError, join_first

_logger = logging.getLogger(__name__)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of their labels: sorted, purely numeric ones as numbers.

    A line on the terminal says so of numeric names, since other programs sort them as text.

    Example:
        >>> in_order(["cat", "ant", "10"])
        ('10', 'ant', 'cat')
    """
    names = sorted(names)
    if not names or not all(name.isdecimal() for name in names):
        return tuple(names)
    ordered = tuple(sorted(names, key=lambda name: (int(name), name)))
    _notice(f"The class names are numbers and sorted as such: {join_first(ordered)}.")
    return ordered


@cache
def _notice(text: str) -> None:
    """Print a line on the terminal, once for each text."""
    _logger.warning(text)


def with_classes(listing: Listing, given: Sequence[str] | None) -> Listing:
    """A listing whose labels are places in one class list, after a check of its splits.

    The list is the given one; else that of the data set, if it has one; else the classes of train,
    where there is no train those of the first split.

    Args:
        listing: With splits decided.
        given: The class list of a trained network, which may have more classes than the pictures.
    """
    rows = listing.rows_by_split()
    if given is None and not listing.has_class_list:
        _check_own_classes(listing, rows)
        counts = listing.counts(next(iter(rows.values())))
        return _warn_of_missing(_renamed(listing, _with(listing.class_names, counts)), rows)
    if given is None:
        return _warn_of_missing(listing, rows)
    known = set(given)
    for split, places in rows.items():
        unknown = [n for n in _with(listing.class_names, listing.counts(places)) if n not in known]
        if unknown:
            raise CamtrainValueError(
                f"The {split} split of {listing.root} has the class {join_first(unknown)}, "
                f"unknown to class_names, which has {join_first(given)}; rename or remove the "
                "pictures, or give another --data.class_names."
            )
    return _renamed(listing, tuple(given))


_Rows = dict[Split, NDArray[np.int64]]


def _with(names: Sequence[str], counts: NDArray[np.int64]) -> tuple[str, ...]:
    """The names of the classes that have pictures."""
    return tuple(name for name, count in zip(names, counts, strict=True) if count)


def _check_own_classes(listing: Listing, rows: _Rows) -> None:
    """Refuse a class that train lacks, where the classes are those of train."""
    names = listing.class_names
    first, *later_splits = rows
    known = _with(names, listing.counts(rows[first]))
    of_first = set(known)
    for split in later_splits:
        unknown = [n for n in _with(names, listing.counts(rows[split])) if n not in of_first]
        if unknown:
            raise CamtrainValueError(
                f"The {split} split of {listing.root} has the class {join_first(unknown)}, "
                f"unknown to {first}, which has {join_first(known)}; rename or remove the "
                f"pictures, or add the class to {first}."
            )
    left_out = _with(names, listing.counts(np.flatnonzero(listing.splits == UNDECIDED)))
    known_or_undecided = of_first | set(left_out)
    empty = [name for name in names if name not in known_or_undecided]
    if empty and first == "train":
        raise CamtrainValueError(
            f"The class {join_first(empty)} has no image in the train split of {listing.root}; "
            "add images or remove the folder."
        )
    if len(known) < 2 and listing.labels.ndim == 1:
        raise CamtrainValueError(
            f"A classifier needs at least 2 classes, but {listing.root} has one, {known[0]!r}; "
            "add images of something else, or pass class_names."
        )


def _warn_of_missing(listing: Listing, rows: _Rows) -> Listing:
    for split, places in rows.items():
        present = set(_with(listing.class_names, listing.counts(places)))
        missing = [name for name in listing.class_names if name not in present]
        if missing:
            warnings.warn(
                f"The {split} split of {listing.root} has no image of the class "
                f"{join_first(missing)}.",
                stacklevel=4,
            )
    return listing


def _renamed(listing: Listing, names: tuple[str, ...]) -> Listing:
    """The same pictures with labels that are places in another list, -1 for those left out."""
    place = {name: number for number, name in enumerate(names)}
    moved = np.array([place.get(name, -1) for name in listing.class_names], np.int64)
    labels: Labels
    if listing.labels.ndim == 1:
        labels = moved[listing.labels.astype(np.int64)]
    else:
        labels = np.zeros((len(listing.labels), len(names)), np.bool_)
        labels[:, moved[moved >= 0]] = listing.labels[:, moved >= 0]
    return replace(listing, labels=labels, class_names=names)
