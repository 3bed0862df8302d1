"""Regions cut where two peaks stand out: by hand, and as a property of any map."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from camtrain.localization import boxes_from_heatmap
from camtrain.localization.peaks import PROMINENCE, split_components


def hills(*heights_at: tuple[float, int]) -> torch.Tensor:
    """Round hills of radius 15 in a row, (40, 100): their heights and columns; 0.3 between them."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(100.0), indexing="ij")
    heatmap = torch.zeros(40, 100)
    heatmap[15:25, 10:90] = 0.3
    for height, column in heights_at:
        distance = ((y - 20) ** 2 + (x - column) ** 2).sqrt()
        heatmap = torch.maximum(heatmap, height * (1 - distance / 15).clamp_min(0))
    return heatmap


def test_two_hills_are_one_box_and_two_where_that_is_asked_for() -> None:
    heatmap = hills((1.0, 25), (0.9, 75))
    [whole] = boxes_from_heatmap(heatmap).tolist()
    assert whole == [10, 9, 90, 32]
    first, second = boxes_from_heatmap(heatmap, split=True).tolist()
    assert (first[0], second[2]) == (10, 90)
    assert first[2] == second[0]  # the cut
    assert 45 <= first[2] <= 55  # at the saddle, in the middle of the ridge


def test_a_peak_that_does_not_stand_out_is_not_cut_off() -> None:
    low = 0.3 + PROMINENCE - 0.05
    assert len(boxes_from_heatmap(hills((1.0, 25), (low, 75)), split=True)) == 1
    assert len(boxes_from_heatmap(hills((1.0, 25), (low + 0.1, 75)), split=True)) == 2
    assert len(boxes_from_heatmap(hills((1.0, 50)), split=True)) == 1


def test_three_hills_are_three_boxes_turned_by_a_quarter_too() -> None:
    heatmap = hills((1.0, 20), (0.9, 50), (0.95, 80))
    boxes = boxes_from_heatmap(heatmap, split=True)
    assert len(boxes) == 3
    turned = boxes_from_heatmap(heatmap.T, split=True)
    assert sorted(turned[:, [1, 0, 3, 2]].tolist()) == sorted(boxes.tolist())


def test_regions_that_are_apart_stay_boxes_of_their_own() -> None:
    heatmap = hills((1.0, 25))
    heatmap[2, 95] = 0.25
    assert len(boxes_from_heatmap(heatmap)) == 2
    assert len(boxes_from_heatmap(heatmap, split=True)) == 2
    assert boxes_from_heatmap(torch.zeros(3, 4), split=True).shape == (0, 4)


@given(
    values=hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    ),
    threshold=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_every_pixel_stays_in_one_part(values: NDArray[np.float64], threshold: float) -> None:
    foreground = (values > threshold * values.max()).astype(np.uint8)
    parts = split_components(foreground, values, threshold)
    assert parts[:, 4].sum() == foreground.sum()
    assert (parts[:, 2] * parts[:, 3] >= parts[:, 4]).all()
