"""The paper's networks: the authors' layer tables, first values, and how arguments combine."""

import doctest
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camtrain.errors import CamtrainValueError
from camtrain.model import builtin
from camtrain.model.builtin import Inception, caffe_name
from camtrain.model.camnet import CAMNet
from camtrain.model.create import create_model, from_recipe
from camtrain.model.recipes import PAPER_NETWORKS
from camtrain.model.stride import stride_of

VGG, GOOGLENET, ALEXNET = (
    "camtrain/vgg16-cam",
    "camtrain/googlenet-cam",
    "camtrain/alexnet-plus-cam",
)
Table = list[dict[str, Any]]


def meta(name: str, num_classes: int = 1000, **arguments: Any) -> CAMNet:
    with torch.device("meta"):
        return create_model(name, num_classes, weights=None, **arguments)


def small(name: str, num_classes: int = 5, **arguments: Any) -> CAMNet:
    arguments = {"weights": None, "backbone_args": {"width": 0.125}, **arguments}
    return create_model(name, num_classes, **arguments)


def test_the_examples_hold() -> None:
    failed, attempted = doctest.testmod(builtin)
    assert attempted > 0
    assert failed == 0


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        (VGG, 1000, 18_100_008),
        (GOOGLENET, 205, 7_531_021),
        (GOOGLENET, 1000, 8_345_896),
        (ALEXNET, 1000, 5_133_800),
        (ALEXNET, 205, 4_725_965),
    ],
)
def test_parameters_are_as_many_as_the_authors(name: str, num_classes: int, expected: int) -> None:
    assert sum(p.numel() for p in meta(name, num_classes).parameters()) == expected


TABLES = [
    ("deploy_vgg16CAM", VGG),
    ("deploy_googlenetCAM_places205", GOOGLENET),
    ("train_val_googlenetCAM", GOOGLENET),
    ("deploy_alexnetplusCAM_imagenet", ALEXNET),
    ("deploy_alexnetplusCAM_places205", ALEXNET),
]


def layers_of(prototxt: str, shared: Path) -> Table:
    """The authors' layers in order, without those of data and loss."""
    text = (shared / "oracles/prototxt_shapes/shapes.json").read_text()
    layers: Table = json.loads(text)[f"{prototxt}.prototxt"]["layers"]
    left_out = ("Data", "Softmax", "SoftmaxWithLoss", "Accuracy")
    return [layer for layer in layers if layer["type"] not in left_out]


def authors_name(path: str, name: str) -> str:
    """The authors' name of a layer of ours."""
    paper = PAPER_NETWORKS[name]
    if path.startswith("backbone.trunk."):
        return caffe_name(path.removeprefix("backbone.trunk."))
    kind, number = path.removeprefix("neck.").rstrip("12"), int(path[-1])
    return paper.neck_layers[number - 1].replace("conv", kind)


def met_layers(net: CAMNet, name: str, images: Tensor) -> Table:
    """What a forward pass up to the features meets, in the words of the authors' table."""
    met: Table = []

    def note(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            met.append(
                {
                    "name": authors_name(path, name),
                    "output_shape": list(output.shape[1:]),
                    **described(module),
                }
            )

        return hook

    for path, module in net.named_modules():
        if path.startswith(("backbone.trunk.", "neck.")) and not isinstance(module, nn.Sequential):
            module.register_forward_hook(note(path))
    net.features(images)
    return met


def described(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, nn.Conv2d):
        (kernel, _), (stride, _), (pad, _) = module.kernel_size, module.stride, module.padding
        assert module.kernel_size == (kernel, kernel)
        weight, bias = module.parameters()
        return {
            "type": "Convolution",
            **{"kernel": kernel, "stride": stride, "pad": pad, "group": module.groups},
            **{"num_output": module.out_channels, "dilation": module.dilation[0]},
            "params": {"weight": list(weight.shape), "bias": list(bias.shape)},
        }
    if isinstance(module, nn.MaxPool2d):
        rounding = "ceil" if module.ceil_mode else "floor"
        sizes = {"kernel": module.kernel_size, "stride": module.stride, "pad": module.padding}
        return {"type": "Pooling", "pool": "MAX", "rounding": rounding, **sizes}
    if isinstance(module, nn.LocalResponseNorm):
        values = {"alpha": module.alpha, "beta": module.beta, "k": module.k}
        return {"type": "LRN", "local_size": module.size, **values}
    return {"type": {Inception: "Concat"}.get(type(module), type(module).__name__)}


@pytest.mark.parametrize(("prototxt", "name"), TABLES)
def test_every_layer_is_the_authors(prototxt: str, name: str, shared: Path) -> None:
    table = layers_of(prototxt, shared)
    head = table.pop()
    dropout = table.pop()["dropout_ratio"] if table[-1]["type"] == "Dropout" else 0.0
    average = table.pop()
    net = meta(name, head["num_output"])
    size_hw = PAPER_NETWORKS[name].side, PAPER_NETWORKS[name].side
    met = met_layers(net, name, torch.empty(1, 3, *size_hw, device="meta"))
    keys = set().union(*(layer.keys() for layer in met)) - {"output_shape"}
    expected = [
        {
            **{key: layer[key] for key in keys if key in layer},
            "name": layer["name"].replace("/output", ""),  # ours is the module itself
            "output_shape": layer["output_shape"][1:],
        }
        for layer in table
    ]
    assert met == expected
    assert (average["pool"], net.pool) == ("AVE", "avg")
    assert met[-1]["output_shape"][1:] == [average["kernel"]] * 2
    assert net.dropout.p == dropout
    assert head["name"] == PAPER_NETWORKS[name].head_layer
    assert list(net.head.weight.shape) == head["params"]["weight"]
    assert net.preprocessing is not None
    assert net.preprocessing.size == size_hw


@pytest.mark.parametrize(("prototxt", "name"), TABLES)
def test_first_values_are_those_the_authors_asked_for(
    prototxt: str, name: str, shared: Path
) -> None:
    torch.manual_seed(0)
    net = create_model(name, 205, weights=None)
    paper = PAPER_NETWORKS[name]
    ours: dict[str, nn.Module] = {paper.head_layer: net.head}
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            ours[authors_name(path, name)] = module
    layers = {layer["name"]: layer for layer in layers_of(prototxt, shared) if "params" in layer}
    assert ours.keys() == layers.keys()
    for layer_name, layer in layers.items():
        weight, bias = ours[layer_name].parameters()
        if "bias_filler" in layer:
            torch.testing.assert_close(bias, torch.full_like(bias, layer["bias_filler"]["value"]))
        filler = layer.get("weight_filler", {"type": "none"})
        fan_in = weight[0].numel()
        std = {"gaussian": filler.get("std"), "xavier": fan_in**-0.5}.get(filler["type"])
        if std is not None:
            assert weight.std().item() == pytest.approx(std, rel=0.1), layer_name
        if filler["type"] == "xavier":
            assert weight.abs().max() <= (3 / fan_in) ** 0.5


@pytest.mark.parametrize(
    ("name", "image_hw", "expected"),
    [
        (VGG, (70, 90), (5, 6)),  # 4 and 5 rounded down
        (GOOGLENET, (72, 96), (4, 6)),  # 3 and 5
        (ALEXNET, (103, 131), (4, 5)),  # 3 and 5
    ],
)
def test_sizes_round_up_as_in_caffe(
    name: str, image_hw: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert meta(name, 5).features(torch.empty(1, 3, *image_hw, device="meta")).shape[2:] == expected


@pytest.mark.parametrize("name", PAPER_NETWORKS)
def test_the_neck_the_recipe_knows_is_not_the_usual_one(name: str) -> None:
    """The rule rests on the defaults of ``create_model``."""
    defaults = {n: p.default for n, p in inspect.signature(create_model).parameters.items()}
    assert defaults["neck"] == (1024,)
    assert defaults["dropout"] == 0
    net = meta(name)
    assert net.recipe is not None
    assert net.recipe["neck"] == list(PAPER_NETWORKS[name].neck)
    assert net.recipe["neck_groups"] == 2


@pytest.mark.parametrize(
    ("arguments", "outputs", "groups"),
    [
        ({}, [128], 2),
        ({"neck": (128,), "neck_groups": 2}, [128], 2),
        ({"neck": (64, 32)}, [64, 32], 1),
        ({"neck_groups": 4}, [1024], 4),
        ({"neck_kernel": 5}, [1024], 1),
        ({"neck": ()}, [], 1),
    ],
)
def test_a_neck_that_is_asked_for_is_had(
    arguments: dict[str, Any], outputs: list[int], groups: int
) -> None:
    net = small(GOOGLENET, **arguments)
    convs = [layer for layer in net.neck.modules() if isinstance(layer, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == outputs
    assert all(conv.groups == groups for conv in convs)
    is_paper = groups == 2
    assert all(bool(conv.bias.eq(1).all()) == is_paper for conv in convs)


@pytest.mark.parametrize(
    ("name", "num_classes", "given", "expected"),
    [
        (VGG, 205, 0.0, 0.5),
        (VGG, 20, 0.25, 0.25),
        (GOOGLENET, 1000, 0.0, 0.0),
        (ALEXNET, 1000, 0.0, 0.5),
        (ALEXNET, 20, 0.0, 0.5),
        (ALEXNET, 205, 0.0, 0.0),
        (ALEXNET, 205, 0.5, 0.5),
    ],
)
def test_dropout_is_the_authors_unless_given(
    name: str, num_classes: int, given: float, expected: float
) -> None:
    assert meta(name, num_classes, dropout=given).dropout.p == expected


@pytest.mark.parametrize("name", PAPER_NETWORKS)
@pytest.mark.parametrize("width", [0.125, 0.5, 2])
def test_width_scales_every_number_of_channels(name: str, width: float) -> None:
    full, other = meta(name), meta(name, backbone_args={"width": width})
    for (path, one), (_, two) in zip(full.named_modules(), other.named_modules(), strict=True):
        if isinstance(one, nn.Conv2d):
            assert isinstance(two, nn.Conv2d)
            assert two.out_channels == width * one.out_channels, path
            assert two.groups == one.groups
    assert other.head.in_features == width * full.head.in_features


@pytest.mark.parametrize("width", [0, -1, 0.1, float("nan"), float("inf"), "wide", True])
def test_other_widths_are_refused(width: object) -> None:
    with pytest.raises(CamtrainValueError, match=r"width must be a multiple of 0\.125 above 0"):
        meta(VGG, backbone_args={"width": width})


RECIPES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in PAPER_NETWORKS),
    (VGG, {"stride": 8}),
    (GOOGLENET, {"stride": 4, "pool": "lse"}),
    (GOOGLENET, {"cut": "inception_4b", "neck": (8,)}),
    (ALEXNET, {"stride": 8, "in_chans": 1, "dropout": 0.25}),
    (ALEXNET, {"neck": ()}),
]


@pytest.mark.parametrize(("name", "arguments"), RECIPES)
def test_a_recipe_builds_the_same_network_again(name: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = small(name, **arguments).eval()
    again = from_recipe(json.loads(json.dumps(net.recipe))).eval()
    again.load_state_dict(net.state_dict())
    assert again.recipe == net.recipe
    assert again.preprocessing == net.preprocessing
    assert again.dropout.p == net.dropout.p
    images = 50 * torch.randn(2, arguments.get("in_chans", 3), 96, 128)
    with torch.inference_mode():
        found, expected = again.class_maps(images), net.class_maps(images)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", PAPER_NETWORKS)
@torch.inference_mode()
def test_at_half_the_stride_every_other_pixel_is_that_of_the_whole_stride(name: str) -> None:
    """Also behind the CAM convolutions: they are dilated with the trunk."""
    torch.manual_seed(0)
    usual, finer = small(name).eval(), small(name, stride=8).eval()
    finer.load_state_dict(usual.state_dict())
    assert (stride_of(usual.backbone, 3), stride_of(finer.backbone, 3)) == (16, 8)
    images = 50 * torch.randn(2, 3, 128, 192)
    expected = usual.features(images)
    found = finer.features(images)[:, :, ::2, ::2]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found[:, :, : expected.shape[2], : expected.shape[3]], expected)


@pytest.mark.parametrize(
    ("name", "cut", "shape"),
    [
        (VGG, "block4.conv2", (64, 12, 16)),
        (VGG, "block3", (32, 24, 32)),
        (GOOGLENET, "inception_4b", (64, 6, 8)),
        (GOOGLENET, "inception_3a.3x3", (16, 12, 16)),
        (ALEXNET, "relu4", (48, 5, 7)),
    ],
)
@torch.inference_mode()
def test_a_network_is_cut_where_asked(name: str, cut: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    whole = small(name).eval()
    torch.manual_seed(0)
    net = small(name, cut=cut, neck=()).eval()
    met: list[Tensor] = []
    layer = whole.backbone.get_submodule(f"trunk.{cut}")
    layer.register_forward_hook(lambda *call: met.append(call[2].clone()))
    images = 50 * torch.randn(2, 3, 96, 128)
    whole(images)
    assert net.features(images).shape == (2, *shape)
    torch.testing.assert_close(net.features(images), met[0])


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_channels_are_no_bgr(in_chans: int) -> None:
    net = small(VGG, in_chans=in_chans)
    assert net.preprocessing is not None
    assert net.preprocessing.channel_order == "rgb"
    assert len(net.preprocessing.mean) == in_chans
    assert net.preprocessing.mean[0] == pytest.approx((104 + 117 + 123) / 3 / 255)
    assert net.preprocessing.std == (1 / 255,) * in_chans
    assert net(torch.randn(1, in_chans, 64, 80)).shape == (1, 5)
