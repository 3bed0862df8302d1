"""The key of a feature cache: it changes with everything that changes a feature, and only then."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from camtrain import CAMNet
from camtrain.data import ClutteredDigits, ImageFolder
from camtrain.training.cache.store import (
    backbone_parts,
    hash_of_pictures,
    hash_of_tensors,
    key_of,
    settings_in_key,
    versions,
)
from tests.training.conftest import small_module


def test_a_key_is_a_folder_name_that_depends_on_values_alone() -> None:
    key = key_of({"a": [1, None], "b": "x"})
    assert key == key_of({"b": "x", "a": [1, None]})
    assert len(key) == 20
    assert key.isalnum()
    assert key != key_of({"a": [1, 0], "b": "x"})


def test_every_parameter_and_buffer_counts() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    before = hash_of_tensors(module)
    assert before == hash_of_tensors(module)
    for name, tensor in module.state_dict().items():
        kept = tensor.clone()
        tensor += 1
        assert hash_of_tensors(module) != before, name
        tensor.copy_(kept)
    assert hash_of_tensors(module) == before


def test_the_layout_of_a_tensor_does_not_count() -> None:
    module = nn.Conv2d(2, 3, 3)
    before = hash_of_tensors(module)
    assert hash_of_tensors(module.to(memory_format=torch.channels_last)) == before


def test_head_and_neck_do_not_count_but_the_architecture_does() -> None:
    def parts(**settings: object) -> dict[str, object]:
        torch.manual_seed(0)
        net: CAMNet = small_module(weights=None, **settings).net
        return backbone_parts(net)

    plain = parts()
    for settings in ({"neck": (4,)}, {"num_classes": 3}, {"pool": "lse"}, {"dropout": 0.5}):
        assert parts(**settings) == plain, settings
    assert parts(stride=4) != plain  # the same tensors, applied at other places


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def grow(path: Path) -> None:
    found = path.stat()
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def rename(path: Path) -> None:
    path.rename(path.with_name("renamed.png"))


@pytest.mark.filterwarnings("ignore:.* boxes are of no picture")
@pytest.mark.parametrize("change", [touch, grow, rename], ids=lambda change: change.__name__)
def test_a_changed_file_changes_the_pictures(
    change: Callable[[Path], None], photographs: Path
) -> None:
    before = hash_of_pictures(ImageFolder(photographs, "val"))
    assert before == hash_of_pictures(ImageFolder(photographs, "val"))
    change(photographs / "val" / "red" / "2.png")
    assert before != hash_of_pictures(ImageFolder(photographs, "val"))


def test_drawn_pictures_stand_for_their_pixels() -> None:
    def drawn(seed: int, length: int) -> str:
        return hash_of_pictures(ClutteredDigits("val", length=length, seed=seed))

    assert drawn(0, 5) == drawn(0, 5)
    assert len({drawn(0, 5), drawn(1, 5), drawn(0, 6)}) == 3


def test_a_setting_that_nobody_has_thought_of_changes_the_key() -> None:
    known = {"batch_size": 4, "workers": 0, "seed": 1, "augment": "flip", "cache_dir": None}
    assert settings_in_key(known) == {}
    assert settings_in_key({**known, "gamma": 2.2}) == {"gamma": "2.2"}


def test_libraries_count() -> None:
    assert {"camtrain", "torch", "torchvision", "pillow"} <= versions().keys()
