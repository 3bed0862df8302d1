"""Graphs and cuts: what is found, and what is refused."""

import copy
import io

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from camtrain.errors import CamtrainValueError
from camtrain.model.cut import (
    GraphBackbone,
    NoGraphError,
    check_cut,
    default_cut,
    trace,
)
from camtrain.model.probe import evaluating


class Dropping(nn.Module):
    """Dropout as a function: tracing freezes what ``training`` was."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of four classes."""
        return F.dropout(self.norm(self.conv(images)), 0.5, self.training).relu().mean((2, 3))


@pytest.fixture
def dropping() -> GraphBackbone:
    return GraphBackbone(Dropping(), "relu")


def drops(backbone: GraphBackbone) -> bool:
    images = torch.randn(1, 3, 8, 12)
    return not torch.equal(backbone(images), backbone(images))


def test_a_graph_per_mode(dropping: GraphBackbone) -> None:
    assert drops(dropping.train())
    assert not drops(dropping.eval())
    assert drops(dropping.train())


def test_the_graph_follows_a_mode_that_is_set_from_outside(dropping: GraphBackbone) -> None:
    """Lightning does not call ``train`` after a validation loop, but sets ``training``."""
    dropping.train()
    with evaluating(dropping):
        assert not drops(dropping)
    assert drops(dropping)
    for module in dropping.modules():
        module.training = False
    assert not drops(dropping)


@pytest.mark.parametrize("mode", [True, False])
def test_a_copy_has_the_modes_the_weights_and_both_graphs(
    dropping: GraphBackbone, mode: bool
) -> None:
    dropping.train(mode)
    dropping.trunk.norm.eval()  # frozen by itself
    copied = copy.deepcopy(dropping)
    modes = {name: module.training for name, module in dropping.named_modules()}
    assert {name: module.training for name, module in copied.named_modules()} == modes
    assert drops(copied) == mode
    images = torch.randn(1, 3, 8, 12)
    assert torch.equal(copied.eval()(images), dropping.eval()(images))
    assert drops(copied.train())
    copied.trunk.conv.weight.data.zero_()
    assert dropping.trunk.conv.weight.any()


def test_a_pickled_backbone_computes_the_same(dropping: GraphBackbone) -> None:
    file = io.BytesIO()
    torch.save(dropping.eval(), file)
    file.seek(0)
    # Written by the line above, so that reading it is safe.
    again = torch.load(file, weights_only=False)
    images = torch.randn(1, 3, 8, 12)
    assert torch.equal(again(images), dropping(images))


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("vgg16", "features.29"),  # relu5_3, without pool5
        ("alexnet", "features.11"),  # relu5, without pool5
        ("resnet18", "layer4.1.relu_1"),
        ("densenet121", "relu"),
        ("mobilenet_v2", "features.18"),
    ],
)
def test_the_default_cut_is_the_last_map_before_pooling(name: str, cut: str) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
    assert default_cut(trace(network)) == cut


def test_a_network_without_an_average_has_no_default_cut() -> None:
    with pytest.raises(CamtrainValueError, match="does not average a feature map; name the layer"):
        default_cut(trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))))


def test_a_network_of_several_results_is_refused() -> None:
    class Several(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            """No tensor."""
            return {"out": images}

    with pytest.raises(CamtrainValueError, match=r"one tensor from its images, got \{'out'"):
        default_cut(trace(Several()))


def test_a_trunk_cut_earlier_has_the_values_and_no_later_layers() -> None:
    network = torchvision.models.resnet18().eval()
    backbone = GraphBackbone(network, "layer3").eval()
    images = torch.randn(1, 3, 64, 96)
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    with torch.inference_mode():
        expected = network.layer3(network.layer2(network.layer1(stem(images))))
        assert torch.equal(backbone(images), expected)
    kept = {name.split(".")[1] for name in backbone.state_dict()}
    assert kept == {"conv1", "bn1", "layer1", "layer2", "layer3"}


@pytest.mark.parametrize(
    ("name", "cut", "messages"),
    [
        (
            "resnet18",
            "layer9",
            ("a layer of ResNet, got 'layer9'", "layer3 (stride 16), layer4 (stride 32)"),
        ),
        ("resnet18", "layer3.1.conv5", ("Did you mean layer3.1.conv",)),
        ("vgg16", "feature.29", ("Did you mean features.29", "features.28 (stride 16)")),
    ],
)
def test_an_unknown_cut_lists_blocks_with_their_strides(
    name: str, cut: str, messages: tuple[str, ...]
) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
    check_cut(network, default_cut(trace(network)), 3, (64, 96))
    with pytest.raises(CamtrainValueError) as error:
        check_cut(network, cut, 3, (64, 96))
    for message in messages:
        assert message in str(error.value)


def test_a_forward_pass_that_branches_has_no_graph() -> None:
    class Branching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            """Logits."""
            return images if images.sum() > 0 else -images

    with pytest.raises(NoGraphError, match="Branching cannot be read as a graph"):
        trace(Branching())
