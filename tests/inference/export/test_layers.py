"""Layers with "same" padding and those that take their place compute the same at every size."""

import doctest
import itertools

import pytest
import timm
import torch
import torchvision
from timm.layers import Conv2dSame, ScaledStdConv2dSame, StdConv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn

from camtrain.inference.export import layers
from camtrain.inference.export.layers import SamePadded, same_padding, with_exportable_layers

SIZES_HW = list(itertools.product((8, 9, 10, 11), (13, 14, 15, 16)))


def replaced(layer: nn.Module) -> nn.Module:
    """What takes the place of a layer."""
    return with_exportable_layers(nn.Sequential(layer.eval().double()))[0]


def assert_same_at_every_size(layer: nn.Module, other: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for height, width in SIZES_HW:
        features = torch.randn(2, 4, height, width, generator=generator, dtype=torch.float64)
        expected: Tensor = layer(features)
        assert expected.shape[2] != expected.shape[3]
        torch.testing.assert_close(other(features), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7])
def test_convolutions_and_maxima_are_the_same(kernel: int, stride: int, dilation: int) -> None:
    torch.manual_seed(kernel)
    settings = {"stride": stride, "dilation": dilation}
    for layer in (
        Conv2dSame(4, 6, kernel, groups=2, **settings),
        Conv2dSame(4, 4, kernel, groups=4, bias=False, **settings),
        MaxPool2dSame(kernel, **settings),
    ):
        other = replaced(layer)
        assert isinstance(other, SamePadded)
        assert_same_at_every_size(layer, other)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (3, 1), (5, 2)])
def test_averages_count_the_pixels_added(kernel: int, stride: int) -> None:
    layer = AvgPool2dSame(kernel, stride)
    other = replaced(layer)
    assert isinstance(other, SamePadded)
    assert_same_at_every_size(layer, other)


@pytest.mark.parametrize("kind", [StdConv2dSame, ScaledStdConv2dSame])
def test_standardized_weights_are_taken_as_they_are_computed(kind: type[nn.Conv2d]) -> None:
    torch.manual_seed(0)
    layer = kind(4, 6, 3, stride=2)
    other = replaced(layer)
    assert isinstance(other, SamePadded)
    assert_same_at_every_size(layer, other)


def test_rows_and_columns_may_differ() -> None:
    torch.manual_seed(0)
    layer = Conv2dSame(4, 3, (3, 2), stride=(2, 1), dilation=(1, 2))
    assert_same_at_every_size(layer, replaced(layer))


def test_a_larger_stride_is_left_alone() -> None:
    assert same_padding(4, 4) is None
    assert isinstance(replaced(Conv2dSame(4, 3, 4, stride=4)), Conv2dSame)
    layer = Conv2dSame(4, 3, 4, stride=(2, 4))
    assert isinstance(replaced(layer), Conv2dSame)


def test_a_network_is_copied_and_keeps_its_logits() -> None:
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_b0", num_classes=5)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert network.training
    other = with_exportable_layers(network)
    assert network.training
    assert not other.training
    kinds = {type(module).__name__ for module in other.modules()}
    assert "Conv2dSame" not in kinds
    assert "Conv2dSame" in {type(module).__name__ for module in network.modules()}
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    network.eval()
    images = torch.randn(2, 3, 75, 98)
    with torch.no_grad():
        torch.testing.assert_close(other(images), network(images), rtol=1e-4, atol=1e-5)


def test_nothing_works_in_place_but_in_the_network_itself() -> None:
    network = torchvision.models.mobilenet_v3_small(weights=None)
    other = with_exportable_layers(network)
    assert not any(getattr(layer, "inplace", False) for layer in other.modules())
    assert any(getattr(layer, "inplace", False) for layer in network.modules())


def test_the_example_prints_what_it_says() -> None:
    failed, attempted = doctest.testmod(layers)
    assert attempted > 0
    assert failed == 0
