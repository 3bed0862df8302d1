"""The laws of the cluttered digits."""

from itertools import combinations
from typing import Any, get_args

import numpy as np
import pytest
import torch

from camtrain.data import ClutteredDigits, Split
from camtrain.data.digits import _ink, source_digits
from camtrain.errors import CamtrainValueError


def test_paths_and_boxes_are_those_of_the_pictures() -> None:
    digits = ClutteredDigits("val", length=3)
    for index, path in enumerate(digits.paths):
        picture = digits.read(index)
        assert picture.path == path
        assert torch.equal(picture.boxes_xyxy, digits.boxes(index))


def test_a_picture_depends_on_seed_split_and_index_alone() -> None:
    long, short = (ClutteredDigits("train", length=length, seed=3) for length in (40, 7))
    for index in (6, 0):  # in another order than they are drawn in
        one, other = long.read(index), short.read(index)
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
        assert one.label == other.label == long.labels[index]
        assert one.path == other.path
    assert torch.equal(long.read(-1).image, long.read(39).image)
    other_seed = ClutteredDigits("train", length=7, seed=4).read(0)
    assert not torch.equal(other_seed.image, long.read(0).image)


def test_what_is_read_may_be_changed_without_changing_the_source() -> None:
    digits = ClutteredDigits("val", length=1)
    digits.read(0).image.zero_()
    assert digits.read(0).image.any()


def test_source_digits_of_the_splits_are_disjoint_complete_and_stratified() -> None:
    rows = {split: set(source_digits(split).rows.tolist()) for split in get_args(Split)}
    assert all(not rows[one] & rows[other] for one, other in combinations(rows, 2))
    assert set.union(*rows.values()) == set(range(1797))
    counts = {split: np.bincount(source_digits(split).labels) for split in get_args(Split)}
    whole = counts["train"] + counts["val"] + counts["test"]
    for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        assert np.abs(counts[split] - share * whole).max() <= 1


def test_ink_is_cut_to_the_visible_and_the_faint_is_erased() -> None:
    digit = np.array([[0, 30, 0, 0], [0, 30, 90, 39], [0, 40, 0, 0], [9, 0, 0, 0]], np.uint8)
    assert _ink(digit).tolist() == [[0, 90], [40, 0]]


def test_the_box_is_exactly_tight_on_the_ink_and_clutter_stays_outside() -> None:
    digits = ClutteredDigits("test", length=200)
    for index in range(len(digits)):
        image, label, boxes_xyxy, *_ = digits.read(index)
        assert image.shape == (1, 64, 64)
        assert image.dtype == torch.uint8
        assert label == digits.labels[index]
        x0, y0, x1, y1 = boxes_xyxy[0].tolist()
        assert 0 <= x0 < x1 <= 64
        assert 0 <= y0 < y1 <= 64
        assert 18 <= y1 - y0 <= 40
        inside = image[0, y0:y1, x0:x1]
        for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert side.any()


def test_the_box_holds_the_labelled_digit() -> None:
    """Shrunk to 8 x 8, the content of the box resembles source digits of its class the most."""
    sources = source_digits("train")
    digits = ClutteredDigits("train", length=100)
    right = 0
    for index in range(len(digits)):
        image, label, boxes_xyxy, *_ = digits.read(index)
        x0, y0, x1, y1 = boxes_xyxy[0].tolist()
        whole = torch.zeros(1, 1, y1 - y0, y1 - y0)
        left = (y1 - y0 - (x1 - x0)) // 2
        if left < 0:
            continue
        whole[0, 0, :, left : left + x1 - x0] = image[0, y0:y1, x0:x1]
        small = torch.nn.functional.interpolate(whole, size=(8, 8), mode="area")[0, 0].numpy()
        nearest = np.abs(sources.glyphs.astype(float) - small).sum((1, 2)).argmin()
        right += int(sources.labels[nearest] == label)
    assert right >= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev", "length": 3}, "one of train, val, test, got 'dev'"),
        ({"split": "val", "length": 0}, "length must be at least 1 picture, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        ClutteredDigits(**arguments)
