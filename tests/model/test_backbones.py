"""Names, builders, and what the libraries do to pictures."""

import pytest
import torch
from torch import nn

from camtrain.errors import CamtrainValueError
from camtrain.model.backbones import (
    backbone_args_for,
    build_classifier,
    full_name,
    usual_preprocessing,
)
from camtrain.model.create import create_model
from camtrain.preprocessing import Preprocessing


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "torchvision/resnet18"),  # both libraries have it
        ("torchvision/resnet18", "torchvision/resnet18"),
        ("timm/resnet18", "timm/resnet18"),
        ("convnext_atto", "timm/convnext_atto"),
        ("timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("timm/adv_inception_v3", "timm/inception_v3.tf_adv_in1k"),  # given up
        ("digits", "camtrain/digits"),
        ("camtrain/digits", "camtrain/digits"),
        ("vgg16-cam", "camtrain/vgg16-cam"),
        ("camtrain/googlenet-cam", "camtrain/googlenet-cam"),
    ],
)
def test_names_are_completed(name: str, expected: str) -> None:
    assert full_name(name) == expected


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vgg99", "vgg19"),
        ("vgg16cam", "vgg16-cam"),
        ("camtrain/alexnet-cam", "camtrain/alexnet-plus-cam"),
        ("resnet-18", "resnet18"),
        ("digit", "digits"),
        ("torchvision/resnet19", "torchvision/resnet18"),
        ("timm/vgg99", "timm/vgg19"),
        ("torchvison/vgg16", "torchvision/vgg16"),
        ("torchvision/convnext_atto", "torchvision/convnext"),
    ],
)
def test_unknown_names_get_the_nearest_ones_each_once(name: str, near: str) -> None:
    with pytest.raises(CamtrainValueError) as error:
        full_name(name)
    message = str(error.value)
    assert f"got {name!r}" in message
    listed = message.rpartition("the nearest are ")[2].rstrip(".").split(", ")
    assert any(one.startswith(near) for one in listed)
    assert len(set(listed)) == len(listed)
    assert all(full_name(one).endswith(one) for one in listed)


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "timm/test_resnet"])
def test_the_first_layer_takes_other_channels(name: str) -> None:
    network = build_classifier(name, num_classes=5, in_chans=4, backbone_args={})
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 4
    assert network(torch.randn(2, 4, 64, 96)).shape == (2, 5)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/test_resnet", "camtrain/digits"])
def test_unknown_arguments_of_the_builder_are_named(name: str) -> None:
    with pytest.raises(CamtrainValueError) as error:
        create_model(name, 5, weights=None, backbone_args={"wdith": 2})
    assert f"backbone_args do not fit {name}: " in str(error.value)
    assert "'wdith'" in str(error.value)


@pytest.mark.parametrize(
    ("name", "in_chans", "expected"),
    [
        (
            "torchvision/resnet18",
            3,
            Preprocessing(size=(224, 224), resize_mode="crop", crop_pct=224 / 256),
        ),
        (
            "timm/resnet18",
            3,
            Preprocessing(
                size=(224, 224), interpolation="bicubic", resize_mode="crop", crop_pct=0.95
            ),
        ),
        ("camtrain/digits", 3, Preprocessing(size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)),
        ("camtrain/digits", 1, Preprocessing(size=(64, 64), mean=(0.5,), std=(0.5,))),
        (
            "torchvision/resnet18",
            1,
            Preprocessing(
                mean=((0.485 + 0.456 + 0.406) / 3,),
                std=((0.229 + 0.224 + 0.225) / 3,),
                resize_mode="crop",
                crop_pct=224 / 256,
            ),
        ),
        (
            "torchvision/googlenet",
            2,
            Preprocessing(
                mean=(0.5,) * 2,
                std=(0.5,) * 2,
                resize_mode="crop",
                crop_pct=224 / 256,
            ),
        ),
        (
            "timm/volo_d4_448",
            3,
            Preprocessing(size=(448, 448), interpolation="bicubic", resize_mode="crop"),
        ),
        ("torchvision/vit_h_14", 3, Preprocessing(interpolation="bicubic", resize_mode="crop")),
    ],
)
def test_pictures_are_prepared_as_the_publisher_says(
    name: str, in_chans: int, expected: Preprocessing
) -> None:
    assert usual_preprocessing(name, in_chans, {}) == expected


@pytest.mark.parametrize(
    ("name", "weights", "size"),
    [
        ("torchvision/vit_h_14", "DEFAULT", 518),
        ("torchvision/vit_b_16", "DEFAULT", 224),
        ("torchvision/vit_b_16", "IMAGENET1K_SWAG_E2E_V1", 384),
    ],
)
def test_a_vit_is_built_for_the_pictures_of_its_weights(name: str, weights: str, size: int) -> None:
    arguments = backbone_args_for(name, weights, 3, {})
    assert arguments == {"image_size": size}
    assert usual_preprocessing(name, 3, arguments).size == (size, size)
    assert backbone_args_for(name, weights, 3, {"image_size": 64}) == {"image_size": 64}
    assert backbone_args_for(name, None, 3, {}) == {}


@pytest.mark.parametrize("argument", ["pretrained", "checkpoint_path", "weights"])
def test_backbone_args_cannot_load_weights(argument: str) -> None:
    with pytest.raises(CamtrainValueError, match=f"must not load weights, got {argument}; give"):
        build_classifier(
            "timm/resnet18", num_classes=None, in_chans=3, backbone_args={argument: "evil.pth"}
        )
