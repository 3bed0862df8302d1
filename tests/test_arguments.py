"""What the verbs share: errors of one line, the words for kinds of values, what takes long."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from camtrain import arguments


@pytest.mark.parametrize(
    ("annotation", "metavar", "sentence"),
    [
        (bool, "{true,false}", "true or false"),
        (str | Path | None, "PATH", "a path, or null"),
        (int | tuple[int, int], "N|[N, N]", "an integer, or a list of 2 integers"),
        (Literal["a"] | Sequence[float], "{a}|[X, ...]", "one of a, or a list of numbers such as "),
        (dict[str, object] | None, "{...}", 'a mapping such as {"name": 1}, or null'),
        (None, "VALUE", ""),
    ],
)
def test_a_kind_of_value_has_a_short_name_and_a_sentence(
    annotation: object, metavar: str, sentence: str
) -> None:
    assert arguments.metavar_of(annotation) == metavar
    assert arguments.expected_value(annotation).startswith(sentence)


def test_an_error_of_a_parser_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = arguments.VerbParser(prog="camtrain sing")
    parser.add_argument("--tempo", type=int, required=True)
    for args, told in (([], "--tempo"), (["--tempo", "fast"], "'fast'"), (["--x"], "--tempo")):
        with pytest.raises(SystemExit) as exit_:
            parser.parse_args(args)
        assert exit_.value.code == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("camtrain: error: ")
        assert told in line
        assert line.endswith("; camtrain sing --help lists the options.")


def test_only_long_work_is_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arguments, "_PATIENCE", 0.01)
    with arguments.announce("Thinking"):
        time.sleep(0.2)
    assert capsys.readouterr().err == "Thinking ...\n"
    monkeypatch.setattr(arguments, "_PATIENCE", 60)
    with arguments.announce("Thinking"):
        pass
    assert capsys.readouterr().err == ""


def test_a_paragraph_is_wrapped_between_words_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = "a line of some words and runs/a-name/that-stays-whole.txt"
    arguments.print_paragraph(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    arguments.print_paragraph(text)
    printed = capsys.readouterr().out.splitlines()
    assert " ".join(printed) == text
    assert "runs/a-name/that-stays-whole.txt" in printed
    assert len(printed[0]) <= 20
