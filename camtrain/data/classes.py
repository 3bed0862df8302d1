"""One class list for all splits: its order, and the checks of the splits against it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from camtrain.data.faults import refuse
from camtrain.data.lists import notice
from camtrain.data.source import UNDECIDED, Labels, Listing, Split
from camtrain.errors import CamtrainValueError, join_first, warn
from camtrain.labels import class_counts, normal_form


def sort_class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of their labels: as numbers if all are numbers, else as text.

    If they are sorted as numbers, a line on the terminal says so: other programs sort them as text.

    Example:
        >>> sort_class_names(["cat", "ant", "10"])
        ('10', 'ant', 'cat')
    """
    names = sorted(names)
    if not names or not all(name.isdecimal() for name in names):
        return tuple(names)
    ordered = tuple(sorted(names, key=lambda name: (int(name), name)))
    notice(f"The class names are numbers and sorted as such: {join_first(ordered)}.")
    return ordered


def with_classes(listing: Listing, class_names: Sequence[str] | None) -> Listing:
    """The listing with one class list for all splits; each label is a position in this list.

    The list is ``class_names``, if given: that of a trained network, which may have more classes.
    Otherwise it is the list that comes with the data set. If there is none, it is made of the
    classes that have pictures in train, or in the first split if there is no train. Names that
    differ only in how accents are stored are of the same class, see ``normal_form``.

    Raises:
        CamtrainValueError: A split has a class that is not in the list; or the list is made of the
            pictures, and train has no picture of a class or a classifier has one class only, to
            which all pictures belong.
    """
    listing = _with_one_spelling(listing, class_names or ())
    rows_by_split = listing.rows_by_split()
    names_by_split = {s: _names_with_pictures(listing, rows) for s, rows in rows_by_split.items()}
    first = next(iter(names_by_split))
    names, owner, advice = names_by_split[first], str(first), f"add the class to {first}"
    if class_names is not None:
        names, owner, advice = tuple(class_names), "class_names", "give another --data.class_names"
    elif listing.has_class_list:
        names = listing.class_names
    known_names = set(names)
    for split, names_of_split in names_by_split.items():
        unknown_names = [name for name in names_of_split if name not in known_names]
        if unknown_names:
            message = (
                f"The {split} split of {listing.root} has the class {join_first(unknown_names)}, "
                f"unknown to {owner}, which has {join_first(names)}; rename or remove the "
                f"pictures, or {advice}."
            )
            refuse(CamtrainValueError(message))
            names = (*names, *unknown_names)
            known_names.update(unknown_names)
    if class_names is not None:
        return _with_class_list(listing, names)
    if not listing.has_class_list:
        _check_classes_found(listing, names, first)
    for split, names_of_split in names_by_split.items():
        names_in_split = set(names_of_split)
        missing_names = [name for name in names if name not in names_in_split]
        if missing_names:
            warn(
                f"The {split} split of {listing.root} has no image of the class "
                f"{join_first(missing_names)}.",
                stacklevel=3,
            )
    return _with_class_list(listing, names)


def _with_one_spelling(listing: Listing, class_names: Sequence[str]) -> Listing:
    """The listing with one name per class: as in ``class_names``, else the first."""
    spellings: dict[str, str] = {}
    for name in (*class_names, *listing.class_names):
        spellings.setdefault(normal_form(name), name)
    names = tuple(spellings[normal_form(name)] for name in listing.class_names)
    if names == listing.class_names:
        return listing
    return _with_class_list(replace(listing, class_names=names), tuple(dict.fromkeys(names)))


def _names_with_pictures(listing: Listing, rows: NDArray[np.int64]) -> tuple[str, ...]:
    """The names of the classes that have pictures among some rows."""
    counts = class_counts(listing.labels[rows], len(listing.class_names)).tolist()
    return tuple(name for name, count in zip(listing.class_names, counts, strict=True) if count)


def _check_classes_found(listing: Listing, names: tuple[str, ...], split: Split) -> None:
    """Check that train has pictures of every class, and that the pictures differ in their classes.

    ``names`` are the classes that have pictures in the first split.
    """
    undecided = _names_with_pictures(listing, np.flatnonzero(listing.splits == UNDECIDED))
    with_pictures = {*names, *undecided}
    empty = [name for name in listing.class_names if name not in with_pictures]
    if empty and split == "train":
        message = (
            f"The class {join_first(empty)} has no image in the train split of {listing.root}; "
            "add images or remove the folder."
        )
        refuse(CamtrainValueError(message))
    labels = listing.labels[listing.rows_of(split)]
    if len(names) < 2 and (labels.ndim == 1 or bool(labels.any(1).all())):
        message = (
            f"A classifier needs at least 2 classes, but {listing.root} has one, {names[0]!r}; "
            "add images of something else (in a CSV list, with an empty label and --model.task "
            "multilabel), or pass class_names."
        )
        refuse(CamtrainValueError(message))


def _with_class_list(listing: Listing, names: tuple[str, ...]) -> Listing:
    """The listing with another class list; a class that is not in it gets the label -1."""
    position = {name: number for number, name in enumerate(names)}
    new_labels = np.array([position.get(name, -1) for name in listing.class_names], np.int64)
    labels: Labels
    if listing.labels.ndim == 1:
        labels = new_labels[listing.labels.astype(np.int64)]
    else:
        labels = np.zeros((len(listing.labels), len(names)), np.bool_)
        for old, new in enumerate(new_labels):
            if new >= 0:  # several old classes may be the same one
                labels[:, new] |= listing.labels[:, old].astype(np.bool_)
    return replace(listing, labels=labels, class_names=names)
