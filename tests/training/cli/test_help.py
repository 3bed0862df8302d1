"""The help of every verb: what it does, an example that is understood, grouped options."""

import re
import shlex

import pytest

from camtrain.cli import VERBS, main
from camtrain.training.cli.help import PAGES, OneLineParser
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
        and action.dest not in ("help", "model", "data", "cams", "weights_only", "save_maps")
        and action.dest != "model.num_classes"  # of the data
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
