"""Which picture is in which split: the division, and keeping it in a file."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camtrain.data import ListedSource, Listing, Split, write_split
from camtrain.data.lists import PathList
from camtrain.data.source import UNDECIDED, split_number
from camtrain.data.splits import divide, read_split, with_splits
from camtrain.errors import CamtrainError, CamtrainValueError
from tests.data.trees import text

FRACTIONS = {"val_fraction": 0.2, "test_fraction": 0.1}


def listing(count: int, split: Split | None = None, start: int = 0) -> Listing:
    """Pictures of two classes in turn, of one split or of none."""
    names = [f"ä {number}.jpg" for number in range(start, start + count)]
    number = UNDECIDED if split is None else split_number(split)
    return Listing(
        root=Path("/data"),
        paths=PathList.of(names),
        labels=np.arange(count) % 2,
        splits=np.full(count, number, np.int8),
        class_names=("cat", "dog"),
    )


def names(found: Listing, split: Split) -> list[str]:
    return list(found.paths.take(found.rows_of(split)))


def test_each_class_is_divided_by_the_hash_of_its_names() -> None:
    found = with_splits(listing(60), seed=3, **FRACTIONS)
    cats = [path for row, path in enumerate(found.paths) if row % 2 == 0]
    dogs = [path for row, path in enumerate(found.paths) if row % 2]
    for split in ("train", "val", "test"):
        expected = [divide(group, seed=3, **FRACTIONS)[split] for group in (cats, dogs)]
        assert sorted(names(found, split)) == sorted(expected[0] + expected[1])
    assert found.is_divided


def test_val_is_split_off_train_and_test_is_not() -> None:
    found = with_splits(listing(60, "train"), seed=0, **FRACTIONS)
    assert [len(names(found, split)) for split in ("train", "val", "test")] == [48, 12, 0]
    assert found.is_divided
    for split in ("val", "test"):
        assert not with_splits(listing(9, split), seed=0, **FRACTIONS).is_divided


def stored(found: Listing, file: Path) -> Path:
    write_split(file, {split: ListedSource(found, split) for split in ("train", "val", "test")})
    return file


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    found = with_splits(listing(60), seed=3, **FRACTIONS)
    file = stored(found, tmp_path / "split.csv")
    assert file.read_text(encoding="utf-8").startswith("path,label,split\nä ")
    assert os.listdir(tmp_path) == ["split.csv"]  # no half-written file
    again = with_splits(listing(60), seed=0, **FRACTIONS, split_file=file)
    assert again.splits.tolist() == found.splits.tolist()
    assert again.is_divided


def test_pictures_added_later_are_left_out_and_lost_ones_are_said(tmp_path: Path) -> None:
    found = with_splits(listing(60), seed=3, **FRACTIONS)
    file = stored(found, tmp_path / "split.csv")
    with pytest.warns(UserWarning, match="10 of the pictures") as caught:
        later = with_splits(listing(60, start=10), seed=3, **FRACTIONS, split_file=file)
    said = [str(one.message) for one in caught]
    assert said[0].startswith("10 of the pictures of /data are in no split of")
    assert said[1].startswith("10 of the pictures that ")
    assert later.splits[:50].tolist() == found.splits[10:].tolist()
    assert set(later.splits[50:].tolist()) == {UNDECIDED}


def test_a_folder_of_val_added_later_moves_nothing_into_train(tmp_path: Path) -> None:
    found = with_splits(listing(60, "train"), seed=3, **FRACTIONS)
    file = stored(found, tmp_path / "split.csv")
    whole = listing(70, "train")
    whole.splits[60:] = split_number("val")
    later = with_splits(whole, seed=3, **FRACTIONS, split_file=file)
    assert later.splits[:60].tolist() == found.splits.tolist()
    assert set(later.splits[60:].tolist()) == {split_number("val")}


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    name = b"\xff,\n.jpg".decode(errors="surrogateescape")
    one = Listing(
        root=Path("/data"),
        paths=PathList.of([name, "b.jpg"]),
        labels=np.array([0, 1]),
        splits=np.full(2, split_number("val"), np.int8),
        class_names=("a", "b"),
    )
    assert read_split(stored(one, tmp_path / "split.csv")) == {name: "val", "b.jpg": "val"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, r"split\.csv does not exist; give --data\.split_file null"),
        (
            ["name,split", "a.jpg,val"],
            "must start with the line path,label,split, but it lacks path; it",
        ),
        (
            ["path,label,split", "a.jpg,cat,v"],
            "line 2: the split must be one of train, val, test",
        ),
        (["path,label,split", "a.jpg,cat"], "line 2: the split must be one of .* got None"),
        (["path,label,split", "a.jpg,cat,val"], "the split of other pictures than those of /data"),
    ],
)
def test_damaged_files_get_one_clear_sentence(
    lines: list[str] | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "split.csv"
    if lines is not None:
        text(file, *lines)
    with pytest.raises(CamtrainError, match=message) as caught:
        with_splits(listing(4), seed=0, **FRACTIONS, split_file=file)
    assert str(file) in str(caught.value)


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
