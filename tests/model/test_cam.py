"""The arithmetic of the maps: by hand, as properties, and the degenerate cases."""

import doctest
import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.model import cam
from camtrain.model.cam import HeatmapMethod, PoolName, heatmaps, pool_maps, project

METHODS = get_args(HeatmapMethod)
# Multiples of 1/8, so that a map is either exactly constant or has a range far above rounding.
MAPS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
    elements=st.integers(-64, 64).map(lambda n: n / 8),
)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def heatmap(values: NDArray[np.float32], size: tuple[int, int], method: HeatmapMethod) -> Tensor:
    return heatmaps(torch.from_numpy(values)[None, None], size=size, method=method)[0, 0]


def test_examples_print_what_they_say() -> None:
    failed, attempted = doctest.testmod(cam)
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
    torch.testing.assert_close(cam.project_classes(features, weight, classes), expected)


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
    torch.testing.assert_close(cam._percentile(heat, q), expected)


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
