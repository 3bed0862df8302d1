"""Every shipped config is understood by the real command line."""

from pathlib import Path

import pytest

from camtrain.cli import main

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_parsed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", str(config), "--print_config"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    for line in config.read_text().splitlines():
        key = line.split("#")[0].strip().partition(":")[0]
        assert not key or f"{key}:" in printed
