"""Splits: their names, and how one folder of pictures is divided into them."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal

from camtrain.errors import CamtrainValueError

Split = Literal["train", "val", "test"]


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

    Raises:
        CamtrainValueError: A fraction is outside [0, 1), or they leave nothing for train.
    """
    check_fractions(val_fraction, test_fraction)
    order = sorted(names, key=lambda name: _digest(f"{seed}:{name}"))
    val = _share(len(order), val_fraction, len(order) - 1)
    test = _share(len(order), test_fraction, len(order) - 1 - val)
    return {
        "train": sorted(order[val + test :]),
        "val": sorted(order[:val]),
        "test": sorted(order[val : val + test]),
    }


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raise when no split can have these parts."""
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise CamtrainValueError(
            "val_fraction and test_fraction must be at least 0 and leave something for train "
            f"(sum below 1), got {val_fraction} and {test_fraction}."
        )


def _share(count: int, fraction: float, available: int) -> int:
    """The number of pictures nearest to the fraction, at least one where one is to be had."""
    return min(max(1, round(count * fraction)), max(available, 0)) if fraction else 0


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogateescape")).digest()  # any file name of the system
