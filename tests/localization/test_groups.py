"""Groups of pictures, kinds of misses and paired intervals: the edges, by hand."""

import math

import pytest
import torch

from camtrain.localization.groups import (
    MISSES,
    SIZES,
    group_of,
    kinds_of_misses,
    paired_comparison,
)


@pytest.mark.parametrize(
    ("side", "size"),
    [(4, "below 5 %"), (5, "5 to 15 %"), (15, "15 to 30 %"), (30, "30 to 60 %"), (60, SIZES[-1])],
)
def test_a_share_on_an_edge_belongs_to_the_larger_size(side: int, size: str) -> None:
    number, column = group_of(torch.tensor([[0, 0, side, 100]]), (100, 100))
    assert (number, SIZES[column]) == (0, size)


def test_the_largest_thing_counts_and_height_is_no_width() -> None:
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 50, 20]])
    assert group_of(boxes, (20, 250)) == (1, 2)
    assert group_of(boxes[:1], (20, 250)) == (0, 0)


def kind(box: list[int], thing: list[int], hull: list[int] | None = None) -> str:
    around = None if hull is None else torch.tensor(hull)
    [number] = kinds_of_misses(torch.tensor([box]), torch.tensor([thing]), around, 0.5)
    return MISSES[number]


def test_the_kinds_at_their_limits() -> None:
    """A thing of 10 x 10 pixels; boxes are inclusive."""
    thing = [0, 0, 9, 9]
    assert kind([0, 2, 9, 15], thing) == "too large"  # holds 80 %, is filled to 57 %
    assert kind([0, 3, 9, 19], thing) == "beside"  # holds 70 %
    assert kind([0, 2, 9, 14], thing) == "beside"  # filled to 62 %
    assert kind([0, 0, 9, 5], thing) == "too small"  # fills 60 %
    assert kind([0, 0, 9, 6], thing) == "beside"  # fills 70 %: a hit at an IoU of 0.5
    assert kind([100, 100, 110, 110], thing) == "beside"
    assert kind([0, 0, 9, 39], thing, hull=[0, 0, 9, 39]) == "several in one box"
    assert kind([0, 0, 9, 18], thing, hull=[0, 0, 9, 39]) == "too large"


def test_the_interval_of_pairs() -> None:
    even = paired_comparison(1, 1, 0, 2)
    assert (even["low"], even["high"]) == (
        pytest.approx(-1.96 * (3 / 4) ** 0.5 / 2),
        pytest.approx(1.96 * (3 / 4) ** 0.5 / 2),
    )
    assert all(math.isnan(value) for value in paired_comparison(0, 0, 0, 0).values())
