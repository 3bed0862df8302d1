"""Probing finds shapes, layers and maps, and changes nothing."""

import copy

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from camtrain.errors import CamtrainValueError
from camtrain.model.probe import (
    Layout,
    drop_unused,
    evaluating,
    find_layout,
    grid_of,
    probe,
    takes,
)
from camtrain.model.trunk import TimmBackbone


def test_probing_tells_sizes_in_order_and_changes_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Dropout())
    network[2].eval()
    before = copy.deepcopy(network.state_dict())
    found = probe(network, 3, (17, 33))
    assert found.shape == (1, 4, 8, 16)
    assert [layer.name for layer in found.layers] == ["0", "1", "2"]
    assert (found.layers[0].in_hw, found.layers[0].out_hw) == ((17, 33), (8, 16))
    assert [module.training for module in network.modules()] == [True, True, True, False]
    assert all(torch.equal(after, before[name]) for name, after in network.state_dict().items())
    assert not network[0]._forward_hooks


@pytest.mark.parametrize(("size_hw", "fits"), [((8, 8), True), ((8, 10), False)])
def test_a_norm_of_a_whole_map_takes_one_size(size_hw: tuple[int, int], fits: bool) -> None:
    assert takes(nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm((4, 8, 8))), 3, size_hw) is fits


def test_modes_return_even_after_an_error() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Dropout())
    network[1].eval()

    def fail() -> None:
        with evaluating(network):
            assert not any(module.training for module in network.modules())
            raise RuntimeError("in the midst of it")

    with pytest.raises(RuntimeError, match="in the midst of it"):
        fail()
    assert [module.training for module in network.modules()] == [True, True, False]


def test_unused_layers_are_taken_out() -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(timm.create_model("vgg16"))
    drop_unused(backbone, probe(backbone, 3, (64, 96)))
    assert probe(backbone, 3, (64, 96)).shape == (1, 512, 2, 3)
    assert {name.split(".")[1] for name in backbone.state_dict()} == {"features"}


def test_shapes_that_are_not_asked_of_torch_are_those_of_torch() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.gain = nn.Linear(6, 10), nn.Parameter(torch.ones(7, 1, 10))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            rows = self.tokens(images[:, 0])  # (1, 5, 10)
            wide = rows[:, None] + self.gain  # (1, 7, 5, 10)
            found = F.scaled_dot_product_attention(wide, wide[:, :, :3], wide[:, :, :3, :4])
            return found * 2 + found[:, :1]

    network = Network()
    expected = network(torch.randn(1, 3, 5, 6)).shape
    assert probe(network, 3, (5, 6)).shape == expected == (1, 7, 5, 4)
    assert not takes(network, 3, (5, 7))


# Layouts: the proportions of the image say where channels, rows and columns lie.
SIDES = st.integers(1, 12)


@given(SIDES, SIDES, st.integers(0, 5), st.sampled_from((8, 16, 32)))
def test_any_grid_is_found_again(h: int, w: int, prefix: int, patch: int) -> None:
    image_hw = (h * patch, w * patch)
    assert grid_of(h * w, image_hw) == (h, w)
    layout = find_layout((1, prefix + h * w, 1000), image_hw, prefix=prefix)
    assert layout == Layout("nlc", prefix)


@given(SIDES, SIDES, st.integers(0, 5))
def test_every_layout_gives_the_same_map(h: int, w: int, prefix: int) -> None:
    maps = torch.randn(2, 3, h, w)
    tokens = torch.cat((torch.randn(2, prefix, 3), maps.flatten(2).transpose(1, 2)), dim=1)
    image_hw = (16 * h, 16 * w)
    assert torch.equal(Layout().to_map(maps, image_hw), maps)
    assert torch.equal(Layout("nhwc").to_map(maps.permute(0, 2, 3, 1), image_hw), maps)
    assert torch.equal(Layout("nlc", prefix).to_map(tokens, image_hw), maps)
    assert torch.equal(Layout("ncl", prefix).to_map(tokens.transpose(1, 2), image_hw), maps)
    assert torch.equal(Layout().to_map((tokens, [maps]), image_hw), maps)  # the last of several


@pytest.mark.parametrize(
    ("shape", "image_hw", "known", "layout"),
    [
        ((1, 512, 7, 7), (224, 224), {}, Layout()),
        ((1, 7, 7, 768), (224, 224), {}, Layout("nhwc")),
        ((1, 7, 14, 768), (224, 448), {}, Layout("nhwc")),
        ((1, 512, 1, 1), (32, 32), {}, Layout()),
        ((1, 197, 768), (224, 224), {}, Layout("nlc", 1)),
        ((1, 201, 1024), (224, 224), {"prefix": 5}, Layout("nlc", 5)),
        ((1, 320, 16), (256, 256), {}, Layout("ncl")),
        ((1, 256, 49), (224, 224), {"channels": 256}, Layout("ncl")),
        ((1, 256, 49), (224, 224), {"channels": 49}, Layout("nlc")),
        ((1, 14, 14, 14), (224, 224), {}, Layout()),  # both are possible
        ((1, 64, 30, 17), (224, 224), {}, Layout()),  # a network of other proportions
    ],
)
def test_known_shapes(
    shape: tuple[int, ...], image_hw: tuple[int, int], known: dict[str, int], layout: Layout
) -> None:
    assert find_layout(shape, image_hw, **known) == layout


@pytest.mark.parametrize("shape", [(1, 1000), (1, 98, 768), (1, 2, 3, 4, 5)])
def test_what_is_no_map_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CamtrainValueError, match="cut must give a feature map") as error:
        find_layout(shape, (224, 224))
    assert str(shape) in str(error.value)
