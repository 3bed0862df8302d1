"""Where affinity refinement looks: found in the graph, the same features, any backbone."""

import ast
import copy
import sys
from contextlib import suppress
from typing import cast

import pytest
import timm
import torch
import torchvision
from timm.models import get_deprecated_models
from timm.models._registry import _module_to_models
from torch import nn

import camtrain
from camtrain import CAMNet
from camtrain.errors import CamtrainValueError
from camtrain.inference.network import TorchNetwork, fold_batch_norms
from camtrain.model.describe import _unfilled
from camtrain.model.probe import Intercepted
from camtrain.model.stages import run_with_stages
from tests.conftest import at_night

SWIN = "timm/swin_tiny_patch4_window7_224"
FOUND = {
    "timm/mobilenetv2_100": ("blocks.3", "blocks.4", "blocks.5"),
    "torchvision/squeezenet1_1": ("features.9", "features.10", "features.11"),
    "timm/resnet26": ("layer2", "layer3"),
    "torchvision/googlenet": ("inception4b", "inception4c", "inception4d"),
    "timm/vit_tiny_patch16_224": ("blocks.6", "blocks.8", "blocks.9"),
    SWIN: (*("layers.2.blocks.2", "layers.2.blocks.4", "layers.2.blocks.5"),),
    "camtrain/digits": ("trunk.pool2", "trunk.relu3"),
}


def network(name: str) -> CAMNet:
    torch.manual_seed(0)
    return camtrain.create_model(name, 4, weights=None, neck=()).eval()


def images_for(net: CAMNet) -> torch.Tensor:
    is_fixed = "224" in str(net.recipe["backbone"]) if net.recipe else False
    return torch.randn(2, 3, *((224, 224) if is_fixed else (96, 128)))


@pytest.mark.parametrize("name", at_night(FOUND, SWIN))
def test_stages_are_found_and_change_nothing(name: str) -> None:
    net = network(name)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    net.set_refine("affinity")
    assert net.stages is not None
    assert net.stages.layers == FOUND[name]
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    images = images_for(net)
    with torch.no_grad():
        backbone_output = net.backbone_output(images)
        assert torch.equal(backbone_output.features, net.backbone(images))
    assert backbone_output.vectors.shape[2:] == backbone_output.features.shape[2:]


def test_a_stage_is_the_result_of_its_layer() -> None:
    """A sum after the last layer of a residual block belongs to it."""
    torch.manual_seed(0)
    classifier = torchvision.models.resnet18(weights=None).eval()
    net = camtrain.convert(classifier)
    net.set_refine("affinity", ["layer3"])
    seen: list[torch.Tensor] = []
    classifier.layer3.register_forward_hook(lambda module, given, result: seen.append(result))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        classifier(images)
        vectors = net.backbone_output(images).vectors
    from camtrain.model.refine import stage_vectors

    torch.testing.assert_close(vectors, stage_vectors(seen, (2, 3)))


@pytest.mark.nightly
def test_a_gain_before_the_sum_belongs_to_the_block() -> None:
    net = network("timm/nfnet_f0")
    net.set_refine("affinity")
    assert net.stages is not None
    assert len(net.stages.layers) == 3


@pytest.mark.nightly
def test_a_stage_ends_where_the_next_module_begins() -> None:
    """Swin's next stage regroups its pixels before its first layer."""
    net = network(SWIN).set_refine("affinity")
    assert net.stages is not None
    assert net.stages.channels == (384, 384, 384)
    assert not [name for name in vars(net.backbone.trunk) if "_tensor_constant" in name]


@pytest.mark.parametrize("name", at_night(["timm/resnet26", SWIN], SWIN))
def test_it_follows_a_network_that_moves(name: str) -> None:
    net = network(name).set_refine("affinity")
    images = images_for(net)
    with torch.no_grad():
        net.refined_maps(images)
        moved = net.to("meta").backbone_output(images.to("meta"))
    assert moved.vectors.is_meta


def test_a_convolution_that_is_a_stage_is_not_folded() -> None:
    torch.manual_seed(0)
    net = camtrain.convert(
        torchvision.models.resnet18(weights=None).eval(),
        preprocessing=camtrain.Preprocessing((64, 96)),
    )
    with torch.no_grad():
        net.train()(torch.randn(8, 3, 64, 96))
    net.eval().set_refine("affinity", ["layer3.0.conv1"])
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = net.refined_maps(images).refined_maps
    given = TorchNetwork(net).display_maps(images).maps
    torch.testing.assert_close(given, expected, atol=1e-4 * float(expected.max()), rtol=1e-3)


def test_a_stage_is_seen_before_what_follows_works_in_place() -> None:
    net = network("torchvision/squeezenet1_1")
    name = "features.9.squeeze"  # a ReLU in place comes after it
    net.set_refine("affinity", [name])
    assert net.stages is not None
    seen: list[torch.Tensor] = []
    layer = net.backbone.get_submodule(f"trunk.{name}")
    handle = layer.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    images = images_for(net)
    with torch.no_grad():
        features, [stage] = run_with_stages(net.backbone, net.stages, images)
        handle.remove()
        assert torch.equal(features, net.backbone(images))
    assert float(stage.min()) < 0
    assert torch.equal(stage, seen[0])


def test_a_network_of_another_type_of_numbers() -> None:
    net = network("camtrain/digits").bfloat16().set_refine("affinity")
    assert net.stages is not None


def test_a_copy_and_a_folded_network_give_the_same() -> None:
    net = network("timm/mobilenetv2_100").set_refine("affinity")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = net.refined_maps(images).refined_maps
        copied = copy.deepcopy(net)
        assert torch.equal(copied.refined_maps(images).refined_maps, expected)
        fold_batch_norms(copied.backbone)
        folded = copied.refined_maps(images).refined_maps
    torch.testing.assert_close(folded, expected, atol=1e-3 * float(expected.max()), rtol=1e-2)


def test_a_trunk_that_is_no_graph_gives_the_blocks_that_it_lists() -> None:
    class Branching(timm.models.resnet.ResNet):
        """No graph: its way depends on the numbers."""

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward_features(x if x.sum() > 0 else x + 0.0)

    torch.manual_seed(0)
    trunk = Branching(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=4).eval()
    from camtrain.model.trunk import TimmBackbone

    net = CAMNet(TimmBackbone(trunk), nn.Linear(512, 4)).eval().set_refine("affinity")
    assert net.stages is not None
    assert net.stages.layers == ("layer2", "layer3")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        output = net.refined_maps(images)
        assert torch.equal(output.maps, net.class_maps(images).maps)
    with pytest.raises(CamtrainValueError, match=r"got \['layer9'\]; the blocks are: .*layer3"):
        net.set_refine("affinity", ["layer9"])


def test_a_network_of_two_branches_lists_its_blocks_twice() -> None:
    with torch.device("meta"):
        net = camtrain.create_model("timm/crossvit_tiny_240", 3, weights=None, neck=())
        net.set_refine("affinity")
    assert net.stages is not None
    assert net.stages.layers == ("blocks.0", "blocks.1")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["blocks.77"], r"must name layers before the cut, got \['blocks.77'\]; the blocks are: "),
        ([], "must name layers before the cut, got "),
    ],
)
def test_layers_that_are_not_there(layers: list[str], message: str) -> None:
    net = network("timm/mobilenetv2_100")
    with pytest.raises(CamtrainValueError, match=message):
        net.set_refine("affinity", layers)
    assert net.refine == "none"


def test_any_layers_may_be_named_in_any_order() -> None:
    net = network("torchvision/squeezenet1_1").set_refine("affinity", ["features.10", "features.4"])
    assert net.stages is not None
    assert net.stages.layers == ("features.10", "features.4")
    assert net.stages.channels == (384, 128)


def test_a_network_that_remembers_what_it_computed_is_traced_again() -> None:
    """A proxy of the first trace in the dictionary would be an operation of no graph."""

    class Remembering(timm.models.resnet.ResNet):
        def __init__(self) -> None:
            super().__init__(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=4)
            self.biases: dict[str, torch.Tensor] = {}

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            bias = self.biases.setdefault(str(x.device), cast("torch.Tensor", self.bn1.bias) * 2)
            return super().forward_features(x) + bias.mean()

    from camtrain.model.trunk import TimmBackbone

    trunk = Remembering().eval()
    net = CAMNet(TimmBackbone(trunk), nn.Linear(512, 4)).eval().set_refine("affinity")
    assert trunk.biases == {}
    with torch.no_grad():
        net.refined_maps(torch.randn(1, 3, 64, 96))
    copy.deepcopy(net)


class Parallel(nn.Module):
    """Two ways through all of it, so that no layer has all that later ones use."""

    def __init__(self) -> None:
        super().__init__()
        kinds = [nn.Conv2d(3, 8, 3, 4, 1), *(nn.Conv2d(8, 8, 3, 1, 1) for _ in range(3))]
        self.left, self.right = nn.Sequential(*kinds), copy.deepcopy(nn.Sequential(*kinds))
        self.fc = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        both = self.left(images) + self.right(images)
        logits: torch.Tensor = self.fc(both.mean((2, 3)))
        return logits


def test_a_network_without_stages_says_which_layers_would_do() -> None:
    net = camtrain.convert(Parallel().eval())
    with pytest.raises(CamtrainValueError, match=r"no layer in its second half .*") as refused:
        net.set_refine("affinity")
    layers = layers_in(str(refused.value))
    assert layers == ["right.0", "right.1", "right.2"]
    assert net.set_refine("affinity", layers).stages is not None


def layers_in(sentence: str) -> list[str]:
    """The layers that a refusal says would do."""
    layers: list[str] = ast.literal_eval(sentence.partition("such as ")[2].rstrip("."))
    return layers


def smallest(family: str) -> str:
    """The network of a family of timm with the fewest weights."""

    def weights(name: str) -> int:
        with torch.device("meta"), Intercepted(_unfilled), suppress(Exception):
            return sum(weight.numel() for weight in timm.create_model(name).parameters())
        return sys.maxsize  # it needs a package or a download

    return min(sorted(_module_to_models[family] - get_deprecated_models().keys()), key=weights)


# The largest, gemma4_vit and deepseek_vit, take a minute or two.
FAMILIES = [family for family, models in sorted(_module_to_models.items()) if models]


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
def test_the_smallest_of_each_family_is_refined_or_says_how(family: str) -> None:
    net = network(f"timm/{smallest(family)}")
    assert net.preprocessing is not None
    images = torch.randn(1, 3, *net.preprocessing.size)
    try:
        net.set_refine("affinity")
    except CamtrainValueError as refused:
        net.set_refine("affinity", layers_in(str(refused)))
    with torch.no_grad():
        output = net.refined_maps(images)
    assert output.refined_maps.isfinite().all()
    # Through random weights a picture may fade to maps of tiny values.
    refined, plain = (maps / maps.abs().max() for maps in (output.refined_maps, output.maps))
    assert not torch.allclose(refined, plain, atol=1e-3)
