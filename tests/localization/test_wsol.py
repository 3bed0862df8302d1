"""The benchmark's protocol: against its own evaluator's numbers."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from camtrain.localization.boxes import inclusive_boxes
from camtrain.localization.contours import levels_of_thresholds, quantized
from camtrain.maps import score_map


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "oracles" / "wsol_metrics"


def test_truth_boxes_are_scaled_as_in_the_benchmark(folder: Path) -> None:
    inputs = np.load(folder / "inputs.npz")
    original = torch.from_numpy(inputs["boxes_imgidx_x0y0x1y1"])
    for (index, *box), (_, *expected) in zip(
        original.tolist(), inputs["boxes224_imgidx_x0y0x1y1"].tolist(), strict=True
    ):
        width, height = inputs["image_sizes_wh"][index].tolist()
        half_open = torch.tensor([box]) + torch.tensor([0, 0, 1, 1])
        assert inclusive_boxes(half_open, (height, width)).tolist() == [expected]


def test_scores_are_truncated_to_levels() -> None:
    assert quantized(np.array([0, 0.9999, 1 / 255, 0.5, 1.0])).tolist() == [0, 254, 1, 127, 255]


def test_thresholds_become_integer_levels_of_the_maximum() -> None:
    levels = levels_of_thresholds(200)
    assert levels.shape == (1000,)
    assert levels[[0, 4, 5, 500, 999]].tolist() == [0, 0, 1, 100, 199]


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
