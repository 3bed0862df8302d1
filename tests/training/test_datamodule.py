"""The data module: splits, preprocessing, order."""

from pathlib import Path
from typing import Any

import pytest
import torch

from camtrain.data import Batch, resize
from camtrain.errors import CamtrainError
from camtrain.preprocessing import Preprocessing
from camtrain.training import CAMDataModule
from tests.training.conftest import quiet_trainer, small_module


def test_classes_come_from_the_folders(data: CAMDataModule) -> None:
    assert data.class_names == ("blue", "red")
    assert data.num_classes == 2


class Percent(CAMDataModule):
    """A data module of a user, whose arguments mean something else."""

    def __init__(self, root: str, val_fraction: int, lengths: int) -> None:
        super().__init__(
            "digits", root=f"{root}/data", val_fraction=val_fraction / 100, lengths=(lengths,) * 3
        )


def test_a_subclass_may_give_arguments_of_these_names_another_meaning() -> None:
    data = Percent("project", val_fraction=30, lengths=7)
    assert (data._options.root, data._options.val_fraction) == ("project/data", 0.3)
    assert [len(source) for source in data.sources.values()] == [7, 7, 7]


def test_batches_hold_pictures_with_their_boxes(boxed_data: CAMDataModule) -> None:
    boxed_data.setup("validate")
    batch = next(iter(boxed_data.val_dataloader()))
    assert isinstance(batch, Batch)
    assert batch.images.shape == (8, 3, 32, 32)
    assert batch.sizes_hw.tolist() == [[40, 56]] * 8
    widths = [(boxes[:, 2] - boxes[:, 0]).tolist() for boxes in batch.boxes_xyxy]
    assert widths == [[24]] * 8


def test_mean_and_std_are_the_network_s_unless_given(photographs: Path) -> None:
    for given, expected in ((None, (0.5, 0.5, 0.5)), ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3))):
        data = CAMDataModule(root=photographs, size=32, workers=0, mean=given, std=given)
        quiet_trainer(max_epochs=1, limit_train_batches=1).fit(small_module(), data)
        assert data.preprocessing.mean == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "bgr"),
        ({"mean": (0.1, 0.2, 0.3), "std": (0.5,) * 3}, "bgr"),
        ({"channel_order": "rgb"}, "rgb"),
    ],
)
def test_the_channel_order_is_the_network_s_unless_given(
    settings: dict[str, Any], expected: str, photographs: Path
) -> None:
    data = CAMDataModule(root=photographs, size=32, workers=0, augment="none", **settings)
    module = small_module(backbone="camtrain/vgg16-cam", backbone_args={"width": 0.125})
    quiet_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=1).fit(module, data)
    assert data.preprocessing.channel_order == expected
    assert module.net.preprocessing == data.preprocessing


def test_a_network_of_the_paper_is_trained_on_bgr_pixels_minus_their_mean(
    photographs: Path,
) -> None:
    data = CAMDataModule(root=photographs, size=(32, 40), workers=0, augment="none")
    module = small_module(backbone="camtrain/googlenet-cam", backbone_args={"width": 0.125})
    quiet_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=1).fit(module, data)
    resized = resize(data.sources["train"].read(3).image, Preprocessing(size=(32, 40)))
    expected = resized.flip(0) - torch.tensor([104.0, 117.0, 123.0])[:, None, None]
    found = data.train_dataloader().dataset[3].image
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_the_order_depends_on_seed_and_epoch_alone(photographs: Path) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        data = CAMDataModule(root=photographs, size=32, workers=0, batch_size=4, seed=seed)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch.indices for batch in loader]).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert sorted(order(0, 1)) == list(range(16))


def test_only_a_last_batch_of_one_picture_is_dropped(photographs: Path) -> None:
    for batch_size, expected in ((5, [5, 5, 5]), (6, [6, 6, 4])):
        data = CAMDataModule(root=photographs, size=32, workers=0, batch_size=batch_size)
        data.setup("fit")
        assert [len(batch.images) for batch in data.train_dataloader()] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std must be given together"),
        ({"augment": "heavy"}, "heavy"),
        ({"resize_mode": "stretch"}, "resize_mode must be one of"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CamtrainError, match=message):
        CAMDataModule(root=tmp_path, **settings)


@pytest.mark.filterwarnings("ignore:8 boxes are of no picture")
def test_a_missing_split_is_named(tmp_path: Path, photographs: Path) -> None:
    (photographs / "test").rename(tmp_path / "elsewhere")
    data = CAMDataModule(root=photographs, workers=0)
    data.setup("test")
    with pytest.raises(CamtrainError, match="has no test split, only train, val"):
        data.test_dataloader()


def test_excluded_pictures_are_in_no_batch(tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "list.txt").write_text("# broken\ntrain/red/0.png\nval/blue/3.png\n")
    paths = ["train/red/0.png", "val/blue/3.png"]
    for exclude in (str(tmp_path / "list.txt"), tmp_path / "list.txt", paths, tuple(paths)):
        data = CAMDataModule(root=photographs, size=32, workers=0, exclude=exclude)
        data.setup("fit")
        assert data.hparams["exclude"] == data.hparams_initial["exclude"] == paths
        for loader, count in ((data.train_dataloader(), 15), (data.val_dataloader(), 7)):
            seen = [path for batch in loader for path in batch.paths]
            assert len(seen) == len(set(seen)) == count
            assert not {str(photographs / path) for path in paths} & set(seen)
