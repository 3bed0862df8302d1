"""Damaged files: named, counted and skipped in training, errors in evaluation."""

from pathlib import Path

import pytest
import torch

from camtrain.data import DamagedImageError
from camtrain.training import CAMDataModule
from tests.by_two import run_by_two
from tests.conftest import everyday
from tests.training.conftest import quiet_trainer, small_module

ROOT = Path(__file__).parents[2]


def damage(photographs: Path, split: str, count: int) -> list[Path]:
    """Cut the first files of each class of a split short."""
    files = [
        file
        for folder in sorted((photographs / split).iterdir())
        for file in sorted(folder.iterdir())[:count]
    ]
    for file in files:
        file.write_bytes(file.read_bytes()[:400])
    return files


@pytest.mark.parametrize("workers", everyday([0, 2], 0))
def test_a_training_names_counts_and_skips_them(photographs: Path, workers: int) -> None:
    files = damage(photographs, "train", 2)
    data = CAMDataModule(root=photographs, size=32, batch_size=4, workers=workers)
    trainer, module = quiet_trainer(max_epochs=2), small_module()
    with pytest.warns(UserWarning, match="Skipped: The image") as warned:
        trainer.fit(module, data)
    messages = [str(one.message) for one in warned if "Skipped" in str(one.message)]
    assert len(messages) == len(files)  # once each, though they were met in both epochs
    assert all(any(str(file) in message for message in messages) for file in files)
    assert trainer.callback_metrics["train/damaged"] == 4
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_a_file_that_is_no_picture_counts_once_however_often_it_is_met(photographs: Path) -> None:
    (photographs / "train/red/0.png").write_bytes(b"no picture")
    data = CAMDataModule(root=photographs, size=32, batch_size=4, workers=0, max_damaged=1)
    with pytest.warns(UserWarning, match="Skipped: The image") as warned:
        quiet_trainer(max_epochs=3).fit(small_module(), data)
    [message] = [str(one.message) for one in warned if "Skipped" in str(one.message)]
    assert "(cannot identify image file)" in message


@pytest.mark.filterwarnings("ignore:Skipped")
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_batch_without_a_whole_picture_teaches_nothing(
    photographs: Path, batch_size: int
) -> None:
    damage(photographs, "train", 8)
    data = CAMDataModule(root=photographs, size=32, batch_size=batch_size, workers=0)
    module = small_module(weight_decay=0.0)
    before = [p.detach().clone() for p in module.net.parameters()]
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, data)
    assert trainer.global_step == 16 // batch_size
    assert all(map(torch.equal, before, module.net.parameters()))
    assert trainer.callback_metrics["train/damaged"] == 16


@pytest.mark.filterwarnings("ignore:Skipped")
def test_too_many_stop_the_training(photographs: Path) -> None:
    damage(photographs, "train", 2)
    for most in (4, 3):
        data = CAMDataModule(root=photographs, size=32, batch_size=4, workers=0, max_damaged=most)
        trainer = quiet_trainer(max_epochs=1)
        if most == 4:
            trainer.fit(small_module(), data)
        else:
            with pytest.raises(DamagedImageError, match=r"More than max_damaged=3 .*\.png"):
                trainer.fit(small_module(), data)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_is_an_error_unless_allowed(photographs: Path, workers: int) -> None:
    [file, _] = damage(photographs, "val", 1)
    options = {"root": photographs, "size": 32, "batch_size": 4, "workers": workers}
    with pytest.raises(DamagedImageError) as raised:
        quiet_trainer().validate(small_module(), CAMDataModule(**options), verbose=False)
    assert str(file) in str(raised.value)
    assert "--data.allow_damaged true" in str(raised.value)
    assert "\n" not in str(raised.value)
    data = CAMDataModule(**options, allow_damaged=True)
    with pytest.warns(UserWarning, match="Skipped: The image"):
        [scores] = quiet_trainer().validate(small_module(), data, verbose=False)
    assert 0 <= scores["val/max_box_acc"] <= 1


def test_the_keys_are_options_of_the_data_module(photographs: Path) -> None:
    data = CAMDataModule(
        root=photographs,
        size=32,
        workers=0,
        augment="none",
        auto_augment="randaugment",
        hide_and_seek=0.3,
        exif=False,
        reduced_decoding=False,
    )
    data.setup("fit")
    train, val = data.datasets["train"], data.datasets["val"]
    assert (train.augmentation.auto_augment, train.augmentation.hide_and_seek) == (
        "randaugment",
        0.3,
    )
    assert (val.augmentation.auto_augment, val.augmentation.hide_and_seek) == (None, 0.0)
    assert (train.exif, val.exif, train.reduced, val.reduced) == (False, False, False, False)
    plain = CAMDataModule(root=photographs, size=32, workers=0, augment="none")
    plain.setup("fit")
    assert plain.datasets["train"].reduced
    assert not plain.datasets["val"].reduced
    assert not torch.equal(plain.datasets["train"][1].image, train[1].image)


@pytest.mark.nightly
def test_two_processes_wait_for_each_other_whatever_they_skip(
    photographs: Path,
) -> None:
    """The first process meets whole batches of nothing, the second none."""
    damage(photographs, "train", 5)
    damage(photographs, "val", 1)
    assert all("damaged 10.0" in printed for printed in run_by_two(train_on, photographs))


def train_on(root: Path) -> None:
    data = CAMDataModule(root=root, size=32, batch_size=2, workers=0, allow_damaged=True)
    trainer = quiet_trainer(max_epochs=2, devices=2, strategy="ddp")
    trainer.fit(small_module(), data)
    print("damaged", trainer.callback_metrics["train/damaged"].item())


def fail_on(photographs: Path, rank: int) -> None:
    """Validate a damaged picture of one process; all end with its sentence."""
    data = CAMDataModule(root=photographs, size=32, batch_size=2, workers=0)
    trainer = quiet_trainer(devices=2, strategy="ddp")
    damaged = sorted((photographs / "val" / "blue").iterdir())[rank]
    damaged.write_bytes(damaged.read_bytes()[:400])
    with pytest.raises(DamagedImageError, match=f"{damaged}.* give --data.allow_damaged true"):
        trainer.fit(small_module(), data)


@pytest.mark.nightly
@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_of_two_processes_refuses_all_refuse(photographs: Path, rank: int) -> None:
    run_by_two(fail_on, photographs, rank)
