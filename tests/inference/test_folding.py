"""Folding changes nothing but rounding, and only where it is sure of what follows what."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

import camtrain
from camtrain.inference.network import TorchNetwork, can_fold, fold_batch_norms


@torch.no_grad()
def shaken(network: nn.Module) -> nn.Module:
    """Batch norms with other numbers than their first ones, and weights that keep a scale."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, low in (("running_mean", -0.2), ("running_var", 0.5), ("weight", 0.7)):
                tensor = getattr(module, name)
                tensor.copy_(low + 0.5 * torch.rand(tensor.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize(
    "name", ["torchvision/resnet18", "torchvision/mobilenet_v3_small", "timm/test_resnet"]
)
def test_logits_and_maps_stay_to_rounding(name: str) -> None:
    torch.manual_seed(0)
    net = camtrain.create_model(name, 7, weights=None, neck=(8,), backbone_args={})
    shaken(net)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        expected = net.class_maps(images)
    found = TorchNetwork(net).display_maps(images)
    scale = expected.maps.abs().max()
    torch.testing.assert_close(found.maps / scale, expected.maps / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert net.state_dict().keys() == before.keys()
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_all_norms_of_a_resnet_are_folded() -> None:
    net = camtrain.create_model("torchvision/resnet18", 7, weights=None, neck=()).eval()
    assert can_fold(net.backbone)
    fold_batch_norms(net.backbone)
    assert not can_fold(net.backbone)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.backbone.modules())


def test_later_changes_of_the_network_do_not_reach_its_folded_copy() -> None:
    net = camtrain.create_model("torchvision/resnet18", 7, weights=None, neck=(8,))
    network, images = TorchNetwork(net), torch.rand(1, 3, 64, 96)
    before = network.class_maps(images)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.zero_()
    for tensor, expected in zip(network.class_maps(images), before, strict=True):
        assert torch.equal(tensor, expected)


class Odd(nn.Module):
    """Pairs that must stay: a result of two users, and layers that are used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Conv2d(3, 3, 1)
        self.seen_norm = nn.BatchNorm2d(3)
        self.twice = nn.Conv2d(3, 3, 1)
        self.norm_a = nn.BatchNorm2d(3)
        self.norm_b = nn.BatchNorm2d(3)
        self.free = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, images: Tensor) -> Tensor:
        """A sum of them all."""
        seen = self.seen(images)
        both = self.norm_a(self.twice(images)) + self.norm_b(self.twice(images + 1))
        return seen + self.seen_norm(seen) + both + self.free(images)


def test_what_is_used_twice_is_left_as_it_is() -> None:
    odd = fx.symbolic_trace(Odd().eval())
    images = torch.rand(2, 3, 6, 5)
    expected = copy.deepcopy(odd)(images)
    assert not can_fold(odd)
    fold_batch_norms(nn.Sequential(odd))
    assert torch.equal(odd(images), expected)
