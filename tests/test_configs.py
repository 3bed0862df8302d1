"""Every shipped config is understood by the real command line."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from camtrain.cli import main

ROOT = Path(__file__).parents[1]
SWEEP = ROOT / "configs" / "sweep.yaml"
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path != SWEEP)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_parsed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", str(config), "--print_config"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    for line in config.read_text().splitlines():
        key = line.split("#")[0].strip().partition(":")[0]
        assert not key or f"{key}:" in printed


def commands_of(sweep: dict[str, Any]) -> list[list[str]]:
    """The arguments of every trial, as the agent of W&B spells them."""
    names = list(sweep["parameters"])
    commands = []
    for values in itertools.product(*(sweep["parameters"][name]["values"] for name in names)):
        options = [f"--{name}={value}" for name, value in zip(names, values, strict=True)]
        macros = {"${env}": [], "${interpreter}": [], "${program}": [], "${args}": options}
        commands.append([a for part in sweep["command"] for a in macros.get(part, [part])])
    return commands


def test_every_trial_of_the_sweep_is_parsed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(SWEEP.read_text())
    assert (ROOT / sweep["program"]).is_file()
    commands = commands_of(sweep)
    assert len(commands) == 24
    for command in commands:
        with pytest.raises(SystemExit) as exit_:
            main([*command, "--print_config"])
        assert exit_.value.code == 0
        told = yaml.safe_load(capsys.readouterr().out)
        for option in command[2:]:
            [(room, name, value)] = re.findall(r"--(\w+)\.(\w+)=(.*)", option)
            assert told[room][name] == yaml.safe_load(value)
