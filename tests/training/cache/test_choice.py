"""When features are kept, and what is said where they cannot be."""

from pathlib import Path
from typing import Any

import pytest

from camtrain.errors import CamtrainError
from camtrain.training import CAMDataModule
from camtrain.training.cache import FeatureDataset, check_cache
from tests.training.conftest import quiet_trainer, small_module


def is_used(
    root: Path,
    *,
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
) -> bool:
    """Whether a training of four epochs was fed with kept features."""
    made = quiet_trainer(**{"max_epochs": 4, "limit_val_batches": 0, **(trainer or {})})
    settings = {"augment": "flip", "batch_size": 8, "workers": 0, **(data or {})}
    module = small_module(**{"freeze_backbone": True, **(model or {})})
    made.fit(module, CAMDataModule(root=root, size=32, **settings))
    return isinstance(made.train_dataloader.dataset, FeatureDataset)


def test_a_frozen_backbone_and_a_flip_are_enough(photographs: Path, features_folder: Path) -> None:
    assert is_used(photographs)
    assert is_used(photographs, data={"augment": "none"})
    assert len(list(features_folder.iterdir())) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"data": {"cache_features": False}},
        {"data": {"augment": "light"}},
        {"model": {"freeze_backbone": False}},
        {"trainer": {"fast_dev_run": True}},
        {"trainer": {"max_epochs": 2}},  # with a flip each picture goes through twice as well
        {"trainer": {"limit_train_batches": 1}},
    ],
    ids=str,
)
def test_elsewhere_nothing_is_kept(
    settings: dict[str, Any], photographs: Path, features_folder: Path
) -> None:
    assert not is_used(photographs, **settings)
    assert not features_folder.exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"data": {"augment": "light"}},
            "since augment light makes other pictures in every epoch; give --data.augment flip",
        ),
        (
            {"model": {"unfreeze_at_epoch": 3}},
            "since the backbone is trained later; leave out --model.unfreeze_at_epoch.",
        ),
        ({"trainer": {"max_epochs": 2}}, "since the training is too short for that to save time"),
        ({"trainer": {"max_epochs": 2}, "data": {"cache_features": False}}, None),
        ({"model": {"freeze_backbone": False}}, None),
        ({"trainer": {"fast_dev_run": True}}, None),
        ({}, None),  # they are cached
    ],
    ids=str,
)
def test_one_line_says_why_nothing_is_kept(
    settings: dict[str, Any],
    reason: str | None,
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    is_used(photographs, **settings)
    lines = [line for line in capsys.readouterr().out.splitlines() if "not cached" in line]
    assert [line.startswith("The features of the frozen backbone") for line in lines] == (
        [] if reason is None else [True]
    )
    assert reason is None or reason in lines[0]


def test_it_is_used_for_one_epoch_too_if_asked_for(photographs: Path) -> None:
    assert is_used(photographs, data={"cache_features": True}, trainer={"max_epochs": 1})


def test_measuring_runs_the_whole_network(photographs: Path, features_folder: Path) -> None:
    module = small_module(freeze_backbone=True)
    data = CAMDataModule(root=photographs, size=32, workers=0, augment="none", cache_features=True)
    quiet_trainer().validate(module, data, verbose=False)
    quiet_trainer().test(module, data, verbose=False)
    assert not features_folder.exists()


REFUSED = [
    ({"freeze_backbone": False}, {}, "the backbone is trained; give --model.freeze_backbone true"),
    ({}, {"augment": "imagenet"}, "augment imagenet makes other pictures in every epoch; give"),
    ({}, {"augment": "light"}, "--data.augment flip or none, or leave cache_features out"),
]


@pytest.mark.parametrize(("model", "data", "message"), REFUSED)
def test_what_cannot_be_kept_is_refused_if_asked_for(
    model: dict[str, Any], data: dict[str, Any], message: str, photographs: Path
) -> None:
    with pytest.raises(CamtrainError, match=message):
        is_used(photographs, model=model, data={"cache_features": True, **data})


LATER = [  # options of the module and of the data that change what a backbone sees or is
    ({"unfreeze_at_epoch": 3}, {}, "leave out --model.unfreeze_at_epoch"),
    ({"mixup": 0.2}, {}, "leave out --model.mixup"),
    ({"cutmix": 1.0}, {}, "leave out --model.cutmix"),
    ({}, {"auto_augment": "randaugment"}, "leave out --data.auto_augment"),
    ({}, {"hide_and_seek": 0.5}, "leave out --data.hide_and_seek"),
]


@pytest.mark.parametrize(("model", "data", "message"), LATER)
def test_options_that_exclude_it(model: dict[str, Any], data: dict[str, Any], message: str) -> None:
    module = small_module(freeze_backbone=True)
    module.hparams.update(model)
    settings = {"cache_features": True, "augment": "none", **data}
    with pytest.raises(CamtrainError, match=message):
        check_cache(module, settings)
    assert not check_cache(module, {**settings, "cache_features": None})


def test_a_network_built_by_hand_is_kept_and_what_is_no_cam_net_is_not() -> None:
    module = small_module(freeze_backbone=True)
    settings = {"cache_features": None, "augment": "none"}
    assert check_cache(module, settings)
    module.net.recipe = None
    assert check_cache(module, settings)
    assert not check_cache(None, settings)
