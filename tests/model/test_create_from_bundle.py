"""Going on from a bundle: trunk, neck and head where they fit, a sentence where they do not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

import camtrain
from camtrain.errors import CamtrainError
from camtrain.inference.bundle import write_bundle
from camtrain.model.camnet import CAMNet

NORMALIZATION = camtrain.Preprocessing(size=(40, 56), mean=(0.1,), std=(0.2,))
IMAGES = torch.randn(2, 1, 40, 56, generator=torch.Generator().manual_seed(0))


def bundle_of(path: Path, num_classes: int = 3, **settings: Any) -> tuple[Path, CAMNet]:
    """A bundle of a small network with statistics of its own."""
    settings = {"in_chans": 1, "backbone_args": {"width": 2}, "neck": (), **settings}
    net = camtrain.create_model("camtrain/digits", num_classes, **settings)
    with torch.no_grad():
        net(IMAGES)
    net.name_classes([f"old {number}" for number in range(num_classes)])
    net.preprocessing = NORMALIZATION
    write_bundle(path / "model.safetensors", net.eval())
    return path / "model.safetensors", net


def again(path: Path, num_classes: int | None, **settings: Any) -> CAMNet:
    settings = {"in_chans": 1, "neck": (), **settings}
    return camtrain.create_model("camtrain/digits", num_classes, weights=path, **settings).eval()


def is_same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()
    )


def test_other_classes_keep_the_trunk_and_get_a_new_head(tmp_path: Path) -> None:
    path, old = bundle_of(tmp_path)
    new = again(path, 5)
    assert is_same(new.backbone, old.backbone)
    assert new.head.weight.shape == (5, 8)
    assert new.class_names is None
    assert new.preprocessing == NORMALIZATION


@pytest.mark.parametrize("num_classes", [3, None])
def test_without_a_neck_as_many_classes_keep_the_head(
    tmp_path: Path, num_classes: int | None
) -> None:
    path, old = bundle_of(tmp_path)
    new = again(path, num_classes)
    assert torch.equal(new(IMAGES), old(IMAGES))
    assert new.class_names == (old.class_names if num_classes is None else None)


@pytest.mark.parametrize(("num_classes", "keeps_head"), [(3, False), (None, True), (4, False)])
def test_the_same_neck_goes_on_and_the_head_with_its_own_classes(
    tmp_path: Path, num_classes: int | None, keeps_head: bool
) -> None:
    path, old = bundle_of(tmp_path, neck=(4,), neck_norm="batch")
    new = again(path, num_classes, neck=(4,), neck_norm="batch")
    assert is_same(new.backbone, old.backbone)
    assert is_same(new.neck, old.neck)
    assert is_same(new.head, old.head) == keeps_head


def test_another_neck_is_new(tmp_path: Path) -> None:
    path, old = bundle_of(tmp_path, neck=(4,))
    new = again(path, None, neck=(6,))
    assert is_same(new.backbone, old.backbone)
    assert new.head.weight.shape == (3, 6)


def test_what_is_not_said_is_as_in_the_bundle(tmp_path: Path) -> None:
    path, old = bundle_of(tmp_path, stride=2)
    assert again(path, None).recipe == old.recipe
    assert torch.equal(again(path, None)(IMAGES), old(IMAGES))
    assert again(path, None, stride=4)(IMAGES).shape == (2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"backbone_args": {"width": 3}},
            r"another backbone: backbone_args was \{'width': 2\}, got \{'width': 3\}\. Give "
            r"--model\.backbone_args '\{\"width\": 2\}'",
        ),
        ({"in_chans": 3}, r"in_chans was 1, got 3\. Give --model\.in_chans '?1"),
    ],
)
def test_another_trunk_is_refused_with_the_setting(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    path, _ = bundle_of(tmp_path)
    with pytest.raises(CamtrainError, match=message):
        again(path, 5, **settings)


def test_another_backbone_is_refused_by_name(tmp_path: Path) -> None:
    path, _ = bundle_of(tmp_path)
    with pytest.raises(CamtrainError, match=r"Give --model\.backbone camtrain/digits"):
        camtrain.create_model("torchvision/resnet18", 5, weights=path, in_chans=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 5}, "format version 5"),
        ({"architecture": {}}, "unreadable camtrain metadata"),
        ({"preprocessing": None}, "unreadable camtrain metadata"),
    ],
)
def test_a_damaged_or_newer_bundle_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path, old = bundle_of(tmp_path)
    metadata = {
        "format_version": 1,
        "architecture": old.recipe,
        "class_names": None,
        "preprocessing": NORMALIZATION.to_dict(),
        **change,
    }
    save_file(load_file(path), path, {"camtrain": json.dumps(metadata)})
    with pytest.raises(CamtrainError, match=message):
        again(path, 5)


def test_a_cam_ready_network_goes_on_with_either_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = torchvision.models.resnet18(num_classes=6)
    torch.save(classifier.state_dict(), tmp_path / "resnet18.pth")
    settings: dict[str, Any] = {"neck": (), "stride": 16}
    weights = tmp_path / "resnet18.pth"
    old = camtrain.create_model("torchvision/resnet18", weights=weights, **settings).eval()
    assert old.recipe is not None
    assert old.recipe["own_head"]
    write_bundle(tmp_path / "a.safetensors", old)
    images = torch.randn(1, 3, 64, 96)
    same = camtrain.create_model("resnet18", weights=tmp_path / "a.safetensors", neck=()).eval()
    assert torch.equal(same(images), old(images))
    other = camtrain.create_model("resnet18", 4, weights=tmp_path / "a.safetensors", neck=())
    assert is_same(other.backbone, old.backbone)
    assert other.head.weight.shape == (4, 512)
    write_bundle(tmp_path / "b.safetensors", other)
    third = camtrain.create_model("resnet18", 4, weights=tmp_path / "b.safetensors", neck=())
    assert is_same(third.head, other.head)


def test_a_network_of_the_paper_goes_on_with_its_neck(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"backbone_args": {"width": 0.125}, "stride": 8}
    old = camtrain.create_model("camtrain/vgg16-cam", 3, **settings)
    write_bundle(tmp_path / "a.safetensors", old)
    new = camtrain.create_model("camtrain/vgg16-cam", 4, weights=tmp_path / "a.safetensors")
    assert is_same(new.neck, old.neck)
    assert new.neck[0].dilation == old.neck[0].dilation == (2, 2)
