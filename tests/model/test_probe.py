"""Probing: shapes and layers are found, and looking changes nothing."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from camtrain.model.probe import drop_unused, evaluating, probe, takes
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
