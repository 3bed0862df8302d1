"""The catalogue: every network by name, looked at once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from camtrain.cli import main
from camtrain.errors import CamtrainValueError
from camtrain.model import catalogue as room
from camtrain.model import describe as looking
from camtrain.model.backbones import every_name
from camtrain.model.catalogue import Entry, cache_file, catalogue, matching, table
from camtrain.model.describe import describe

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
    assert room._read(Path("none")).entries.get(found.name, found) == found  # what is shipped
    assert found == Entry(**{**vars(expected), "parameters": found.parameters})


def test_what_does_not_convert_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("needs a licence\nand more")

    monkeypatch.setattr(looking, "build_classifier", fails)
    entry = describe("timm/resnet18")
    assert entry.reason == "RuntimeError: needs a licence"
    lines = list(table([entry, KNOWN[0]]))
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
    monkeypatch.setattr(looking, "describe", lambda name: pytest.fail(name))
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

    monkeypatch.setattr(looking, "describe", interrupted)
    cache = tmp_path / "cache.json"
    with pytest.raises(KeyboardInterrupt):
        list(catalogue(["a", "b"], cache))
    assert list(catalogue(["a"], cache)) == [Entry("a")]
    assert os.listdir(tmp_path) == ["cache.json"]


WALK = """
import sys
from camtrain.model import catalogue
def listed(names, pattern):
    print("then", "torch" in sys.modules)
    raise SystemExit
catalogue.announce = lambda work: listed([], work)
catalogue.main(["models", *sys.argv[1:]])
"""


def lines_before_torch(tmp_path: Path, *args: str) -> list[str]:
    """What a fresh process prints before it imports torch, and whether it has by then."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", WALK, *args]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return result.stdout.splitlines()


def test_what_is_known_is_listed_before_torch_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cold cache these are the networks of torchvision; with a warm one all."""
    lines = lines_before_torch(tmp_path, "resnet*")
    assert lines[-1] == "then False"
    if version("torchvision") == json.loads(room.SHIPPED.read_text())["torchvision"]:
        assert lines[0].split()[:3] == ["name", "cut", "channels"]
        assert lines[1].split()[:3] == ["torchvision/resnet101", "layer4.2.relu_2", "2048"]
        assert all("torchvision/resnet" in line for line in lines[1:-1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["models", "test_vit3"]) == 0
    warm = lines_before_torch(tmp_path, "test_vit3")
    assert [line.split()[0] for line in warm[1:-1]] == ["timm/test_vit3"]
    assert warm[-1] == "1 of 1 convert, 0 of them are cam-ready."


def test_a_filter_looks_only_at_its_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    looked_at: list[str] = []
    monkeypatch.setattr(looking, "describe", lambda name: looked_at.append(name) or Entry(name))
    assert main(["models", "timm/resnet18*"]) == 0
    assert looked_at == ["timm/resnet18", "timm/resnet18d"]
    captured = capsys.readouterr()
    assert "2 of 2 convert" in captured.out
    assert "Looking at 2 networks, once" in captured.err


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
    shipped = room._read(Path("none")).entries
    assert shipped.get(name, entry) == entry
    assert entry.reason is None
    assert min(entry.map_hw) > 1
