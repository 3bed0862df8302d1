"""The laws of dividing a folder."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camtrain.data.splits import divide
from camtrain.errors import CamtrainValueError

NAMES = [f"cat/{number}.jpg" for number in range(100)]


@given(
    names=st.sets(st.text(max_size=3), max_size=40),
    seed=st.integers(0, 5),
    fractions=st.tuples(st.floats(0, 0.49), st.floats(0, 0.49)),
)
def test_a_division_is_disjoint_complete_and_leaves_train_something(
    names: set[str], seed: int, fractions: tuple[float, float]
) -> None:
    parts = divide(names, seed=seed, val_fraction=fractions[0], test_fraction=fractions[1])
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert bool(parts["train"]) == bool(names)
    for split, fraction in zip(("val", "test"), fractions, strict=True):
        assert (len(parts[split]) == 0) if fraction == 0 else True
        assert abs(len(parts[split]) - fraction * len(names)) <= 1 or len(names) < 3


def test_the_division_depends_on_the_seed_and_not_on_the_order() -> None:
    options = {"val_fraction": 0.15, "test_fraction": 0.2}
    one = divide(NAMES, seed=0, **options)
    assert [len(part) for part in one.values()] == [65, 15, 20]
    assert divide(reversed(NAMES), seed=0, **options) == one
    assert divide(NAMES, seed=1, **options) != one


def test_a_new_picture_moves_few_others() -> None:
    options = {"seed": 0, "val_fraction": 0.2, "test_fraction": 0.2}
    before, after = divide(NAMES, **options), divide([*NAMES, "cat/new.jpg"], **options)
    moved = sum(len(set(before[split]) - set(after[split])) for split in before)
    assert moved <= 2


@pytest.mark.parametrize("fractions", [(-0.1, 0.1), (0.5, 0.5), (1.0, 0.0)])
def test_fractions_that_leave_nothing_are_refused(fractions: tuple[float, float]) -> None:
    with pytest.raises(CamtrainValueError, match="val_fraction and test_fraction must be"):
        divide(NAMES, seed=0, val_fraction=fractions[0], test_fraction=fractions[1])


def test_file_names_that_are_no_text_are_divided_too() -> None:
    names = [os.fsdecode(b"\xff%d.jpg" % number) for number in range(10)]
    parts = divide(names, seed=0, val_fraction=0.2, test_fraction=0.2)
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
