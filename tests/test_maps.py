"""The arithmetic of the maps: by hand, as properties, and the degenerate cases."""

import doctest
import math
from typing import get_args

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

import camtrain.maps
from camtrain.errors import CamtrainValueError
from camtrain.maps import (
    HeatmapMethod,
    PoolName,
    heatmaps,
    picture_heatmaps,
    pool_maps,
    project,
    project_classes,
    score_map,
    whole_picture_maps,
)
from camtrain.preprocessing import Preprocessing, ResizeMode

METHODS = get_args(HeatmapMethod)
# Multiples of 1/8, so that a map is either exactly constant or has a range far above rounding.
MAPS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
    elements=st.integers(-64, 64).map(lambda n: n / 8),
)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
SIDES = st.integers(3, 40)
MODES = get_args(ResizeMode)


def heatmap(values: NDArray[np.float32], size: tuple[int, int], method: HeatmapMethod) -> Tensor:
    return heatmaps(torch.from_numpy(values)[None, None], size=size, method=method)[0, 0]


def test_examples_print_what_they_say() -> None:
    failed, attempted = doctest.testmod(camtrain.maps)
    assert attempted > 0
    assert failed == 0


def test_project_is_equation_2_of_the_paper() -> None:
    features, weight = torch.randn(2, 5, 3, 4), torch.randn(6, 5)
    expected = torch.einsum("bchw,kc->bkhw", features, weight)
    torch.testing.assert_close(project(features, weight), expected)


def test_projecting_chosen_classes_equals_choosing_among_all() -> None:
    features, weight = torch.randn(2, 5, 3, 4), torch.randn(6, 5)
    classes = torch.tensor([[5, 0, 5], [1, 2, 3]])
    every = project(features, weight)
    expected = torch.stack([maps[chosen] for maps, chosen in zip(every, classes, strict=True)])
    torch.testing.assert_close(project_classes(features, weight, classes), expected)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("avg", 0.5),
        ("max", 3.0),
        ("gmp", 3.0),
        ("lse", math.log((math.exp(-8) + 1 + math.exp(4) + math.exp(12)) / 4) / 4),
    ],
)
def test_pools_by_hand(pool: PoolName, expected: float) -> None:
    maps = torch.tensor([[-2.0, 0.0], [1.0, 3.0]])[None, None]
    assert pool_maps(maps, pool).item() == pytest.approx(expected, rel=1e-6)


def test_lse_lies_between_the_mean_and_the_maximum_and_never_overflows() -> None:
    maps = torch.randn(2, 3, 4, 6) * 1000
    pooled = {pool: pool_maps(maps, pool) for pool in ("avg", "lse", "max")}
    assert (pooled["avg"] < pooled["lse"]).all()
    assert (pooled["lse"] <= pooled["max"]).all()


@pytest.mark.parametrize(
    ("row", "method", "expected"),
    [
        ([-1.0, 0.0, 3.0], "minmax", [0.0, 0.25, 1.0]),
        ([-5.0, -4.0, -1.0], "minmax", [0.0, 0.25, 1.0]),
        ([-1.0, 1.0, 4.0], "max", [0.0, 0.25, 1.0]),
        ([1.0, 2.0, 4.0], "max", [0.25, 0.5, 1.0]),
        ([-3.0, -2.0, -1.0], "max", [0.0, 0.0, 0.0]),
        # The percentile 0.45 of 21 values is the tenth, of 4 values it lies at place 1.35.
        (list(range(21)), "ivr", [max(0, n - 9) / 11 for n in range(21)]),
        ([0.0, 1.0, 2.0, 3.0], "ivr", [0.0, 0.0, 0.65 / 1.65, 1.0]),
        ([-7.0, -6.0, -5.0, -4.0], "ivr", [0.0, 0.0, 0.65 / 1.65, 1.0]),
    ],
)
def test_normalization_by_hand(
    row: list[float], method: HeatmapMethod, expected: list[float]
) -> None:
    heat = heatmap(np.array([row], np.float32), (1, len(row)), method)
    assert heat[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_upsampling_is_bilinear_without_aligned_corners_and_comes_first() -> None:
    heat = heatmap(np.array([[0, 4]], np.float32), (1, 4), "minmax")
    assert heat[0].tolist() == [0.0, 0.25, 0.75, 1.0]
    # Clipped after the upsampling: the zero crossing lies between the two pixels of the map.
    heat = heatmap(np.array([[-4, 4]], np.float32), (1, 4), "max")
    assert heat[0].tolist() == [0.0, 0.0, 0.5, 1.0]


def test_each_map_is_normalized_by_itself() -> None:
    maps = torch.tensor([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1) * torch.rand(2, 3, 4, 6)
    assert (heatmaps(maps, size=(4, 6)).amax((-2, -1)) == 1).all()
    alone = heatmaps(maps[1:, 2:], size=(9, 13))
    assert torch.equal(heatmaps(maps, size=(9, 13))[1:, 2:], alone)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_every_numeric_type_gives_float32(method: HeatmapMethod, dtype: torch.dtype) -> None:
    maps = torch.tensor([[0, 1, 2, 4]]).to(dtype)[None, None]
    heat = heatmaps(maps, size=(1, 4), method=method)
    assert heat.dtype == torch.float32
    assert torch.equal(heat, heatmaps(maps.float(), size=(1, 4), method=method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.1, -0.1, 0.0, 1e30, torch.nan, torch.inf, -torch.inf])
def test_a_constant_map_gives_zeros(method: HeatmapMethod, value: float) -> None:
    # At these sizes the weights of the bilinear filter do not sum to exactly 1, so that an
    # upsampled 0.1 has a range of one rounding.
    for hw, size in (((7, 13), (31, 97)), ((3, 5), (64, 96)), ((1, 1), (2, 3))):
        assert not heatmaps(torch.full((1, 1, *hw), value), size=size, method=method).any()


def test_rounding_on_a_plateau_is_not_blown_up() -> None:
    """More than 55 % of the pixels at the maximum: the percentile is the maximum."""
    maps = torch.tensor([[[[0.0, 0.0, 0.125, 0.125, 0.125]]]])
    assert not heatmaps(maps, size=(14, 3), method="ivr").any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_broken_pixel_empties_its_map_and_no_other(method: HeatmapMethod, value: float) -> None:
    maps = torch.randn(2, 2, 3, 5)
    broken = maps.clone()
    broken[1, 0, 2, 4] = value
    expected = heatmaps(maps, size=(11, 17), method=method)
    heat = heatmaps(broken, size=(11, 17), method=method)
    assert not heat[1, 0].any()
    assert torch.equal(heat[0], expected[0])
    assert torch.equal(heat[1, 1], expected[1, 1])


@given(values=MAPS, size=SIZES, method=st.sampled_from(METHODS))
def test_heatmaps_lie_in_0_to_1_and_reach_1_unless_empty(
    values: NDArray[np.float32], size: tuple[int, int], method: HeatmapMethod
) -> None:
    heat = heatmap(values, size, method)
    assert heat.shape == size
    assert heat.dtype == torch.float32
    assert heat.min() >= 0
    assert heat.max() in (0, 1)


@given(values=MAPS, factors=st.tuples(*[st.sampled_from([1, 3, 5])] * 2))
def test_odd_enlargement_keeps_every_pixel_at_its_centre(
    values: NDArray[np.float32], factors: tuple[int, int]
) -> None:
    (rows, columns), (height, width) = factors, values.shape
    heat = heatmap(values, (height * rows, width * columns), "minmax")
    span = values.max() - values.min()
    expected = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    at_centres = heat[rows // 2 :: rows, columns // 2 :: columns]
    np.testing.assert_allclose(at_centres.numpy(), expected, atol=1e-5)


@given(values=MAPS, size=SIZES, method=st.sampled_from(METHODS))
def test_height_and_width_are_never_swapped(
    values: NDArray[np.float32], size: tuple[int, int], method: HeatmapMethod
) -> None:
    heat = heatmap(values, size, method)
    transposed = heatmap(np.ascontiguousarray(values.T), size[::-1], method)
    torch.testing.assert_close(transposed.T, heat, atol=1e-4, rtol=0)


@given(
    values=MAPS,
    size=st.tuples(*[st.integers(7, 40)] * 2),  # never smaller than the map: the range is kept
    gain=st.sampled_from([0.25, 0.5, 2, 4]),
    offset=st.integers(-8, 8),
)
def test_minmax_does_not_see_a_positive_affine_change(
    values: NDArray[np.float32], size: tuple[int, int], gain: float, offset: int
) -> None:
    changed = heatmap(np.float32(gain) * values + np.float32(offset), size, "minmax")
    expected = heatmap(values, size, "minmax")
    torch.testing.assert_close(changed, expected, atol=2e-3, rtol=0)


@given(values=MAPS, exponent=st.integers(-20, 20), method=st.sampled_from(METHODS))
def test_no_method_sees_a_power_of_two(
    values: NDArray[np.float32], exponent: int, method: HeatmapMethod
) -> None:
    scaled = np.ldexp(values, exponent)
    expected = heatmap(values, (11, 17), method)
    torch.testing.assert_close(heatmap(scaled, (11, 17), method), expected, atol=1e-6, rtol=0)


@given(values=MAPS, q=st.floats(0, 1))
def test_the_percentile_is_that_of_torch(values: NDArray[np.float32], q: float) -> None:
    heat = torch.from_numpy(values)[None, None]
    expected = torch.quantile(heat.flatten(2), q, dim=2)[..., None, None]
    torch.testing.assert_close(camtrain.maps._percentile(heat, q), expected)


@pytest.mark.parametrize(
    ("maps", "method", "message"),
    [
        (torch.ones(3, 4), "minmax", "maps must have the shape (B, k, h, w), got (3, 4)"),
        (torch.ones(1, 3, 4), "minmax", "maps[None]"),
        (
            torch.ones(1, 1, 3, 4),
            "softmax",
            "method must be one of minmax, max, ivr, got 'softmax'",
        ),
    ],
)
def test_bad_arguments_are_named(maps: Tensor, method: HeatmapMethod, message: str) -> None:
    with pytest.raises(CamtrainValueError) as error:
        heatmaps(maps, size=(6, 8), method=method)
    assert message in str(error.value)


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
def test_squash_is_the_plain_heatmap(method: HeatmapMethod) -> None:
    maps = random_maps(2, 5, 7)
    expected = heatmaps(maps[None], size=(40, 90), method=method)[0]
    heat = picture_heatmaps(maps, Preprocessing(size=(20, 28)), (40, 90), method=method)
    assert torch.equal(heat, expected)


@pytest.mark.parametrize("method", METHODS)
def test_crop_is_the_plain_heatmap_of_what_was_seen_and_zero_around_it(
    method: HeatmapMethod,
) -> None:
    maps = random_maps(2, 5, 5)
    preprocessing = Preprocessing(size=(20, 20), resize_mode="crop")
    heat = picture_heatmaps(maps, preprocessing, (60, 90), method=method)
    expected = heatmaps(maps[None], size=(60, 60), method=method)[0]
    torch.testing.assert_close(heat[:, :, 15:75], expected, rtol=0, atol=1e-5)
    assert heat[:, :, :15].eq(0).all()
    assert heat[:, :, 75:].eq(0).all()


@pytest.mark.parametrize("method", METHODS)
def test_pad_is_the_plain_heatmap_without_the_padding(method: HeatmapMethod) -> None:
    maps = random_maps(2, 6, 6)
    preprocessing = Preprocessing(size=(30, 30), resize_mode="pad")
    heat = picture_heatmaps(maps, preprocessing, (60, 90), method=method)
    picture = F.interpolate(maps[None], size=(90, 90), mode="bilinear")[:, :, 15:75]
    expected = heatmaps(picture, size=(60, 90), method=method)[0]
    torch.testing.assert_close(heat, expected, rtol=0, atol=1e-5)


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


def test_a_score_map_is_the_bicubic_resize_min_max_normalized() -> None:
    class_map = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = class_map.clone()
    expected = cv2.resize(class_map.numpy(), (224, 224), interpolation=cv2.INTER_CUBIC)
    expected = (expected - expected.min()) / (expected - expected.min()).max()
    np.testing.assert_array_equal(score_map(class_map), expected)
    np.testing.assert_array_equal(score_map(class_map.T), score_map(class_map.T.contiguous()))
    assert torch.equal(class_map, before)


def test_a_score_map_of_the_benchmark_s_size_is_not_resized() -> None:
    class_map = torch.rand(224, 224, dtype=torch.float64)
    class_map[3, 5], class_map[9, 2] = 0, 1
    np.testing.assert_array_equal(score_map(class_map), class_map)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_maps_are_read_exactly(dtype: torch.dtype) -> None:
    class_map = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    np.testing.assert_array_equal(score_map(class_map), score_map(class_map.double()))


@pytest.mark.parametrize("value", [0.0, 1 / 3, -7.1, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (300, 224)])
def test_constant_and_non_finite_maps_are_zeros(value: float, shape: tuple[int, int]) -> None:
    assert not score_map(torch.full(shape, value)).any()


def test_one_bad_pixel_is_enough_to_be_non_finite() -> None:
    class_map = torch.rand(300, 300)
    class_map[150, 1] = torch.nan
    assert not score_map(class_map).any()
