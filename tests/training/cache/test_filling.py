"""Filling and using the cache: the same training, stale caches never used, nothing half done."""

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from camtrain import arguments, files
from camtrain.errors import CamtrainError
from camtrain.training import CAMDataModule, CAMLogger, CAMModule
from camtrain.training.cache import FeatureDataset, filling, store
from camtrain.training.cache.filling import fits_float16
from camtrain.training.cache.plan import Plan
from tests.conftest import everyday
from tests.training.conftest import quiet_trainer, small_module

HEADS: list[dict[str, Any]] = [
    {},
    {"pool": "gmp"},
    {"pool": "lse"},
    {"neck": (4,)},
    {"neck": (4,), "neck_norm": "batch", "pool": "max", "dropout": 0.3},
]


def trained(
    root: Path, cache: bool | None, model: dict[str, Any], *, epochs: int = 3, **data: Any
) -> tuple[CAMModule, dict[str, float]]:
    """A module after a few epochs, and its last scores."""
    torch.manual_seed(3)
    # Not AdamW, whose first steps make differences of the size of rounding large.
    optimizer = {"optimizer": "sgd", "lr": 0.01}
    module = small_module(weights=None, freeze_backbone=True, **optimizer, **model)
    settings = {"augment": "flip", "batch_size": 5, "workers": 0, "seed": 1, **data}
    source = CAMDataModule(root=root, size=(32, 40), cache_features=cache, **settings)
    trainer = quiet_trainer(max_epochs=epochs)
    trainer.fit(module, source)
    assert isinstance(trainer.train_dataloader.dataset, FeatureDataset) == bool(cache)
    assert isinstance(trainer.val_dataloaders.dataset, FeatureDataset) == bool(cache)
    return module, {name: float(score) for name, score in trainer.callback_metrics.items()}


@pytest.mark.parametrize("model", everyday(HEADS, HEADS[-1]), ids=str)
def test_a_training_with_cache_is_the_one_without(model: dict[str, Any], photographs: Path) -> None:
    plain, expected = trained(photographs, False, model)
    cached, found = trained(photographs, True, model)
    for name, tensor in plain.net.state_dict().items():
        torch.testing.assert_close(
            cached.net.state_dict()[name], tensor, rtol=2e-3, atol=2e-3, msg=lambda m, n=name: n + m
        )
    assert found.keys() == expected.keys()
    assert found["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-3)
    assert found["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-3)
    assert found["val/acc1"] == expected["val/acc1"]
    assert found["val/centre_box_acc"] == expected["val/centre_box_acc"]


def test_the_backbone_sees_every_picture_once(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = Plan.features

    def counted(plan: Plan, images: Tensor) -> Tensor:
        seen.append(len(images))
        return real(plan, images)

    monkeypatch.setattr(Plan, "features", counted)
    torch.manual_seed(0)
    module = small_module(freeze_backbone=True)
    runs: list[int] = []
    module.net.backbone.register_forward_hook(lambda *_: runs.append(1))
    data = CAMDataModule(root=photographs, size=32, workers=0, augment="flip", batch_size=8)
    quiet_trainer(max_epochs=5).fit(module, data)
    assert [count for count in seen if count == 1] == [1, 1]  # a blank one of each split: its shape
    assert sum(seen) == 2 * 16 + 8 + 2  # train and its mirror images, val
    assert len(runs) == len(seen)


def test_what_comes_before_the_filling_is_named_where_it_takes_long(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arguments, "_PATIENCE", 0.01)
    hashed = store.hash_of_pictures
    monkeypatch.setattr(store, "hash_of_pictures", lambda s: (time.sleep(0.2), hashed(s))[1])
    trained(photographs, True, {}, epochs=1)
    printed = capsys.readouterr().err
    for split in ("train", "val"):
        assert f"Feature cache of {split}: reading boxes, looking for an earlier run's" in printed


def test_a_cache_is_used_again_and_gives_the_same_bits(
    photographs: Path, features_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, scores = trained(photographs, True, {"neck": (4,), "dropout": 0.3})
    printed = capsys.readouterr().out
    assert "Feature cache of train: 16 pictures x 2 views x 16 channels x 8 x 10 x 2 by" in printed
    assert printed.count("filled in") == 2
    before = {path: path.stat().st_mtime_ns for path in features_folder.rglob("*.npy")}
    again, same = trained(photographs, True, {"neck": (4,), "dropout": 0.3})
    printed = capsys.readouterr().out
    assert printed.count("of an earlier run") == 2
    assert before == {path: path.stat().st_mtime_ns for path in features_folder.rglob("*.npy")}
    assert scores == same
    for name, tensor in first.net.state_dict().items():
        assert torch.equal(tensor, again.net.state_dict()[name]), name


@pytest.mark.nightly
def test_a_refilled_cache_gives_the_same_bits(photographs: Path, features_folder: Path) -> None:
    _, scores = trained(photographs, True, {"dropout": 0.3})
    shutil.rmtree(features_folder)
    _, same = trained(photographs, True, {"dropout": 0.3})
    assert scores == same


def another_picture(root: Path) -> None:
    shutil.copy(root / "train" / "red" / "0.png", root / "train" / "red" / "1.png")


STALE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("picture", {}, {}),
    ("weights", {"backbone_args": {"width": 4}, "stride": 4}, {}),
    ("size", {}, {"size": (32, 48)}),
    ("mean", {}, {"mean": (0.4,) * 3, "std": (0.5,) * 3}),
    ("resize", {}, {"resize_mode": "crop"}),
    ("mirror", {}, {"augment": "none"}),
    ("precision", {}, {"precision": "bf16-mixed"}),
]


@pytest.mark.parametrize(("what", "model", "data"), STALE, ids=lambda value: str(value)[:20])
def test_a_stale_cache_is_not_used(
    what: str, model: dict[str, Any], data: dict[str, Any], photographs: Path, features_folder: Path
) -> None:
    def fill(model: dict[str, Any], precision: str = "32-true", **data: Any) -> int:
        torch.manual_seed(0)
        module = small_module(weights=None, freeze_backbone=True, **model)
        settings = {"size": 32, "augment": "flip", "workers": 0, "batch_size": 8, **data}
        source = CAMDataModule(root=photographs, cache_features=True, **settings)
        quiet_trainer(max_epochs=1, precision=precision, limit_val_batches=0).fit(module, source)
        return len(list(features_folder.iterdir()))

    assert fill({}) == fill({}) == 1
    if what == "picture":
        another_picture(photographs)
    assert fill(model, **data) == 2


def test_what_a_killed_run_left_is_neither_trusted_nor_kept(
    photographs: Path, features_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> bool:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(filling, "_write", die)
        with pytest.raises(RuntimeError, match="power cut"):
            trained(photographs, True, {})
    [part] = features_folder.iterdir()
    assert not store.is_complete(part)
    monkeypatch.setattr(store, "_is_locked", lambda _: False)  # the kernel frees what the dead held
    trained(photographs, True, {})
    assert part not in list(features_folder.iterdir())
    assert all(store.is_complete(folder) for folder in features_folder.iterdir())


def test_a_disk_that_is_too_small_is_said_before(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = SimpleNamespace(total=10_000, used=9_000, free=1_000)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: tiny)
    with pytest.raises(
        CamtrainError, match=r"train takes 0\.0 MB, .* give --data\.cache_dir on another"
    ):
        trained(photographs, True, {})
    trainer = quiet_trainer(max_epochs=3)
    data = CAMDataModule(root=photographs, size=32, workers=0, augment="flip")
    trainer.fit(small_module(freeze_backbone=True), data)
    assert not isinstance(trainer.train_dataloader.dataset, FeatureDataset)
    assert "The training goes on without the cache." in capsys.readouterr().out


def refused(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


# Of each way in which a cache cannot be written: a function that brings it about, and what is said.
UNWRITABLE: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], object], str]] = {
    "file": (lambda folder, _: folder.write_text(""), "(Not a directory)"),
    "read-only": (
        lambda _, patch: patch.setattr(files.tempfile, "TemporaryDirectory", refused),
        "place where files can be written",
    ),
    "no space": (
        lambda _, patch: patch.setattr(store.os, "posix_fallocate", refused),
        "No space left on device",
    ),
    "full later": (
        lambda _, patch: patch.setattr(store, "_sync", refused),
        "No space left on device",
    ),
}


@pytest.mark.parametrize("what", everyday(UNWRITABLE, "file", "full later"))
def test_a_training_that_cannot_keep_features_goes_on_without(
    what: str,
    photographs: Path,
    features_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before, a traceback, because of a cache that nobody had asked for."""
    features_folder.parent.mkdir(parents=True)
    spoil, reason = UNWRITABLE[what]
    spoil(features_folder, monkeypatch)
    trainer = quiet_trainer(max_epochs=3)
    data = CAMDataModule(root=photographs, size=32, workers=0, augment="flip")
    trainer.fit(small_module(freeze_backbone=True), data)
    assert not isinstance(trainer.train_dataloader.dataset, FeatureDataset)
    output = capsys.readouterr().out
    assert reason in output
    assert output.count("The training goes on without the cache.") == 2  # train, val
    with pytest.raises(CamtrainError, match=r"give --data\.cache_dir on another disk"):
        trained(photographs, True, {})  # asked for


def truncate(entry: Path) -> None:
    file = entry / "kept.npy"
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES: list[Callable[[Path], object]] = [
    truncate,
    lambda entry: (entry / "kept.npy").unlink(),
    lambda entry: (entry / "about.json").write_text("{"),
    lambda entry: (entry / "about.json").write_text('{"arrays": [], "dtype": "float16"}'),
]


def test_a_damaged_cache_is_filled_anew(
    photographs: Path, features_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, expected = trained(photographs, True, {})
    for damages in (DAMAGES[:2], DAMAGES[2:]):
        for entry, damage in zip(features_folder.iterdir(), damages, strict=True):
            damage(entry)
        capsys.readouterr()
        assert trained(photographs, True, {})[1] == expected
        assert capsys.readouterr().out.count("is damaged, and is filled anew") == 2


@pytest.mark.parametrize("scale", [1e-7, 1e6])
def test_features_beyond_float16_are_kept_as_bfloat16(
    scale: float, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Plan.features
    monkeypatch.setattr(Plan, "features", lambda plan, images: scale * real(plan, images))
    torch.manual_seed(0)
    module = small_module(freeze_backbone=True, neck=(4,))
    data = CAMDataModule(root=photographs, size=32, workers=0, augment="none", batch_size=8)
    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(module, data)
    kept = trainer.train_dataloader.dataset[0, 3].image
    assert kept.dtype == torch.bfloat16
    image = data.datasets["train"][3].image[None]
    with torch.inference_mode():
        expected = scale * module.net.backbone(image)[0]
    torch.testing.assert_close(kept.float(), expected, rtol=1e-2, atol=1e-2 * scale)


def test_bfloat16_of_the_training_is_kept_as_it_is(photographs: Path) -> None:
    module = small_module(freeze_backbone=True, neck=(4,))
    data = CAMDataModule(root=photographs, size=32, workers=0, augment="none", batch_size=16)
    trainer = quiet_trainer(precision="bf16-mixed")
    trainer.fit(module, data)
    train, val = trainer.train_dataloader.dataset, trainer.val_dataloaders.dataset
    assert train[0, 0].image.dtype == torch.bfloat16
    assert val[0].image.dtype == torch.float16  # of float32, as evaluation computes


def test_range_of_float16() -> None:
    assert fits_float16(torch.tensor([0.0, 1e-7, 65504.0]))
    assert not fits_float16(torch.tensor([0.0, 65505.0]).double())
    assert not fits_float16(torch.tensor([1.0, float("inf")]))


@pytest.mark.nightly
def test_the_watched_pictures_look_the_same(photographs: Path, tmp_path: Path) -> None:
    for name, cache in (("plain", False), ("cached", True)):
        torch.manual_seed(0)
        module = small_module(freeze_backbone=True, neck=(4,), lr=0.05)
        data = CAMDataModule(
            root=photographs, size=32, workers=0, augment="none", cache_features=cache
        )
        watcher = CAMLogger(num_images=4, dirpath=tmp_path / name)
        quiet_trainer(max_epochs=2, callbacks=[watcher]).fit(module, data)
    names = [f"epoch_{epoch:03d}.jpg" for epoch in range(3)]
    assert sorted(path.name for path in (tmp_path / "cached").glob("epoch_*")) == names
    before = [(tmp_path / folder / names[0]).read_bytes() for folder in ("plain", "cached")]
    assert before[0] == before[1]
