"""The help of every verb: what it does, an example that is understood, grouped options."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from camtrain.cli import VERBS, main
from camtrain.errors import CamtrainError
from camtrain.model.weights import _explaining_failed_download, find_weights, load_weights
from camtrain.training.cli.help import PAGES, OneLineParser, spelled_as_options
from camtrain.training.module import CAMModule


def help_of(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_it_says_what_the_verb_does_with_an_example(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(verb, capsys, monkeypatch)
    lines = text.splitlines()
    assert lines[0].startswith(f"usage: camtrain {verb} ")
    assert max(map(len, lines)) <= 100
    assert f"Example: camtrain {verb} " in text
    for noise in ("``", ":paramref:", "(type:", "Union[", "known subclasses", "None"):
        assert noise not in text
    assert "VALUE" not in text.removeprefix(lines[0])  # every value says of which type it is
    said_nothing = [line for line in lines if re.fullmatch(r"  --[\w.]+( \S+)*", line)]
    for line in said_nothing:  # then it follows in the next line
        assert lines[lines.index(line) + 1].startswith("     ")


@pytest.mark.parametrize("verb", PAGES)
def test_the_text_of_an_option_can_be_understood_alone(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(help_of(verb, capsys, monkeypatch).partition(":\n")[2].split())
    texts = re.split(r" (?=--(?:\w+\.)?\w+ )", text)
    assert len(texts) > 20
    for option in texts:
        words = re.sub(r"^--[\w.]+ \S+|\(default .*", "", option).split()
        assert len(words) >= 3, option
        assert words[0] not in ("Of", "Their", "Likewise.", "After", "For"), option


def test_every_option_of_ours_is_in_one_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parsers: list[OneLineParser] = []
    original = OneLineParser.format_help
    monkeypatch.setattr(
        OneLineParser, "format_help", lambda self: parsers.append(self) or original(self)
    )
    help_of("fit", capsys, monkeypatch)
    ours = [
        action.dest
        for action in parsers[0]._actions
        if action.option_strings
        and not action.dest.startswith("trainer")
        and not action.dest.endswith(".help")  # what jsonargparse adds to a class
        and action.dest
        not in ("help", "model", "data", "cams", "wandb", "weights_only", "save_maps", "backbone")
        and action.dest != "model.num_classes"  # of the data
        and not action.dest.endswith(".help")
    ]
    listed = [name for names in PAGES["fit"].groups.values() for name in names]
    assert sorted(name for name in listed if not name.startswith("trainer.")) == sorted(ours)
    assert len(set(listed)) == len(listed)


def test_defaults_are_those_of_the_signatures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(help_of("fit", capsys, monkeypatch).split())
    assert "--model.lr X Learning rate after the warm-up. (default 0.001)" in text
    assert CAMModule.__init__.__kwdefaults__["lr"] == 0.001
    assert "--data.exif {true,false} Turn pictures upright" in text
    assert "(default true)" in text


def test_the_example_of_fit_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(PAGES["fit"].example)
    with pytest.raises(SystemExit) as exit_:
        main([*words[1:], "--print_config"])
    assert exit_.value.code == 0
    assert "backbone: torchvision/resnet50" in capsys.readouterr().out


def failed_download(name: str) -> None:
    with _explaining_failed_download(name, "https://host/w.pth and"):
        raise OSError("no network")


def text_for_weights(folder: Path) -> None:
    (folder / "w.pth").write_text("no tensors")
    find_weights("torchvision/resnet18", folder / "w.pth")


WEIGHT_FAILURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown name": (
        lambda _: find_weights("torchvision/resnet18", "V9"),
        "--model.weights of torchvision/resnet18 must be one of DEFAULT",
    ),
    "no such file": (
        lambda _: find_weights("camtrain/digits", "none.pth"),
        "--model.weights must be a weight name or an existing file",
    ),
    "nothing published": (
        lambda _: find_weights("camtrain/digits", "V1"),
        "give --model.weights null for random ones, or --model.weights FILE, got 'V1'",
    ),
    "failed download": (
        lambda _: failed_download("timm/resnet18"),
        "fetch https://host/w.pth and give --model.weights FILE",
    ),
    "no weights": (text_for_weights, "expected the state_dict of a network in --model.weights"),
    "another network": (
        lambda _: load_weights(nn.Linear(1, 1), {"a": torch.zeros(1)}, source="w.pth"),
        "give --model.weights FILE of the same network",
    ),
}


@pytest.mark.parametrize("name", WEIGHT_FAILURES)
def test_failures_of_weights_name_the_option(name: str, tmp_path: Path) -> None:
    fail, sentence = WEIGHT_FAILURES[name]
    with pytest.raises(CamtrainError) as error:
        fail(tmp_path)
    message = spelled_as_options(str(error.value))
    assert sentence in message
    assert "weights=" not in message
