"""Networks by name: arguments, recipes, and every refusal."""

import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.model import backbones
from camtrain.model.backbones import build_classifier, full_name
from camtrain.model.camnet import CAMNet
from camtrain.model.create import create_model, from_recipe
from camtrain.model.stride import stride_of
from tests.conftest import at_night

RESNET, SQUEEZENET = "torchvision/resnet18", "torchvision/squeezenet1_1"


def meta(name: str, num_classes: int | None = 5, **arguments: Any) -> CAMNet:
    with torch.device("meta"):
        return create_model(name, num_classes, **{"weights": None, **arguments})


@pytest.mark.parametrize(
    "name",
    [
        *("vgg16", "googlenet", "squeezenet1_1", "timm/mobilenetv2_100", "convnext_atto", "digits"),
        *("vgg16-cam", "googlenet-cam", "alexnet-plus-cam"),
    ],
)
def test_everything_is_on_the_meta_device_under_it(name: str) -> None:
    net = meta(name)
    assert {t.device.type for t in (*net.parameters(), *net.buffers())} == {"meta"}
    assert net.training
    assert all(module.training for module in net.modules())


def test_the_defaults_are_those_of_the_paper() -> None:
    net = meta("vgg16", 20)
    (conv, relu) = net.neck.children()
    assert isinstance(conv, nn.Conv2d)
    assert (conv.in_channels, conv.out_channels) == (512, 1024)
    assert (conv.kernel_size, conv.padding, conv.groups) == ((3, 3), (1, 1), 1)
    assert conv.bias is not None
    assert isinstance(relu, nn.ReLU)
    assert (net.head.in_features, net.head.out_features) == (1024, 20)
    assert net.head.bias is not None
    assert (net.pool, net.dropout.p) == ("avg", 0)


@pytest.mark.parametrize(
    ("arguments", "kinds", "channels"),
    [
        ({"neck": ()}, "", 512),
        ({"neck": (64, 32)}, "Conv2d ReLU Conv2d ReLU", 32),
        ({"neck": [64], "neck_norm": "batch"}, "Conv2d BatchNorm2d ReLU", 64),
        ({"neck": (64,), "neck_kernel": 1, "neck_groups": 2}, "Conv2d ReLU", 64),
        ({"neck": (64,), "neck_kernel": 5}, "Conv2d ReLU", 64),
    ],
)
def test_necks(arguments: dict[str, Any], kinds: str, channels: int) -> None:
    net = meta(RESNET, **arguments)
    layers = list(net.neck.children())
    assert " ".join(type(layer).__name__ for layer in layers) == kinds
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert all(conv.groups == arguments.get("neck_groups", 1) for conv in convs)
    assert all((conv.bias is None) == ("neck_norm" in arguments) for conv in convs)
    assert net.head.in_features == channels
    assert net.class_maps(torch.empty(2, 3, 64, 96, device="meta")).maps.shape == (2, 5, 2, 3)


@pytest.mark.parametrize(
    ("name", "cut", "shape", "stride"),
    [
        (RESNET, "layer3", (256, 4, 6), 16),
        (RESNET, "layer3.0.conv1", (256, 4, 6), 16),
        (SQUEEZENET, "features.5", (128, 7, 11), 8),
        ("timm/mobilenetv2_100", "blocks.4", (96, 4, 6), 16),
        ("camtrain/digits", "pool1", (32, 32, 48), 2),
    ],
)
def test_a_network_is_cut_after_any_layer(
    name: str, cut: str, shape: tuple[int, int, int], stride: int
) -> None:
    net = meta(name, cut=cut, neck=())
    assert net.features(torch.empty(1, 3, 64, 96, device="meta")).shape == (1, *shape)
    assert stride_of(net.backbone, 3) == stride


def test_cut_and_stride_together() -> None:
    net = meta(RESNET, cut="layer3", stride=8)
    assert net.features(torch.empty(1, 3, 64, 96, device="meta")).shape == (1, 1024, 8, 12)


def test_pool_and_dropout_and_channels_arrive() -> None:
    net = meta("digits", pool="lse", dropout=0.25, in_chans=1, backbone_args={"width": 4})
    assert (net.pool, net.dropout.p) == ("lse", 0.25)
    assert net.features(torch.empty(1, 1, 64, 96, device="meta")).shape == (1, 1024, 16, 24)


RECIPES: list[tuple[str, dict[str, Any]]] = [
    (RESNET, {}),
    (RESNET, {"cut": "layer3", "stride": 8, "neck": (64, 32), "neck_norm": "batch"}),
    (SQUEEZENET, {"neck": (), "pool": "max", "dropout": 0.5}),
    ("googlenet", {"stride": 8, "neck_groups": 2}),
    ("timm/mobilenetv2_100", {"backbone_args": {"pad_type": "same"}, "in_chans": 1}),
    ("digits", {"backbone_args": {"width": 4}, "pool": "gmp"}),
    ("digits", {"cut": "relu3", "in_chans": 1}),
]


def assert_same_architecture(again: CAMNet, net: CAMNet) -> None:
    """The state fits, and with it the outputs are the same, bit for bit."""
    again.load_state_dict(net.state_dict())
    assert list(again.state_dict()) == list(net.state_dict())
    assert again.recipe == net.recipe
    assert again.preprocessing == net.preprocessing
    assert net.recipe is not None
    images = torch.randn(1, net.recipe["in_chans"], 64, 96)
    with torch.inference_mode():
        found, expected = again.eval().class_maps(images), net.eval().class_maps(images)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "arguments"), at_night(RECIPES, *(case for case in RECIPES if "googlenet" in case[0]))
)
def test_a_recipe_builds_the_same_network_again(name: str, arguments: dict[str, Any]) -> None:
    net = create_model(name, 5, weights=None, **arguments)
    assert net.recipe is not None
    recipe = json.loads(json.dumps(net.recipe))
    assert recipe == net.recipe  # plain values only
    assert_same_architecture(from_recipe(recipe), net)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (SQUEEZENET, {}),
        (SQUEEZENET, {"stride": 8, "pool": "lse", "dropout": 0.5}),
        pytest.param(RESNET, {"stride": 16}, marks=pytest.mark.nightly),
        ("timm/test_resnet", {}),
        pytest.param("googlenet", {}, marks=pytest.mark.nightly),
    ],
)
def test_a_recipe_with_the_original_head_builds_it_again(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    classifier = build_classifier(full_name(name), num_classes=None, in_chans=3, backbone_args={})
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    net = create_model(name, weights=tmp_path / "w.pth", neck=(), **arguments)
    assert net.recipe is not None
    assert (net.recipe["own_head"], net.recipe["num_classes"]) == (True, 1000)
    assert net.dropout.p == arguments.get("dropout", 0)
    assert net.pool == arguments.get("pool", "avg")
    assert_same_architecture(from_recipe(json.loads(json.dumps(net.recipe))), net)
    # Other classes, a neck or another cut: the original head has no place.
    for other in ({"num_classes": 5}, {"neck": (8,)}):
        again = create_model(name, weights=tmp_path / "w.pth", **{"neck": (), **other})
        assert again.recipe is not None
        assert not again.recipe["own_head"]


def test_a_copy_is_independent_and_computes_the_same() -> None:
    net = create_model(RESNET, 5, weights=None, neck=(8,)).eval()
    copied = copy.deepcopy(net)
    images = torch.randn(1, 3, 64, 96)
    assert not any(module.training for module in copied.modules())
    assert torch.equal(copied(images), net(images))
    copied.backbone.trunk.conv1.weight.data.zero_()
    assert net.backbone.trunk.conv1.weight.any()


BAD: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("vgg99", {}, ("backbone must be the name", "got 'vgg99'", "vgg19")),
    (RESNET, {"cut": "layer9"}, ("cut must name a layer of ResNet", "layer3 (stride 16)")),
    (RESNET, {"cut": "fc"}, ("cut must give a feature map", "(1, 1000)", "choose an earlier cut")),
    ("digits", {"cut": "conv9"}, ("cut must name a layer of Sequential, got 'conv9'", "conv1")),
    (RESNET, {"stride": 64}, ("stride must be one of 1, 2, 4, 8, 16, 32", "got 64")),
    (RESNET, {"num_classes": None}, ("num_classes must be at least 1", "weights=None")),
    (RESNET, {"num_classes": 0}, ("num_classes must be at least 1", "got 0")),
    (RESNET, {"pool": "mean"}, ("pool must be one of avg, max, lse, gmp, got 'mean'",)),
    (RESNET, {"dropout": 1.0}, ("dropout must lie in [0, 1), got 1.0",)),
    (RESNET, {"neck": (0,)}, ("neck must hold channel counts", "(0,)")),
    (RESNET, {"neck": (64, 33), "neck_groups": 2}, ("neck_groups=2 divides, got (64, 33)",)),
    (RESNET, {"neck": (9,), "neck_groups": 3}, ("neck_groups must divide the 512 channels",)),
    (RESNET, {"neck_groups": 0}, ("neck_groups=0",)),
    (RESNET, {"neck_kernel": 4}, ("neck_kernel must be odd", "got 4")),
    (RESNET, {"neck_norm": "layer"}, ("neck_norm must be batch or None, got 'layer'",)),
    (RESNET, {"weights": "V9"}, ("must be one of DEFAULT, IMAGENET1K_V1, None (null), or a file",)),
    (RESNET, {"backbone_args": {"wdith": 2}}, ("backbone_args do not fit", "wdith")),
]


@pytest.mark.parametrize(("name", "arguments", "messages"), BAD)
def test_bad_arguments_are_named(
    name: str, arguments: dict[str, Any], messages: tuple[str, ...]
) -> None:
    with pytest.raises(CamtrainValueError) as error:
        meta(name, **arguments)
    for message in messages:
        assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neck": 5}, "neck must be a list of channel counts, got 5"),
        ({"neck": "512"}, "neck must be a list of channel counts, got '512'"),
        ({"neck_kernel": 3.0}, "neck_kernel must be an integer, got 3.0"),
        ({"neck_groups": 1.0}, "neck_groups must be an integer, got 1.0"),
        ({"dropout": "a"}, "dropout must be a number, got 'a'"),
        ({"stride": 16.0}, "stride must be an integer or None, got 16.0"),
        ({"num_classes": "10"}, "num_classes must be an integer or None, got '10'"),
        ({"num_classes": True}, "num_classes must be an integer or None, got True"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainTypeError) as error:
        create_model("camtrain/digits", **{"num_classes": 2, "weights": None, **arguments})
    assert message in str(error.value)


def test_the_blocks_of_a_transformer_are_listed_with_their_strides() -> None:
    with pytest.raises(CamtrainValueError, match=r"conv_proj \(stride 32\), encoder \(stride 32\)"):
        meta("torchvision/vit_b_32", cut="encoder.layers.99")


BUILDS: list[tuple[str, str, dict[str, Any], int]] = [
    # name, weights of: nothing, the classifier, one of 7 classes; the most builds
    ("torchvision/squeezenet1_1", "", {"num_classes": 5}, 1),
    ("torchvision/squeezenet1_1", "", {"num_classes": 5, "stride": 8, "neck": ()}, 1),
    ("torchvision/squeezenet1_1", "", {"num_classes": 5, "cut": "features.5"}, 1),
    ("torchvision/squeezenet1_1", "default", {"num_classes": 5}, 1),
    ("torchvision/squeezenet1_1", "default", {"num_classes": 5, "neck": ()}, 1),
    ("torchvision/squeezenet1_1", "default", {"neck": ()}, 1),
    ("torchvision/squeezenet1_1", "default", {"neck": (), "stride": 8}, 1),
    ("torchvision/squeezenet1_1", "7", {}, 1),
    ("torchvision/squeezenet1_1", "7", {"neck": ()}, 2),
    ("timm/test_resnet", "", {"num_classes": 5, "cut": "layer2"}, 1),
    ("timm/test_resnet", "default", {"neck": (), "stride": 16}, 1),
    ("timm/test_resnet", "7", {"neck": ()}, 2),
    ("timm/test_resnet", "DEFAULT", {"neck": ()}, 2),
    ("timm/test_vit", "default", {"neck": ()}, 1),  # not cam-ready
    ("timm/test_vit", "7", {"neck": ()}, 2),
    ("camtrain/digits", "", {"num_classes": 5}, 1),
    ("camtrain/digits", "", {"num_classes": 5, "cut": "relu3"}, 1),
]


@pytest.mark.parametrize(("name", "weights", "arguments", "most"), BUILDS)
def test_the_classifier_is_built_once_and_again_only_for_other_classes(
    name: str,
    weights: str,
    arguments: dict[str, Any],
    most: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classes = 7 if weights == "7" else None
    classifier = build_classifier(name, num_classes=classes, in_chans=3, backbone_args={})
    tensors = classifier.state_dict()
    source: str | Path | None = None
    if weights in ("default", "7"):
        source = tmp_path / "w.pth"
        torch.save(tensors, source)
    elif weights:
        source = weights
        monkeypatch.setattr(
            "timm.models._builder.load_state_dict_from_hf", lambda *_, **__: tensors
        )
    builds: list[str] = []

    def count(module: ModuleType, function: str) -> None:
        original = getattr(module, function)

        def build(model: str, *args: Any, **settings: Any) -> nn.Module:
            builds.append(model)
            network: nn.Module = original(model, *args, **settings)
            return network

        monkeypatch.setattr(module, function, build)

    count(timm, "create_model")
    count(torchvision.models, "get_model")
    trunk = backbones._TRUNKS["digits"]
    monkeypatch.setitem(
        backbones._TRUNKS, "digits", lambda **settings: builds.append("digits") or trunk(**settings)
    )
    create_model(name, weights=source, **arguments)
    assert 1 <= len(builds) <= most
