"""The catalogue: every network by name, looked at once."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from camtrain.cli import main
from camtrain.errors import CamtrainValueError
from camtrain.model import catalogue as room
from camtrain.model.backbones import every_name
from camtrain.model.catalogue import Entry, cache_file, catalogue, describe, matching, table

KNOWN = [
    Entry("torchvision/resnet18", "layer4.1.relu_1", 512, 32, (7, 7), (224, 224), False, True),
    Entry("torchvision/vgg16", "features.29", 512, 16, (14, 14), (224, 224), False, False),
    Entry("torchvision/vit_b_32", "encoder.ln", 768, 32, (7, 7), (224, 224), True, False),
    Entry("timm/convnext_atto", "norm_pre", 320, 32, (7, 7), (224, 224), False, True),
    Entry("timm/test_vit", "norm", 64, 16, (10, 10), (160, 160), False, False),
    Entry("timm/test_vit3", "norm", 96, 16, (10, 10), (160, 160), True, False),
    Entry("timm/efficientnet_b1", "bn2", 1280, 32, (8, 8), (240, 240), False, True),
    Entry("torchvision/alexnet", "features.11", 256, 16, (13, 13), (224, 224), False, False),
    Entry("camtrain/digits", "relu4", 128, 4, (16, 16), (64, 64), False, False),
]


@pytest.mark.parametrize("expected", KNOWN, ids=lambda entry: entry.name)
def test_what_a_network_becomes(expected: Entry) -> None:
    found = describe(expected.name)
    assert found.parameters > 10_000
    assert found == Entry(**{**vars(expected), "parameters": found.parameters})


def test_what_does_not_convert_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("needs a licence\nand more")

    monkeypatch.setattr(room, "build_classifier", fails)
    entry = describe("timm/resnet18")
    assert entry.reason == "RuntimeError: needs a licence"
    lines = table([entry, KNOWN[0]]).splitlines()
    assert lines[-2:] == [
        "timm/resnet18: RuntimeError: needs a licence",
        "1 of 2 convert, 1 of them are cam-ready.",
    ]


def test_a_network_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["models", "timm/test_res*"]) == 0
    first = capsys.readouterr().out
    assert "timm/test_resnet" in first
    assert cache_file().parent == tmp_path / "camtrain"
    monkeypatch.setattr(room, "describe", lambda name: pytest.fail(name))
    assert main(["models", "timm/test_resnet"]) == 0
    found = capsys.readouterr().out
    assert "1 of 1 convert" in found
    assert found.splitlines()[1].split() == (
        ["timm/test_resnet", "layer4", "96", "32", "5x5", "160x160", "yes", "0.4", "M"]
    )


def test_an_interrupted_walk_keeps_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str) -> Entry:
        if name == "b":
            raise KeyboardInterrupt
        return Entry(name)

    monkeypatch.setattr(room, "describe", interrupted)
    cache = tmp_path / "cache.json"
    with pytest.raises(KeyboardInterrupt):
        catalogue(["a", "b"], cache)
    assert catalogue(["a"], cache) == [Entry("a")]
    assert os.listdir(tmp_path) == ["cache.json"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("net18", ["timm/resnet18", "torchvision/resnet18"]),
        ("timm/*18", ["timm/resnet18"]),
        ("res*", ["timm/resnet18", "torchvision/resnet18"]),
        ("*", ["timm/resnet18", "torchvision/resnet18", "torchvision/vgg16"]),
    ],
)
def test_a_filter_is_a_part_or_a_pattern(pattern: str, found: list[str]) -> None:
    names = ["timm/resnet18", "torchvision/resnet18", "torchvision/vgg16"]
    assert matching(names, pattern) == found


def test_a_filter_that_fits_nothing_is_refused() -> None:
    with pytest.raises(CamtrainValueError, match=r"FILTER must be part .* got 'resnet19', which"):
        matching(["timm/resnet18"], "resnet19")


def test_all_of_both_libraries_are_listed() -> None:
    names = every_name()
    assert len(names) == len(set(names)) > 1400


@pytest.mark.nightly(share=24)
@pytest.mark.parametrize("name", every_name())
def test_a_network_of_either_library_converts(name: str, entry_of: Callable[[str], Entry]) -> None:
    """By name, on the meta device."""
    entry = entry_of(name)
    assert entry.reason is None
    assert min(entry.map_hw) > 1
