"""Mirrored and ten-crop maps: the authors' own merged maps, exact places, and laws."""

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import camtrain
from camtrain.errors import CamtrainError, CamtrainValueError
from camtrain.inference import tta
from camtrain.inference.tta import TTA, merge_flip, merge_ten_crops, ten_crops, tta_maps
from camtrain.maps import project
from camtrain.model.camnet import CAMNet


@pytest.fixture(scope="module")
def net() -> CAMNet:
    torch.manual_seed(0)
    return camtrain.create_model("camtrain/digits", 7, neck=(), backbone_args={"width": 2}).eval()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_examples_print_what_they_say() -> None:
    failed, attempted = doctest.testmod(tta)
    assert attempted > 0
    assert failed == 0


def test_the_crops_lie_where_the_authors_took_them() -> None:
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    crops = ten_crops(torch.stack((y, x)))
    assert crops.shape == (10, 2, 224, 224)
    corners = [(0, 0), (32, 0), (0, 32), (32, 32), (16, 16)]
    assert [tuple(crop[:, 0, 0].tolist()) for crop in crops[:5]] == corners
    assert torch.equal(crops[5:], crops[:5].flip(-1))


def keys_bicubic(maps: Tensor, side: int) -> Tensor:
    """Maps (..., h, h) at side x side by Keys' kernel (a = -0.5), the border mirrored."""
    length = maps.shape[-1]
    place = (torch.arange(side).double() + 0.5) * length / side - 0.5
    weights = torch.zeros(side, length, dtype=torch.float64)
    for tap in range(-1, 3):
        near = place.floor() + tap
        d = (place - near).abs()
        inner, outer = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        inside = torch.where(near < 0, -near - 1, near)
        inside = torch.where(inside >= length, 2 * length - 1 - inside, inside).long()
        weights[torch.arange(side), inside] += torch.where(d <= 1, inner, outer)
    return weights @ maps.double() @ weights.T


@pytest.fixture(scope="module")
def demo(shared: Path) -> dict[str, Any]:
    folder = shared / "oracles" / "zhou_demo"
    arrays = dict(np.load(folder / "inputs.npz")) | dict(np.load(folder / "expected.npz"))
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize("image", ["img1", "img2"])
def test_the_authors_merged_maps(demo: dict[str, Tensor], image: str) -> None:
    top = demo[f"top5_stored_{image}"].long()
    maps = project(demo[f"act_{image}"], demo["weights"][top])  # (10, 5, 14, 14)
    expected_maps = demo[f"cam_{image}"].transpose(0, 1)
    torch.testing.assert_close(maps, expected_maps, rtol=0, atol=1e-3)

    merged = 3 * merge_ten_crops(keys_bicubic(maps, 224))
    expected = demo[f"merged_top1_{image}"].double()
    assert ((merged[0] - expected).abs().max() / expected.max()).item() < 1e-5
    expected_half = demo[f"merged_stride2_{image}"].double()
    scale = expected_half.amax((1, 2), keepdim=True)
    assert ((merged[:, ::2, ::2] - expected_half).abs() / scale).max().item() < 1e-5

    ours = 3 * merge_ten_crops(maps)[0].double()  # bilinear
    assert torch.corrcoef(torch.stack((ours.flatten(), expected.flatten())))[0, 1] > 0.9994
    assert ((ours - expected).abs().max() / expected.max()).item() < 0.07
    peaks = [divmod(int(one.argmax()), 256) for one in (ours, expected)]
    assert np.abs(np.subtract(*peaks)).max() <= 6


def test_crops_of_a_map_are_put_back_in_place() -> None:
    """With H != W: where k crops lie over a pixel, 2 k times its absolute value."""
    image = random(3, 40, 64)
    crop_hw, size = (32, 48), (40, 64)
    merged = merge_ten_crops(ten_crops(image, crop_hw=crop_hw), size=size, crop_hw=crop_hw)
    ones = ten_crops(torch.ones(1, 40, 64), crop_hw=crop_hw)
    coverage = merge_ten_crops(ones, size=size, crop_hw=crop_hw)
    assert coverage.unique().tolist() == [2, 4, 6, 10]
    assert coverage[0, 20, 32] == 10
    torch.testing.assert_close(merged, image.abs() * coverage)


def test_small_maps_are_upsampled_bilinearly_before_the_absolute_value() -> None:
    maps = random(10, 2, 3, 4, 6)
    upsampled = F.interpolate(maps.flatten(0, 1), size=(32, 48), mode="bilinear")
    upsampled = upsampled.unflatten(0, (10, 2))
    arguments = {"size": (40, 64), "crop_hw": (32, 48)}
    merged = merge_ten_crops(maps, **arguments)
    assert merged.shape == (2, 3, 40, 64)
    assert torch.equal(merged, merge_ten_crops(upsampled, **arguments))


def test_merging_equal_views_changes_nothing() -> None:
    maps = random(2, 3, 4, 6)
    assert torch.equal(merge_flip(maps, maps.flip(-1)), maps)


def test_none_is_the_network_itself(net: CAMNet) -> None:
    images = random(2, 3, 32, 48)
    for found, expected in zip(tta_maps(net, images), net.class_maps(images), strict=True):
        assert torch.equal(found, expected)


def test_flip_is_the_mean_and_keeps_the_law_of_the_average(net: CAMNet) -> None:
    images = random(2, 3, 32, 48)
    output = tta_maps(net, images, tta="flip")
    straight, mirrored = net.class_maps(images), net.class_maps(images.flip(-1))
    torch.testing.assert_close(output.maps, merge_flip(straight.maps, mirrored.maps))
    torch.testing.assert_close(output.logits, (straight.logits + mirrored.logits) / 2)
    torch.testing.assert_close(output.maps.mean((-2, -1)) + net.head.bias, output.logits)
    # Of the mirrored image it gives the mirrored maps.
    again = tta_maps(net, images.flip(-1), tta="flip")
    torch.testing.assert_close(again.maps, output.maps.flip(-1))


def test_ten_crops_are_merged_on_the_image(net: CAMNet) -> None:
    images = random(2, 3, 32, 64)
    classes = torch.tensor([[3, 1], [0, 6]])
    output = tta_maps(net, images, tta="tencrop", classes=classes)
    assert output.maps.shape == (2, 2, 32, 64)
    assert torch.equal(output.classes, classes)
    for row in (0, 1):
        crops = ten_crops(images[row], crop_hw=(28, 56))
        expected = net.class_maps(crops, classes=classes[[row] * 10])
        merged = merge_ten_crops(expected.maps, size=(32, 64), crop_hw=(28, 56))
        torch.testing.assert_close(output.maps[row], merged)
        torch.testing.assert_close(output.logits[row], expected.logits.mean(0))


@pytest.mark.parametrize("tta", ["flip", "tencrop"])
def test_the_views_choose_the_best_classes_together(net: CAMNet, tta: TTA) -> None:
    images = random(3, 3, 32, 64)
    every = tta_maps(net, images, tta=tta)
    assert torch.equal(every.classes, torch.arange(7).expand(3, 7))
    best = tta_maps(net, images, tta=tta, top=99)
    assert torch.equal(best.classes, every.logits.argsort(dim=1, descending=True))
    expected = every.maps.gather(1, best.classes[..., None, None].expand_as(every.maps))
    torch.testing.assert_close(best.maps, expected)
    assert tta_maps(net, images, tta=tta, top=2).maps.shape[1] == 2
    assert tta_maps(net, images, tta=tta, classes=torch.tensor([5, 0, 2])).maps.shape[1] == 1


@pytest.mark.parametrize("value", [torch.nan, 0.0, -2.0])
def test_degenerate_maps_are_merged_like_any(value: float) -> None:
    merged = merge_ten_crops(torch.full((10, 1, 1), value), size=(8, 10), crop_hw=(8, 10))
    torch.testing.assert_close(merged, torch.full((8, 10), abs(value) * 10), equal_nan=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tta": "mirror"}, "tta must be one of none, flip, tencrop, got 'mirror'"),
        ({"tta": "flip", "top": 0}, "top must be at least 1"),
        ({"tta": "flip", "top": 1, "classes": torch.tensor([1])}, "top and classes exclude"),
        ({"tta": "tencrop", "classes": torch.tensor([7])}, "classes must lie in 0..6"),
        ({"tta": "tencrop", "classes": [1]}, "classes must be a tensor of integers"),
    ],
)
def test_bad_requests_are_named(net: CAMNet, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainError) as error:
        tta_maps(net, random(1, 3, 32, 48), **arguments)
    assert message in str(error.value)


def test_bad_crops_are_named() -> None:
    with pytest.raises(CamtrainValueError, match=r"fit into the image, \(200, 300\), got \(224"):
        ten_crops(torch.zeros(3, 200, 300))
    with pytest.raises(CamtrainValueError, match=r"maps must be \(10, ..., h, w\), got \(5, 2"):
        merge_ten_crops(torch.zeros(5, 2, 3))
