"""Loggers by name; W&B never asks and never stops a training."""

from pathlib import Path

import pytest
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from camtrain.errors import CamtrainError
from camtrain.training import loggers
from camtrain.training.loggers import finish_loggers, make_loggers, sync_hint


def test_none_and_disabled_are_no_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert make_loggers("none", tmp_path, "project") == []
    assert make_loggers("wandb", tmp_path, "project") == []


def test_tensorboard_writes_into_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    [logger] = make_loggers("tensorboard", tmp_path, "project")
    assert isinstance(logger, TensorBoardLogger)
    assert Path(logger.log_dir) == tmp_path / "tensorboard"
    assert sync_hint([logger]) == f"see with: tensorboard --logdir {tmp_path / 'tensorboard'}"
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(CamtrainError, match="run: pip install tensorboard"):
        make_loggers("tensorboard", tmp_path, "project")


def test_without_a_network_wandb_goes_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(loggers, "_LONGEST_START", 2)
    [logger] = made = make_loggers("wandb", tmp_path / "run", "project")
    assert isinstance(logger, WandbLogger)
    assert "W&B cannot be reached, so this run is logged offline" in capsys.readouterr().out
    hint = sync_hint(made)
    finish_loggers(made)
    assert hint is not None
    assert hint.startswith(f"offline; upload with: wandb sync {tmp_path / 'run' / 'wandb'}")
