"""The logger of heatmaps: the same pictures every epoch, wherever it is asked to put them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import TensorBoardLogger

from camtrain.data import normalize
from camtrain.errors import CamtrainError
from camtrain.preprocessing import ChannelOrder, Preprocessing
from camtrain.training import CAMDataModule, CAMLogger
from camtrain.training.watching import _read, stratified
from tests.training.conftest import quiet_trainer, small_module
from tests.training.test_module import AnybodysData


def test_every_class_is_watched_in_turn() -> None:
    labels = [0] * 50 + [1] * 3 + [2] * 20
    chosen = stratified(labels, 10, seed=0)
    assert [labels[i] for i in chosen] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert len(set(chosen)) == 10
    assert chosen == stratified(labels, 10, seed=0)
    assert chosen != stratified(labels, 10, seed=1)


def test_fewer_pictures_than_asked_for_are_all_watched() -> None:
    assert sorted(stratified([1, 0, 1], 16, seed=0)) == [0, 1, 2]


def test_a_sheet_is_written_before_the_first_epoch_and_after_each(
    data: CAMDataModule, tmp_path: Path
) -> None:
    watcher = CAMLogger(num_images=4, dirpath=tmp_path / "cams")
    quiet_trainer(callbacks=[watcher]).fit(small_module(lr=0.1), data)
    names = sorted(path.name for path in (tmp_path / "cams").iterdir())
    assert names == ["epoch_000.jpg", "epoch_001.jpg", "epoch_002.jpg"]
    sheets = [np.asarray(Image.open(tmp_path / "cams" / name)) for name in names]
    assert len({sheet.shape for sheet in sheets}) == 1
    assert (sheets[0] != sheets[2]).any()


def test_watching_changes_nothing_in_the_training(data: CAMDataModule, tmp_path: Path) -> None:
    results = []
    for callbacks in ([], [CAMLogger(dirpath=tmp_path)]):
        torch.manual_seed(0)
        module = small_module(dropout=0.5)
        quiet_trainer(callbacks=callbacks).fit(module, data)
        results.append(module.net.state_dict())
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


def test_a_resumed_training_watches_the_same_pictures(data: CAMDataModule, tmp_path: Path) -> None:
    first = CAMLogger(num_images=3, dirpath=tmp_path, seed=0)
    quiet_trainer(callbacks=[first]).fit(small_module(), data)
    second = CAMLogger(num_images=3, dirpath=tmp_path, seed=1)
    second.load_state_dict(first.state_dict())
    quiet_trainer(callbacks=[second]).fit(small_module(), data)
    assert second.state_dict() == first.state_dict()


def test_anybody_s_data_can_be_watched(tmp_path: Path) -> None:
    watcher = CAMLogger(num_images=6, dirpath=tmp_path / "cams")
    quiet_trainer(callbacks=[watcher], max_epochs=1).fit(
        small_module(num_classes=3), AnybodysData(3)
    )
    assert (tmp_path / "cams" / "epoch_001.jpg").is_file()


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_anybody_s_pictures_are_shown_in_their_own_colours(order: ChannelOrder) -> None:
    net = small_module().net
    net.preprocessing = Preprocessing(size=(24, 32), channel_order=order)
    pixels = torch.randint(0, 256, (3, 24, 32), dtype=torch.uint8)
    watched = _read([(normalize(pixels, net.preprocessing), 1)], 0, net)
    assert torch.equal(watched.shown, pixels)


def test_tensorboard_gets_every_sheet(data: CAMDataModule, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path, name="", version="")
    quiet_trainer(callbacks=[CAMLogger(dirpath=tmp_path)], logger=logger).fit(small_module(), data)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Images("val/cams")] == [0, 1, 3]


@pytest.mark.parametrize("num_images", [0, 49])
def test_the_number_of_pictures_is_checked(num_images: int) -> None:
    with pytest.raises(CamtrainError, match=r"num_images must lie in 1\.\.48"):
        CAMLogger(num_images)


def test_a_module_without_a_cam_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CamtrainError, match=r"a module whose \.net is a CAMNet, got LightningModule"
    ):
        CAMLogger(dirpath=tmp_path).on_train_start(quiet_trainer(), LightningModule())
