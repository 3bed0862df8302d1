"""Trunks: both modes, copies, maps from any layout, and images of a wrong size."""

import copy
import io
from typing import Any
from unittest.mock import Mock

import pytest
import timm
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from camtrain.errors import CamtrainValueError
from camtrain.model.backbones import build_classifier
from camtrain.model.create import create_model
from camtrain.model.cut import default_cut, leaf_types, trace
from camtrain.model.probe import evaluating
from camtrain.model.trunk import GraphBackbone, TimmBackbone, TimmBlocks
from tests.conftest import at_night


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
    return GraphBackbone(trace(Dropping()), "relu")


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


def test_a_trunk_is_traced_once_and_gives_hooks_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[object] = []
    original = fx.Tracer.trace

    def counting(tracer: fx.Tracer, root: nn.Module, *args: Any) -> fx.Graph:
        traces.append(root)
        return original(tracer, root, *args)

    monkeypatch.setattr(fx.Tracer, "trace", counting)
    net = create_model("torchvision/resnet18", 5, weights=None).eval()
    assert len(traces) == 1
    shapes = []
    net.backbone.trunk.register_forward_hook(lambda *args: shapes.append(args[2].shape))
    with torch.inference_mode():
        net(torch.zeros(1, 3, 64, 96))
    assert shapes == [(1, 512, 2, 3)]


def test_a_trunk_cut_earlier_has_the_values_and_no_later_layers() -> None:
    network = torchvision.models.resnet18().eval()
    backbone = GraphBackbone(trace(network), "layer3").eval()
    images = torch.randn(1, 3, 64, 96)
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    with torch.inference_mode():
        expected = network.layer3(network.layer2(network.layer1(stem(images))))
        assert torch.equal(backbone(images), expected)
    kept = {name.split(".")[1] for name in backbone.state_dict()}
    assert kept == {"conv1", "bn1", "layer1", "layer2", "layer3"}


# Every way that timm and torchvision store their last features.
STORED = [
    ("timm/test_vit", {}, 10, 10),  # tokens, after one for the class
    ("timm/vit_tiny_patch16_384", {"depth": 1}, 24, 24),
    ("timm/test_vit4", {}, 10, 10),
    ("timm/swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, 7, 7),  # channels last
    ("timm/coat_tiny", {}, 7, 7),  # the last of several
    ("timm/efficientvim_m1", {}, 4, 4),  # channels before tokens, the last of several
    ("timm/crossvit_9_240", {}, 14, 14),
    ("timm/hiera_tiny_224", {}, 7, 7),  # in units that are merged
    ("timm/mvitv2_tiny", {}, 7, 7),
    ("timm/pit_ti_224", {}, 7, 7),
    ("timm/mixer_s32_224", {}, 7, 7),
    ("timm/nest_tiny_jx", {}, 14, 14),
    ("timm/xcit_nano_12_p16_224", {}, 14, 14),
    ("timm/volo_d1_224", {}, 14, 14),
    ("timm/twins_svt_small", {}, 7, 7),
    ("timm/mambaout_femto", {}, 7, 9),
    ("timm/resnet18", {}, 7, 9),
    ("torchvision/swin_t", {}, 7, 9),
    ("torchvision/vit_b_32", {}, 7, 7),
]


LARGE = {  # a second or more
    *("timm/coat_tiny", "timm/hiera_tiny_224", "timm/mvitv2_tiny", "timm/nest_tiny_jx"),
    *("timm/volo_d1_224", "timm/pit_ti_224", "timm/crossvit_9_240", "timm/twins_svt_small"),
    *("torchvision/swin_t", "torchvision/vit_b_32", "timm/mixer_s32_224"),
}


@pytest.mark.parametrize(
    ("name", "arguments", "h", "w"),
    at_night(STORED, *(case for case in STORED if case[0] in LARGE)),
)
def test_the_map_shows_where_the_picture_changed(
    name: str, arguments: dict[str, Any], h: int, w: int
) -> None:
    """However the features are stored, a change of a corner is strongest at that corner."""
    torch.manual_seed(0)
    backbone = create_model(name, 2, weights=None, neck=(), backbone_args=arguments).backbone.eval()
    assert backbone.size_hw is not None
    height = backbone.size_hw[0]
    images = torch.randn(1, 3, height, height * w // h)
    height, width = images.shape[2:]
    found = []
    with torch.inference_mode():
        before = backbone(images)
        assert before.shape[2:] == (h, w)
        for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
            changed = images.clone()
            rows = slice(0, height // 4) if y == 0 else slice(3 * height // 4, None)
            columns = slice(0, width // 4) if x == 0 else slice(3 * width // 4, None)
            changed[:, :, rows, columns] = torch.randn_like(changed[:, :, rows, columns])
            change = (backbone(changed) - before).abs().sum(1)[0]
            peak = int(change.argmax())
            found.append((2 * (peak // w) // h, 2 * (peak % w) // w))
    assert found == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("timm/vit_tiny_patch16_224", "224x224"),
        pytest.param("torchvision/vit_b_32", "224x224", marks=pytest.mark.nightly),
    ],
)
def test_images_of_another_size_than_the_networks_are_refused_in_one_sentence(
    name: str, own: str
) -> None:
    net = create_model(name, 2, weights=None, neck=())
    with pytest.raises(CamtrainValueError) as error:
        net(torch.zeros(1, 3, 224, 288))
    assert f"The network takes images of {own} pixels, got 224x288 (" in str(error.value)
    assert "; set size accordingly." in str(error.value)
    assert "\n" not in str(error.value)


def test_a_transformer_of_any_size_takes_whole_patches() -> None:
    arguments = {"dynamic_img_size": True}
    net = create_model("timm/test_vit3", 2, weights=None, neck=(), backbone_args=arguments).eval()
    with torch.inference_mode():
        output = net.class_maps(torch.rand(1, 3, 96, 160))
    assert output.maps.shape[2:] == (6, 10)
    law_1 = output.maps.mean((-2, -1)) + net.head.bias
    torch.testing.assert_close(output.logits, law_1, atol=1e-5, rtol=1e-5)
    message = (
        "The network takes images that its patches of 16x16 pixels divide, got 100x156; set size "
        "to 96x160, for example."
    )
    with pytest.raises(CamtrainValueError, match=f"^{message}$"):
        net(torch.rand(1, 3, 100, 156))


def test_another_failure_keeps_its_own_error() -> None:
    net = create_model("timm/test_vit", 2, weights=None, neck=())
    failing = Mock(side_effect=RuntimeError("out of luck"))
    next(m for m in net.modules() if isinstance(m, nn.Conv2d)).register_forward_pre_hook(failing)
    with pytest.raises(RuntimeError, match="out of luck") as error:
        net(torch.zeros(1, 3, 160, 160))
    assert not isinstance(error.value, CamtrainValueError)


def test_layers_that_are_used_without_being_called_stay() -> None:
    """Relative positions are asked for their bias, not called."""
    network = timm.create_model("test_coatnet").eval()
    images = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        expected = network.forward_features(images)
        net = create_model("timm/test_coatnet", 2, weights=None, neck=())
        assert isinstance(net.backbone, TimmBackbone)
        net.backbone.trunk.load_state_dict(network.state_dict(), strict=False)
        torch.testing.assert_close(net.eval().backbone(images), expected)


@pytest.mark.nightly
@torch.inference_mode()
def test_a_timm_network_that_cannot_be_traced_is_cut_after_its_blocks() -> None:
    network = timm.create_model("vgg11").eval()
    net = create_model("timm/vgg11", 2, weights=None, neck=(), cut="features.14").eval()
    assert isinstance(net.backbone, TimmBlocks)
    kept = {name.removeprefix("trunk.") for name in net.backbone.state_dict()}
    assert "features.16.weight" not in kept
    net.backbone.trunk.load_state_dict(network.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(net.features(images), network.features[:15](images))


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        ("timm/vgg11", "features.99", "got 'features.99'. Its blocks are: features.1 (stride 1)"),
        ("timm/crossvit_9_240", "blocks.1", "should give 256 channels, got 128"),
    ],
)
def test_blocks_that_cannot_be_had_are_said(name: str, cut: str, message: str) -> None:
    with torch.device("meta"), pytest.raises(CamtrainValueError) as error:
        create_model(name, 2, weights=None, neck=(), cut=cut)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["swin_v2_t", "maxvit_t", "googlenet"])
def test_the_names_of_the_weights_are_those_of_torchvisions_extractor(name: str) -> None:
    """Checkpoints of earlier versions, and the order of parameters in an optimizer's state."""
    with torch.device("meta"):
        name = f"torchvision/{name}"
        network = build_classifier(name, num_classes=None, in_chans=3, backbone_args={})
        cut = default_cut(trace(network))
        expected = create_feature_extractor(
            network,
            {cut: "features"},
            tracer_kwargs={"leaf_modules": leaf_types(network)},
            suppress_diff_warning=True,
        )
        backbone = GraphBackbone(trace(network), cut)
    # Constants of tracing are numbered; earlier versions stored them.
    names = [name for name in expected.state_dict() if "_tensor_constant" not in name]
    assert list(backbone.trunk.state_dict()) == names
    stored = {f"trunk.{name}": tensor for name, tensor in expected.state_dict().items()}
    for copied in (backbone, copy.deepcopy(backbone)):
        assert len(copied.state_dict()) == len(names)
        copied.load_state_dict(stored)
