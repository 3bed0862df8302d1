"""Loggers by name; W&B never asks and never stops a training."""

from pathlib import Path

import pytest
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

from camtrain.errors import CamtrainError
from camtrain.training.run import loggers
from camtrain.training.run.loggers import LoggerName, make_loggers, place_of
from camtrain.training.run.progress import ProgressBarFromOne
from camtrain.training.run.trainer import build_trainer
from tests.training.conftest import quiet_trainer, small_module


def test_none_and_disabled_are_no_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert make_loggers("none", tmp_path, "project") == []
    assert make_loggers("wandb", tmp_path, "project") == []


def test_tensorboard_writes_into_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    [logger] = make_loggers("tensorboard", tmp_path, "project")
    assert isinstance(logger, TensorBoardLogger)
    assert Path(logger.log_dir) == tmp_path / "tensorboard"
    assert place_of([logger]) == f"see with: tensorboard --logdir {tmp_path / 'tensorboard'}"


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_a_logger_whose_package_is_missing_names_it(
    kind: LoggerName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(CamtrainError, match=f"needs the package {kind}; run: pip install {kind}"):
        loggers.check_logger(kind)


@pytest.mark.parametrize(("max_epochs", "text"), [(3, "Epoch 1/3"), (-1, "Epoch 1")])
def test_the_progress_bar_counts_epochs_from_1(max_epochs: int, text: str) -> None:
    trainer = build_trainer({"max_epochs": max_epochs, "accelerator": "cpu", "logger": False})
    bar = trainer.progress_bar_callback
    bar._trainer = trainer
    assert bar._get_train_description(0).strip() == text


def test_the_bar_of_somebodys_own_trainer_counts_from_1_too() -> None:
    bar = RichProgressBar(refresh_rate=7)
    trainer = quiet_trainer(enable_progress_bar=True, callbacks=[bar])
    module = small_module()
    module.trainer = trainer
    module.configure_callbacks()
    assert trainer.progress_bar_callback is bar
    assert (type(bar), bar.refresh_rate) == (ProgressBarFromOne, 7)


def test_every_part_of_a_continued_run_has_a_csv_file(tmp_path: Path) -> None:
    for version in range(2):
        [logger] = made = make_loggers("csv", tmp_path, "project")
        logger.log_metrics({"val/acc1": 0.5}, 1)
        logger.save()
        assert place_of(made) == str(tmp_path / "csv" / f"version_{version}")
    assert len(list(tmp_path.rglob("metrics.csv"))) == 2
