"""One class list for all splits."""

import doctest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camtrain.data import Listing, classes
from camtrain.data.classes import sort_class_names, with_classes
from camtrain.data.lists import PathList
from camtrain.data.source import UNDECIDED, split_number
from camtrain.errors import CamtrainValueError

TRAIN, VAL = split_number("train"), split_number("val")


def listing(labels: object, splits: list[int], names: str, **more: bool) -> Listing:
    labels = np.array(labels)
    return Listing(
        root=Path("data"),
        paths=PathList.of(f"{row}.jpg" for row in range(len(labels))),
        labels=labels,
        splits=np.array(splits, np.int8),
        class_names=tuple(names),
        **more,
    )


def test_the_examples_print_what_they_say() -> None:
    failed, attempted = doctest.testmod(classes)
    assert attempted > 0
    assert failed == 0


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True))
def test_numbers_sort_as_numbers(numbers: list[int]) -> None:
    assert list(map(int, sort_class_names(map(str, numbers)))) == sorted(numbers)


def test_the_list_is_that_of_train_or_of_the_first_split() -> None:
    found = with_classes(listing([2, 0, 2], [TRAIN, TRAIN, VAL], "abc"[:3]), ["a", "c"])
    assert (found.class_names, found.labels.tolist()) == (("a", "c"), [1, 0, 1])
    only_val = with_classes(listing([2, 0, 2], [VAL] * 3, "abc"), None)
    assert (only_val.class_names, only_val.labels.tolist()) == (("a", "c"), [1, 0, 1])


def test_a_list_of_the_data_set_is_kept_whole() -> None:
    with pytest.warns(UserWarning, match="train split of data has no image of the class b"):
        found = with_classes(listing([2, 0], [TRAIN] * 2, "abc", has_class_list=True), None)
    assert (found.class_names, found.labels.tolist()) == (("a", "b", "c"), [2, 0])


def test_classes_of_pictures_that_are_left_out_do_not_count() -> None:
    found = with_classes(listing([0, 1, 2], [TRAIN, TRAIN, UNDECIDED], "abc"), None)
    assert found.class_names == ("a", "b")


def test_several_labels_are_moved_to_a_given_list() -> None:
    hot = np.array([[True, False, True], [False, False, False]])
    found = with_classes(listing(hot, [TRAIN, TRAIN], "abc"), ["c", "d", "b", "a"])
    assert found.labels.tolist() == [[True, False, False, True], [False] * 4]


CAFES = ("caf\u00e9", "cafe\u0301")  # composed, and decomposed as on macOS


@pytest.mark.parametrize("names", [("ant", *CAFES), ("ant", *CAFES[::-1])])
@pytest.mark.parametrize("given", [None, ("ant", CAFES[0]), ("ant", CAFES[1])])
def test_a_class_has_one_name_however_its_accents_are_stored(
    names: tuple[str, ...], given: tuple[str, ...] | None
) -> None:
    """Before: val has the class caf\u00e9, unknown to train, which has caf\u00e9."""
    splits = [TRAIN, TRAIN, VAL, VAL]
    found = with_classes(listing([0, 1, 2, 0], splits, names), given)
    assert (found.class_names, found.labels.tolist()) == (given or names[:2], [0, 1, 1, 0])
    hot = np.array([[True, True, False], [True, False, True]])
    found = with_classes(listing(hot, [TRAIN, VAL], names), given)
    assert found.labels.tolist() == [[True, True], [True, True]]


@pytest.mark.parametrize(
    ("labels", "splits", "names", "given", "message"),
    [
        ([0, 1, 2], [TRAIN, TRAIN, VAL], "abc", None, "val split of data has the class c, unknown"),
        ([0, 1], [TRAIN, TRAIN], "abc", None, "class c has no image in the train split of data"),
        ([0, 0], [TRAIN, TRAIN], "a", None, "at least 2 classes, but data has one, 'a'"),
        ([0, 1], [TRAIN, VAL], "ab", ["a", "z"], "class b, unknown to class_names, which has a, z"),
    ],
)
def test_contradictions_are_refused(
    labels: list[int], splits: list[int], names: str, given: list[str] | None, message: str
) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        with_classes(listing(labels, splits, names), given)
