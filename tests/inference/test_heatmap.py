"""Heatmaps over the original picture: one rule in every resize mode."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import camtrain
from camtrain.inference.heatmap import picture_heatmaps, whole_picture_maps
from camtrain.model.cam import HeatmapMethod
from camtrain.preprocessing import Preprocessing, ResizeMode

MODES = get_args(ResizeMode)
METHODS = get_args(HeatmapMethod)
SIDES = st.integers(3, 40)


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
def test_squash_is_the_plain_heatmap(method: HeatmapMethod) -> None:
    maps = random_maps(2, 5, 7)
    expected = camtrain.heatmaps(maps[None], size=(40, 90), method=method)[0]
    found = picture_heatmaps(maps, Preprocessing(size=(20, 28)), (40, 90), method=method)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_crop_is_the_plain_heatmap_of_what_was_seen_and_zero_around_it(
    method: HeatmapMethod,
) -> None:
    maps = random_maps(2, 5, 5)
    preprocessing = Preprocessing(size=(20, 20), resize_mode="crop")
    found = picture_heatmaps(maps, preprocessing, (60, 90), method=method)
    expected = camtrain.heatmaps(maps[None], size=(60, 60), method=method)[0]
    torch.testing.assert_close(found[:, :, 15:75], expected, rtol=0, atol=1e-5)
    assert found[:, :, :15].eq(0).all()
    assert found[:, :, 75:].eq(0).all()


@pytest.mark.parametrize("method", METHODS)
def test_pad_is_the_plain_heatmap_without_the_padding(method: HeatmapMethod) -> None:
    maps = random_maps(2, 6, 6)
    preprocessing = Preprocessing(size=(30, 30), resize_mode="pad")
    found = picture_heatmaps(maps, preprocessing, (60, 90), method=method)
    picture = F.interpolate(maps[None], size=(90, 90), mode="bilinear")[:, :, 15:75]
    expected = camtrain.heatmaps(picture, size=(60, 90), method=method)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@given(
    image_hw=st.tuples(SIDES, SIDES),
    size=st.tuples(SIDES, SIDES),
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    mode=st.sampled_from(MODES),
    method=st.sampled_from(METHODS),
    crop_pct=st.sampled_from([1.0, 0.875, 0.5]),
)
def test_heatmaps_have_the_size_of_the_picture_and_lie_in_0_to_1(
    image_hw: tuple[int, int],
    size: tuple[int, int],
    grid: tuple[int, int],
    mode: ResizeMode,
    method: HeatmapMethod,
    crop_pct: float,
) -> None:
    preprocessing = Preprocessing(size=size, resize_mode=mode, crop_pct=crop_pct)
    heat = picture_heatmaps(random_maps(3, *grid), preprocessing, image_hw, method=method)
    assert heat.shape == (3, *image_hw)
    assert heat.dtype == torch.float32
    assert heat.min() >= 0
    peaks = heat.amax((1, 2))
    assert ((peaks == 0) | (peaks == 1)).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -2.7, torch.nan, torch.inf])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
def test_constant_and_not_finite_maps_give_zeros_and_leave_the_others_alone(
    mode: ResizeMode, method: HeatmapMethod, value: float
) -> None:
    preprocessing = Preprocessing(size=(21, 17), resize_mode=mode)
    maps = random_maps(2, 5, 7)
    alone = picture_heatmaps(maps[:1], preprocessing, (37, 50), method=method)
    maps[1] = value
    heat = picture_heatmaps(maps, preprocessing, (37, 50), method=method)
    assert heat[1].eq(0).all()
    assert torch.equal(heat[:1], alone)


@pytest.mark.parametrize("mode", MODES)
def test_the_maps_given_are_left_as_they_are(mode: ResizeMode) -> None:
    maps = random_maps(2, 5, 7)
    before = maps.clone()
    picture_heatmaps(maps, Preprocessing(size=(21, 17), resize_mode=mode), (21, 17))
    assert torch.equal(maps, before)


@pytest.mark.parametrize("mode", MODES)
def test_whole_picture_maps_are_lowest_where_the_crop_cut(mode: ResizeMode) -> None:
    """Their shape is asked for; their differences are those of the maps."""
    maps = random_maps(2, 5, 5) - 10
    preprocessing = Preprocessing(size=(20, 20), resize_mode=mode)
    moved = whole_picture_maps(maps.double(), preprocessing, (60, 60), (24, 36))
    expected = F.interpolate(maps[None], size=(24, 36), mode="bilinear")[0]
    expected = expected - maps.amin((1, 2), keepdim=True)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)
    if mode == "crop":
        wide = whole_picture_maps(maps, preprocessing, (60, 90), (60, 90))
        assert wide[:, :, :15].eq(0).all()
        assert wide.min() == 0
