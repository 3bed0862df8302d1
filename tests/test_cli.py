"""The front door: it lists the verbs, hands over, and turns errors into one line."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

import camtrain
from camtrain import cli
from camtrain.errors import (
    CamtrainError,
    CamtrainFileNotFoundError,
    CamtrainTypeError,
    CamtrainValueError,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make_verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., int | None]], None]:
    """Make the verb ``sing``, which calls a function."""

    def make(function: Callable[..., int | None]) -> None:
        module = ModuleType("a_room_that_sings")
        monkeypatch.setattr(module, "main", function, raising=False)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.VERBS, "sing", cli.Verb(module.__name__, "sing a song"))

    return make


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_the_verbs_and_examples_are_listed(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(args) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    for name, verb in cli.VERBS.items():
        assert any(line.split()[:1] == [name] and line.endswith(verb.text) for line in lines)
    examples = [line.split() for line in lines[lines.index("Examples:") + 1 :]]
    examples = [words for words in examples if words[:1] == ["camtrain"] and words[1] != "VERB"]
    assert len(examples) >= 3
    for words in examples:
        assert words[1] in cli.VERBS
    for config in [word for words in examples for word in words if word.endswith(".yaml")]:
        assert (ROOT / config).is_file()
    assert max(map(len, lines)) <= 100


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"camtrain {camtrain.__version__}\n"


@pytest.mark.parametrize(
    ("verb", "hint"),
    [
        ("fitt", "; did you mean fit?"),
        ("Validate", "; did you mean validate?"),
        ("tset", "; did you mean test?"),
        ("zzz", ""),
        ("--config", ""),
    ],
)
def test_an_unknown_verb_is_refused_with_the_nearest(
    verb: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([verb, "--name", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    names = ", ".join(cli.VERBS)
    assert err == f"camtrain: error: The verb must be one of {names}, got '{verb}'{hint}\n"


@pytest.mark.parametrize("args", [["sing"], ["sing", "--loud", "true"], ["sing", "--help"]])
def test_a_verb_gets_its_arguments_as_they_are(
    args: list[str],
    make_verb: Callable[[Callable[..., None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[Sequence[str]] = []
    make_verb(heard.append)
    assert cli.main(args) == 0
    monkeypatch.setattr(sys, "argv", ["camtrain", *args])
    assert cli.main() == 0
    assert heard == [args, args]


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_a_verb_says_its_exit_status(
    returned: int | None, status: int, make_verb: Callable[[Callable[..., int | None]], None]
) -> None:
    make_verb(lambda args: returned)
    assert cli.main(["sing"]) == status


@pytest.mark.parametrize(
    "kind", [CamtrainError, CamtrainValueError, CamtrainTypeError, CamtrainFileNotFoundError]
)
def test_our_own_errors_become_one_line(
    kind: type[CamtrainError],
    make_verb: Callable[[Callable[..., None]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def sing(args: Sequence[str]) -> None:
        raise kind("There is no song; give --song.")

    make_verb(sing)
    assert cli.main(["sing"]) == 2
    assert capsys.readouterr() == ("", "camtrain: error: There is no song; give --song.\n")


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, RuntimeError, SystemExit])
def test_other_errors_are_left_alone(
    kind: type[BaseException], make_verb: Callable[[Callable[..., None]], None]
) -> None:
    def sing(args: Sequence[str]) -> None:
        raise kind("out of tune")

    make_verb(sing)
    with pytest.raises(kind, match="out of tune"):
        cli.main(["sing"])


def test_an_interrupt_ends_with_130(make_verb: Callable[[Callable[..., None]], None]) -> None:
    def sing(args: Sequence[str]) -> None:
        raise KeyboardInterrupt

    make_verb(sing)
    assert cli.main(["sing"]) == 130


def test_every_verb_has_its_module() -> None:
    for verb in cli.VERBS.values():
        path = ROOT.joinpath(*verb.module.split(".")).with_suffix(".py")
        assert "\ndef main(args: Sequence[str])" in path.read_text(), path


def test_train_py_is_the_same_program() -> None:
    for args, status in (([], 0), (["--version"], 0), (["nothing"], 2)):
        program, module = (
            subprocess.run(
                [sys.executable, *call, *args],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            for call in (["train.py"], ["-c", "import sys, camtrain.cli as c; sys.exit(c.main())"])
        )
        assert program.returncode == module.returncode == status
        assert (program.stdout, program.stderr) == (module.stdout, module.stderr)


PRINTING = r"""
import sys
from types import ModuleType
from camtrain import cli
module = sys.modules["sing"] = ModuleType("sing")
cli.VERBS["sing"] = cli.Verb("sing", "sing a song")
def main(args):
    for line in range(20_000):
        print("a bullet \u2022 and a name \udcff", line)
    with open(args[1], "w") as file:
        file.write("sung")
module.main = main
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("shell", "status"),
    [
        ("{} | head -1", 0),
        ("{} 2>&1 | head -1", 0),
        ("PYTHONUNBUFFERED=1 {} | head -1", 0),
        ("PYTHONIOENCODING=ascii {} > /dev/null", 0),
        ("PYTHONIOENCODING=latin-1 {} > /dev/null", 0),
        ("{} >&- 2>&-", 0),
        ("{} > /dev/full", 2),
    ],
)
def test_whatever_becomes_of_what_is_printed_the_work_is_done(
    shell: str, status: int, tmp_path: Path
) -> None:
    (tmp_path / "sing.py").write_text(PRINTING)
    verb = f"'{sys.executable}' '{tmp_path}/sing.py' sing '{tmp_path}/song'"
    command = ["bash", "-o", "pipefail", "-c", shell.format(verb)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (tmp_path / "song").read_text() == "sung"
    assert done.returncode == status
    lost = "camtrain: error: What was printed is lost (No space left on device); print elsewhere."
    assert done.stderr.splitlines() == [lost] * (status == 2)


def test_what_the_system_refuses_is_one_sentence(
    make_verb: Callable[[Callable[..., int | None]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_verb(lambda _: tmp_path.read_bytes())
    assert cli.main(["sing"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"camtrain: error: The system refuses {tmp_path} (Is a directory);")
