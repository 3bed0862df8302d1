"""The confusion matrix as a picture: exact places where they are known, sizes, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from camtrain.errors import CamtrainValueError
from camtrain.visualize import charts, confusion_picture
from tests.conftest import at_night
from tests.visualize.conftest import PAPER, has

FULL, EMPTY = (0, 92, 173), (243, 245, 247)


def test_a_cell_is_as_dark_as_its_part_of_the_true_class() -> None:
    picture = confusion_picture(torch.tensor([[4, 0], [1, 3]]), ["a", "b"])
    assert has(picture, FULL)  # all of a
    assert has(picture, EMPTY)  # none of a is taken for b
    quarter = tuple(round(e + (f - e) / 4) for e, f in zip(EMPTY, FULL, strict=True))
    assert has(picture, quarter, tolerance=1)
    pixels = np.asarray(picture)
    rows, columns = np.nonzero((pixels == FULL).all(-1))
    dark = (np.abs(pixels.astype(int) - quarter) <= 1).all(-1)
    below, beside = np.nonzero(dark)
    assert rows.max() < below.min()  # truth goes down, prediction to the right
    assert beside.min() < columns.max()


@pytest.mark.parametrize("count", at_night([1, 2, 60], 60))
def test_names_of_any_length_fit(count: int) -> None:
    names = [f"{'W' * (3 * number)} {number}" for number in range(count)]
    picture = confusion_picture(torch.eye(count, dtype=torch.int64) * 12345, names)
    pixels = np.asarray(picture)
    assert count == 1 or picture.width == picture.height  # "predicted" is wider than one cell
    for edge in (pixels[-1], pixels[:, -1], pixels[:, 0]):
        assert (edge == PAPER).all()


def test_a_class_without_pictures_is_empty() -> None:
    picture = confusion_picture(torch.zeros(2, 2, dtype=torch.int64), ["a", "b"])
    assert not has(picture, FULL)
    assert has(picture, EMPTY)


@pytest.mark.parametrize(("shape", "names"), [((2, 3), ["a", "b"]), ((2, 2), ["a"]), ((0, 0), [])])
def test_bad_input_is_named(shape: tuple[int, int], names: list[str]) -> None:
    with pytest.raises(CamtrainValueError, match=r"confusion must be \(K, K\), a row and a column"):
        confusion_picture(torch.zeros(shape, dtype=torch.int64), names)


def test_no_label_covers_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text alone leaves ink where no other does, and all of it is in the whole picture."""
    confusion, names = torch.eye(3, dtype=torch.int64) * 12345, ["W" * 40, "i", "predicted"]
    write, calls = charts.write, 0

    def drawn(only: int | None) -> np.ndarray:
        nonlocal calls
        calls = 0

        def write_one(*args: Any, **settings: Any) -> None:
            nonlocal calls
            if only in (None, calls):
                write(*args, **settings)
            calls += 1

        monkeypatch.setattr(charts, "write", write_one)
        return np.asarray(confusion_picture(confusion, names)).astype(int)

    whole, bare = drawn(None), drawn(-1)
    assert calls == 2 + 2 * 3 + 3  # headings, names, counts
    taken = np.zeros(whole.shape[:2], bool)
    for number in range(calls):
        alone = drawn(number)
        ink = (alone != bare).any(-1)
        assert ink.any()
        assert not (ink & taken).any()
        assert (whole[ink] == alone[ink]).all()
        taken |= ink
