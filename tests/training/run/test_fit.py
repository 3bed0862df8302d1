"""Training from a script: ``camtrain.training.fit`` does what ``camtrain fit`` does."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, seed_everything
from torch.utils.data import DataLoader, TensorDataset

import camtrain
from camtrain.cli import main
from camtrain.errors import CamtrainError
from camtrain.preprocessing import Preprocessing
from camtrain.training import CAMDataModule, CAMLogger, CAMModule, FitResult, fit
from tests.training.run.test_resume import assert_same, state_of

TRAINER = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False}


def fit_by_function(root: Path, folder: Path, *, epochs: int = 2, **settings: Any) -> FitResult:
    """What ``fit_of`` trains, from a script."""
    seed_everything(0, workers=True, verbose=False)
    data = CAMDataModule(root=root, size=32, workers=0, batch_size=8)
    module = CAMModule("camtrain/digits", 2, backbone_args={"width": 4}, neck=())
    watcher = CAMLogger(num_images=2, num_mistakes=2)
    defaults = {"logger": "none", "cams": watcher, "trainer": {**TRAINER, "max_epochs": epochs}}
    return fit(module, data, folder=folder, **{**defaults, **settings})


def stop_at_step(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Let a training end with an error instead of a step."""
    original, calls = CAMModule.training_step, iter(range(1, step + 1))

    def step_or_stop(module: CAMModule, batch: object, batch_idx: int) -> torch.Tensor:
        if next(calls) == step:
            raise error
        return original(module, batch, batch_idx)

    monkeypatch.setattr(CAMModule, "training_step", step_or_stop)


class Noise(LightningDataModule):
    """Somebody's own pictures: pairs of an image and a label, without boxes or tests."""

    class_names = ("a", "b")
    preprocessing = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)

    def train_dataloader(self) -> DataLoader[Any]:
        """Eight pictures of two classes."""
        images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, torch.arange(8) % 2), batch_size=4)

    def val_dataloader(self) -> DataLoader[Any]:
        """The same."""
        return self.train_dataloader()


class NoiseWithTest(Noise):
    """The same with a test split."""

    def test_dataloader(self) -> DataLoader[Any]:
        """The same."""
        return self.train_dataloader()


def test_the_function_does_what_the_command_line_does(
    fitted: Callable[..., Path], photographs: Path, tmp_path: Path
) -> None:
    by_verb = fitted()
    result = fit_by_function(photographs, tmp_path / "runs" / "script")
    assert_same(state_of(result.folder), state_of(by_verb), "run")
    assert result.bundle == tmp_path / "runs" / "script" / "model.safetensors"
    rows = list(csv.DictReader((result.folder / "metrics.csv").read_text().splitlines()))
    best = max(rows, key=lambda row: float(row["val/acc1"]))
    assert result.best_epoch == int(best["epoch"])
    assert result.scores["val/loss"] == float(best["val/loss"])
    assert 0 <= result.scores["test/acc1"] <= 1
    assert camtrain.load(result.bundle).net.class_names == ("blue", "red")


def test_the_config_of_a_script_repeats_its_run_on_the_command_line(
    photographs: Path, tmp_path: Path
) -> None:
    result = fit_by_function(photographs, tmp_path / "runs" / "script")
    config = (result.folder / "config.yaml").rename(tmp_path / "again.yaml")
    assert main(["fit", "--config", str(config), "--runs_dir", str(tmp_path / "new")]) == 0
    again = tmp_path / "new" / "script" / "metrics.csv"
    assert again.read_text() == (result.folder / "metrics.csv").read_text()


def test_a_run_continued_by_the_function_equals_one_never_stopped(
    fitted: Callable[..., Path],
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "runs" / "script"
    with monkeypatch.context() as patch:
        stop_at_step(patch, 4, RuntimeError("power cut"))
        with pytest.raises(RuntimeError, match="power cut"):
            fit_by_function(photographs, folder)
    fit_by_function(photographs, folder, ckpt_path="last")
    assert_same(state_of(folder), state_of(fitted()), "run")


def test_another_training_is_not_continued(fitted: Callable[..., Path], photographs: Path) -> None:
    folder = fitted()
    with pytest.raises(CamtrainError, match=r" monitor was 'val/acc1', got 'val/loss'"):
        fit_by_function(photographs, folder, ckpt_path="last", monitor="val/loss")


def test_a_folder_in_use_is_refused_unless_it_may_be_replaced(
    fitted: Callable[..., Path], photographs: Path
) -> None:
    folder = fitted()
    (folder / "precious.txt").touch()
    with pytest.raises(CamtrainError, match="is not empty"):
        fit_by_function(photographs, folder, epochs=1)
    assert (folder / "precious.txt").is_file()
    fit_by_function(photographs, folder, epochs=1, overwrite=True)
    assert not (folder / "precious.txt").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ckpt_path": "last"}, r'^ckpt_path="last" continues a run, but .* holds none'),
        ({"ckpt_path": "nowhere.ckpt"}, "^ckpt_path must be a checkpoint"),
        ({"monitor": "val/accuracy"}, "^monitor must be one of train/loss, "),
        ({"save_every_minutes": -1}, r"^save_every_minutes must be at least 0, or None \(null\)"),
        ({}, r'is not empty; continue it with ckpt_path="last", replace it with overwrite=True'),
    ],
)
def test_messages_name_the_arguments_of_the_function(
    photographs: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "run"
    if not settings:
        folder.mkdir()
        (folder / "precious.txt").touch()
    with pytest.raises(CamtrainError, match=message):
        fit_by_function(photographs, folder, **settings)


def test_a_run_keeps_its_splits_whatever_is_added(photographs: Path, tmp_path: Path) -> None:
    root = photographs / "train"
    result = fit_by_function(root, tmp_path / "runs" / "script", epochs=1)
    split = (result.folder / "split.csv").read_text()
    for path in list((root / "red").iterdir()):
        path.with_name(f"again_{path.name}").write_bytes(path.read_bytes())
    with pytest.warns(UserWarning, match="split"):
        fit_by_function(root, result.folder, epochs=2, ckpt_path="last")
    assert (result.folder / "split.csv").read_text() == split


def test_ctrl_c_reaches_the_script_and_leaves_a_run_to_go_on_with(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "script"
    stop_at_step(monkeypatch, 4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        fit_by_function(photographs, folder)
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    camtrain.load(folder / "model.safetensors")


def test_somebody_s_own_data_module_is_trained_on(tmp_path: Path) -> None:
    module = CAMModule("camtrain/digits", 2, backbone_args={"width": 4}, neck=())
    result = fit(module, NoiseWithTest(), folder=tmp_path / "run", logger="none", trainer=TRAINER)
    assert result.bundle is not None
    assert result.best_checkpoint is not None
    assert "test/acc1" in result.scores
    assert (tmp_path / "run" / "report.html").is_file()


def test_what_has_no_test_split_is_not_tested(tmp_path: Path) -> None:
    module = CAMModule("camtrain/digits", 2, backbone_args={"width": 4}, neck=())
    result = fit(module, Noise(), folder=tmp_path / "run", logger="none", trainer=TRAINER)
    assert not any(name.startswith("test/") for name in result.scores)


def test_a_fast_run_writes_nothing(photographs: Path, tmp_path: Path) -> None:
    trainer = {**TRAINER, "fast_dev_run": True}
    result = fit_by_function(photographs, tmp_path / "runs" / "script", trainer=trainer)
    assert result.bundle is None
    assert not (tmp_path / "runs").exists()


def test_a_second_cam_logger_without_a_folder_is_refused(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for watcher in (CAMLogger(), None):
        trainer = {**TRAINER, "callbacks": [CAMLogger()]}
        with pytest.raises(CamtrainError, match="give it as cams instead, or give it a dirpath"):
            fit_by_function(photographs, folder, cams=watcher, trainer=trainer)
    assert not folder.exists()
