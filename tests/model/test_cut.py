"""Graphs and cuts: what is found, and what is refused."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from camtrain.errors import CamtrainValueError
from camtrain.model.cut import (
    NoGraphError,
    check_cut,
    default_cut,
    trace,
)


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("vgg16", "features.29"),  # relu5_3, without pool5
        ("alexnet", "features.11"),  # relu5, without pool5
        ("resnet18", "layer4.1.relu_1"),
        ("densenet121", "relu"),
        ("mobilenet_v2", "features.18"),
        ("swin_t", "permute"),
        ("vit_b_16", "encoder.ln"),  # all tokens
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
    operations = trace(network)
    check_cut(operations, default_cut(operations), 3, (64, 96))
    with pytest.raises(CamtrainValueError) as error:
        check_cut(operations, cut, 3, (64, 96))
    for message in messages:
        assert message in str(error.value)


def test_a_forward_pass_that_branches_has_no_graph() -> None:
    class Branching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            """Logits."""
            return images if images.sum() > 0 else -images

    with pytest.raises(NoGraphError, match="Branching cannot be read as a graph"):
        trace(Branching())
