"""Splits: how pictures are divided into them, and the file that keeps a division."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from camtrain.data.lists import csv_reader
from camtrain.data.source import UNDECIDED, Listing, Source, Split, split_number
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError, warn
from camtrain.files import replacing
from camtrain.labels import label_names


def divide(
    names: Iterable[str], *, seed: int, val_fraction: float, test_fraction: float
) -> dict[Split, list[str]]:
    """Divide the pictures of one class: called for every class, it makes a stratified split.

    The order is that of a hash of seed and name, so neither other classes nor the order of the
    names matter, and a picture more moves few others. A class keeps at least one picture in train,
    then gets at least one in val, then in test.

    Args:
        names: The pictures of one class; unique.
        seed: Chooses the division.
        val_fraction: Part for val, in [0, 1).
        test_fraction: Part for test, in [0, 1).

    Returns:
        The names of each split, sorted.
    """
    check_fractions(val_fraction, test_fraction)
    order = sorted(
        names,  # "surrogateescape": any file name of the system
        key=lambda name: blake2b(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest(),
    )
    val = _share(len(order), val_fraction, len(order) - 1)
    test = _share(len(order), test_fraction, len(order) - 1 - val)
    return {
        "train": sorted(order[val + test :]),
        "val": sorted(order[:val]),
        "test": sorted(order[val : val + test]),
    }


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raise if a fraction is negative, or if nothing is left for train."""
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise CamtrainValueError(
            "val_fraction and test_fraction must be at least 0 and leave something for train "
            f"(sum below 1), got {val_fraction} and {test_fraction}."
        )


def _share(count: int, fraction: float, available: int) -> int:
    """The number of pictures nearest to the fraction: at least one, if it is available."""
    return min(max(1, round(count * fraction)), max(available, 0)) if fraction else 0


_COLUMNS = ("path", "label", "split")


def with_splits(
    listing: Listing,
    *,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    split_file: str | os.PathLike[str] | None = None,
) -> Listing:
    """A listing whose splits are decided, with val wherever there is train.

    Pictures of no split are divided into train, val and test; of a data set that has train and no
    val, train is divided into train and val. Both by ``divide``, class by class. Where the pictures
    have several labels, each goes with the rarest of its classes.

    ``split_file``, written by ``write_split``, decides instead for the pictures that it names;
    others that would have to be divided are left out, with a warning.
    """
    check_fractions(val_fraction, test_fraction)
    splits = listing.splits.copy()
    is_open = splits == UNDECIDED
    if not is_open.any() and not (splits == split_number("val")).any():
        is_open = splits == split_number("train")
        test_fraction = 0.0
    rows = np.flatnonzero(is_open)
    if split_file is not None:
        return replace(
            listing, splits=_splits_of_file(listing, rows, Path(split_file)), is_divided=True
        )
    for stratum in _strata(listing, rows):
        places = {listing.paths[row]: row for row in stratum}
        parts = divide(places, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
        for split, paths in parts.items():
            splits[[places[path] for path in paths]] = split_number(split)
    return replace(listing, splits=splits, is_divided=len(rows) > 0)


def _strata(listing: Listing, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Groups of rows that are divided together: those of one class, and those of no class."""
    labels = listing.labels[rows]
    if labels.ndim == 2:
        rarest_first = np.argsort(labels.sum(0), kind="stable")
        rarest = rarest_first[labels[:, rarest_first].argmax(1)]
        labels = np.where(labels.any(1), rarest, labels.shape[1])
    order = np.argsort(labels, kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(labels[order])) + 1) if len(rows) else []


def _splits_of_file(listing: Listing, open_rows: NDArray[np.int64], file: Path) -> NDArray[np.int8]:
    """The splits of the file; ``open_rows`` that it does not name are left ``UNDECIDED``."""
    stored_splits = read_split(file)
    splits = listing.splits.copy()
    splits[open_rows] = UNDECIDED
    count = 0
    for row, path in enumerate(listing.paths):
        if path in stored_splits:
            splits[row] = split_number(stored_splits[path])
            count += 1
    if not count:
        raise CamtrainValueError(
            f"{file} holds the split of other pictures than those of {listing.root}; give the "
            "data folder that it was made with, or --data.split_file null to divide anew."
        )
    new, lost = int((splits == UNDECIDED).sum()), len(stored_splits) - count
    if new:
        warn(
            f"{new} of the pictures of {listing.root} are in no split of {file} and are left out; "
            "a new run divides anew.",
            stacklevel=2,
        )
    if lost:
        warn(
            f"{lost} of the pictures that {file} names are no longer in {listing.root}.",
            stacklevel=2,
        )
    return splits


def read_split(file: Path) -> dict[str, Split]:
    """The split of each path, from ``path,label,split``."""
    if not file.is_file():
        raise CamtrainFileNotFoundError(
            f"The file of splits {file} does not exist; give --data.split_file null to divide the "
            "pictures by --data.seed."
        )
    reader = csv_reader(
        file,
        ("path", "split"),
        header=",".join(_COLUMNS),
        advice="it is written by a run, take that of another",
        errors="surrogateescape",
    )
    split_of: dict[str | None, Split] = {split: split for split in get_args(Split)}
    stored_splits: dict[str, Split] = {}
    for row in reader:
        if row["split"] not in split_of:
            raise CamtrainValueError(
                f"{file}, line {reader.line_num}: the split must be one of "
                f"{', '.join(get_args(Split))}, got {row['split']!r}; correct the line."
            )
        stored_splits[row["path"]] = split_of[row["split"]]
    return stored_splits


def write_split(file: Path, sources: Mapping[Split, Source]) -> None:
    """Write which picture of a data set is in which split, as ``path,label,split``, atomically.

    Paths are relative to the data folder, so that it can be moved; the file can also be read as the
    source ``csv``, once it lies in the data folder.
    """
    with (
        replacing(file) as part,
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as lines,
    ):
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for split, source in sources.items():
            folder = f"{getattr(source, 'root', '')}{os.sep}"
            for path, label in zip(source.paths, source.labels, strict=True):
                names = label_names(label, source.class_names)
                writer.writerow([path.removeprefix(folder), ";".join(names), split])
