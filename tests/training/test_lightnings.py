"""Both packages of Lightning: heatmaps arrive in either, and mixed ones are refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import wandb
from torch import nn

import camtrain
from camtrain.errors import CamtrainTypeError
from camtrain.training import CAMDataModule, CAMLogger, CAMModule, fit
from camtrain.training.lightnings import is_on_gpu
from tests.training.conftest import quiet_trainer, small_module
from tests.training.run.wandb_file import history

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer

other = pytest.importorskip("lightning.pytorch", reason="the other package: pip install lightning")


def quiet_other_trainer(**settings: Any) -> Trainer:
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger")
    defaults = {**dict.fromkeys(quiet, False), "accelerator": "cpu", "max_epochs": 1}
    return other.Trainer(**{**defaults, **settings})


def other_module(data: CAMDataModule) -> LightningModule:
    """A module of lightning.pytorch whose network is one of ours, with the data's loaders."""
    data.setup("fit")

    class Module(other.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            args = {"width": 4}
            self.net = camtrain.create_model("camtrain/digits", 2, neck=(), backbone_args=args)

        train_dataloader, val_dataloader = data.train_dataloader, data.val_dataloader

        def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Any]:
            logits = self.net(batch[0])
            loss = nn.functional.cross_entropy(logits, batch[1])
            self.log("val/loss", loss, batch_size=len(logits))
            return {"logits": logits, "batch": batch}

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.parameters(), 0.1)

    return Module()


def other_data() -> LightningDataModule:
    class Data(other.LightningDataModule):
        def train_dataloader(self) -> list[Any]:
            return []

        val_dataloader = train_dataloader

    return Data()


def watched_by(loggers: list[Any], data: CAMDataModule, folder: Path) -> None:
    watcher = CAMLogger(num_images=2, dirpath=folder)
    trainer = quiet_other_trainer(callbacks=[watcher], logger=loggers, log_every_n_steps=1)
    trainer.fit(other_module(data))
    assert len(list(folder.glob("epoch_*.jpg"))) == 2


def test_heatmaps_arrive_in_the_other_lightning(data: CAMDataModule, tmp_path: Path) -> None:
    logger = other.loggers.CSVLogger(tmp_path / "csv", name="", version="")
    watched_by([logger], data, tmp_path / "cams")
    with open(tmp_path / "csv" / "cams.csv") as file:
        assert [line["epoch"] for line in csv.DictReader(file)] == ["0", "0", "1", "1"]


@pytest.mark.nightly
def test_wandb_and_tensorboard_of_the_other_lightning_get_heatmaps(
    data: CAMDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers = [
        other.loggers.TensorBoardLogger(tmp_path / "tb", name="", version=""),
        other.loggers.WandbLogger(save_dir=tmp_path, offline=True),
    ]
    loggers[1]._wandb_init.pop("anonymous", None)  # Lightning sends it, wandb warns about it
    watched_by(loggers, data, tmp_path / "cams")
    wandb.finish()
    events = accumulators.EventAccumulator(str(tmp_path / "tb"), {"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("val/cams")] == [0, 1]
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = [row for row in history(file) if "val/cams/_type" in row]
    assert [json.loads(row["trainer/global_step"]) for row in rows] == [0, 1]


RIGHT_IMPORT = r"got one of lightning\.pytorch; write `from pytorch_lightning import Trainer`"


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_the_other_trainer_refuses_our_module(data: CAMDataModule, verb: str) -> None:
    with pytest.raises(CamtrainTypeError, match="CAMModule needs a Trainer of .*" + RIGHT_IMPORT):
        getattr(quiet_other_trainer(), verb)(small_module(), datamodule=data)


def test_the_other_trainer_refuses_a_module_derived_from_ours(data: CAMDataModule) -> None:
    class Mine(CAMModule):
        pass

    module = Mine("camtrain/digits", 2, neck=(), backbone_args={"width": 4})
    with pytest.raises(CamtrainTypeError, match="Mine needs a Trainer of .*" + RIGHT_IMPORT):
        quiet_other_trainer().fit(module, data)


def test_the_other_trainer_refuses_our_data(data: CAMDataModule) -> None:
    match = "CAMDataModule needs a Trainer of .*" + RIGHT_IMPORT
    module = other_module(data)
    with pytest.raises(CamtrainTypeError, match=match):
        quiet_other_trainer().fit(module, datamodule=data)


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_other_mistakes_keep_the_words_of_lightning() -> None:
    small_module()
    with pytest.raises(TypeError, match="must be a `LightningModule`") as caught:
        quiet_other_trainer().fit(nn.Linear(1, 1))
    assert not isinstance(caught.value, CamtrainTypeError)


def test_our_trainers_refuse_data_of_the_other(tmp_path: Path) -> None:
    match = (
        r"Data needs a Trainer of lightning\.pytorch and got one of pytorch_lightning; derive it "
        r"from `pytorch_lightning.LightningDataModule`"
    )
    with pytest.raises(CamtrainTypeError, match=match):
        quiet_trainer().fit(small_module(), datamodule=other_data())
    with pytest.raises(CamtrainTypeError, match=match):
        fit(small_module(), other_data(), folder=tmp_path / "run", logger="none")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", True), ("cpu", False)])
def test_pinned_memory_is_for_gpus(device: str, expected: bool) -> None:
    strategy = SimpleNamespace(root_device=torch.device(device))
    assert is_on_gpu(SimpleNamespace(strategy=strategy)) is expected
    assert not is_on_gpu(None)
