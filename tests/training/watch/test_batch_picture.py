"""The picture of the first batch shows what the network was given, and changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from camtrain.preprocessing import Preprocessing
from camtrain.training import CAMDataModule
from camtrain.training.watch.batch_picture import BatchPicture
from tests.training.conftest import quiet_trainer, small_module


def test_it_shows_the_pictures_with_their_boxes(photographs: Path, tmp_path: Path) -> None:
    data = CAMDataModule(root=photographs, size=(32, 48), batch_size=7, workers=0, augment="light")
    path = tmp_path / "run" / "train_batch.jpg"
    quiet_trainer(callbacks=[BatchPicture(path)]).fit(small_module(), data)
    with Image.open(path) as image:
        assert image.width == 1480
        assert 400 < image.height < 700  # two rows of five, wider than high
        white = (np.asarray(image.convert("L")) > 250).mean()
    assert white > 0.2
    assert sorted(file.name for file in path.parent.iterdir()) == ["train_batch.jpg"]


def test_a_training_goes_on_as_without_it(photographs: Path, tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [BatchPicture(tmp_path / "batch.jpg")]):
        torch.manual_seed(0)
        module = small_module()
        data = CAMDataModule(root=photographs, size=32, batch_size=8, workers=0)
        quiet_trainer(callbacks=callbacks).fit(module, data)
        weights.append(torch.cat([p.detach().flatten() for p in module.net.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("labels", [torch.tensor([0, 1]), torch.tensor([[1, 1], [0, 0]])])
def test_it_takes_the_batches_of_any_loader(labels: torch.Tensor, tmp_path: Path) -> None:
    module = small_module(
        task="multilabel" if labels.ndim > 1 else "multiclass",
        class_names=["a", "b"],
        preprocessing=Preprocessing(size=(32, 40)),
    )
    loader = DataLoader(TensorDataset(torch.randn(2, 3, 32, 40), labels), batch_size=2)
    path = tmp_path / "batch.jpg"
    quiet_trainer(max_epochs=1, callbacks=[BatchPicture(path)]).fit(module, loader, loader)
    assert path.is_file()


def test_nothing_is_written_by_a_fast_dev_run(data: CAMDataModule, tmp_path: Path) -> None:
    path = tmp_path / "batch.jpg"
    trainer = quiet_trainer(fast_dev_run=True, callbacks=[BatchPicture(path)])
    trainer.fit(small_module(), data)
    assert not path.exists()
