"""The division into splits that a run keeps, and labels that are several, from the command line."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import camtrain
from camtrain.errors import CamtrainError
from camtrain.training import CAMDataModule
from camtrain.training.cli.main import main as run
from camtrain.training.run.writer import RunWriter

Arguments = Callable[..., list[str]]


def draw(file: Path, seed: int, *channels: int) -> None:
    """A dark picture of noise with a bright square in some channels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 80, (40, 56, 3), dtype=np.uint8)
    for channel in channels:
        y, x = int(rng.integers(0, 20)), int(rng.integers(0, 32))
        pixels[y : y + 20, x : x + 24, channel] = 255
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A data folder of two classes and no splits."""
    root = tmp_path / "flat"
    for number in range(20):
        draw(root / "red" / f"{number}.png", number, 0)
        draw(root / "blue" / f"{number}.png", 100 + number, 2)
    return root


def rows(file: Path) -> dict[str, tuple[str, str]]:
    with file.open() as lines:
        return {row["path"]: (row["label"], row["split"]) for row in csv.DictReader(lines)}


def seen_by(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, set[str]]]:
    """The pictures of each split, of every data module that is set up from now on."""
    seen: list[dict[str, set[str]]] = []
    setup = CAMDataModule.setup

    def note(data: CAMDataModule, stage: str) -> None:
        setup(data, stage)
        seen.append({split: set(source.paths) for split, source in data.sources.items()})

    monkeypatch.setattr(CAMDataModule, "setup", note)
    return seen


def test_a_run_keeps_its_splits_whatever_is_added(
    fit_arguments: Arguments, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_by(monkeypatch)
    arguments = fit_arguments("--data.root", str(flat))
    run(arguments)
    folder = tmp_path / "runs" / "run"
    kept = rows(folder / "split.csv")
    assert {split for _, split in kept.values()} == {"train", "val", "test"}
    assert all(label == path.split("/")[0] for path, (label, _) in kept.items())
    first = {
        split: {str(flat / path) for path, (_, other) in kept.items() if other == split}
        for split in ("train", "val", "test")
    }
    assert seen[0] == first

    for number in range(100, 140):  # enough to move others, were they divided anew
        draw(flat / "red" / f"{number}.png", number, 0)
    assert {s: set(p.paths) for s, p in CAMDataModule(root=flat).sources.items()} != first
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved / "again")
    del seen[:]
    more = ("--trainer.max_epochs", "3", "--ckpt_path", "last")
    with pytest.warns(UserWarning, match=r"40 of the pictures .* are in no split of .*again/split"):
        run([*arguments, "--runs_dir", str(moved), "--name", "again", *more])
    checkpoint = str(moved / "again" / "checkpoints" / "best.ckpt")
    for verb in ("test", "validate"):
        with pytest.warns(UserWarning, match="40 of the pictures"):
            run([verb, "--ckpt_path", checkpoint, "--trainer.accelerator", "cpu"])
    assert len(seen) >= 3
    assert all(one == first for one in seen)
    assert rows(moved / "again" / "split.csv") == kept


def test_splits_of_the_data_set_itself_are_not_written(
    fitted: Callable[..., Path], tmp_path: Path
) -> None:
    fitted()
    assert not (tmp_path / "runs" / "run" / "split.csv").exists()


def test_the_splits_are_there_as_soon_as_the_training_begins(
    fit_arguments: Arguments, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(RunWriter, "on_train_epoch_end", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        run(fit_arguments("--data.root", str(flat)))
    assert len(rows(tmp_path / "runs" / "run" / "split.csv")) == 40


def test_a_run_is_tested_on_other_pictures_once_its_splits_are_put_aside(
    fit_arguments: Arguments, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(fit_arguments("--data.root", str(flat), "--trainer.max_epochs", "1"))
    for number in range(20):
        draw(tmp_path / "others" / "red" / f"other_{number}.png", number, 0)
        draw(tmp_path / "others" / "blue" / f"other_{number}.png", 100 + number, 2)
    checkpoint = str(tmp_path / "runs" / "run" / "checkpoints" / "best.ckpt")
    verb = ["test", "--ckpt_path", checkpoint, "--data.root", str(tmp_path / "others")]
    with pytest.raises(CamtrainError, match=r"of other pictures than .*--data\.split_file null"):
        run(verb)
    capsys.readouterr()
    run([*verb, "--data.split_file", "null"])
    assert "test/acc1" in capsys.readouterr().out


@pytest.mark.nightly
def test_a_checkpoint_away_from_its_splits_keeps_those_it_was_given_or_warns(
    fit_arguments: Arguments, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CAMDataModule(root=flat, seed=5).write_split(tmp_path / "mine.csv")
    first = {s: set(p.paths) for s, p in CAMDataModule(root=flat, seed=5).sources.items()}
    given = ("--data.split_file", str(tmp_path / "mine.csv"), "--trainer.max_epochs", "1")
    run(fit_arguments("--data.root", str(flat), *given))
    away = tmp_path / "away.ckpt"
    shutil.copy(tmp_path / "runs" / "run" / "checkpoints" / "best.ckpt", away)
    seen = seen_by(monkeypatch)
    test = ["test", "--ckpt_path", str(away), "--trainer.accelerator", "cpu"]
    run(test)
    assert seen[-1] == first
    (tmp_path / "mine.csv").unlink()
    with pytest.warns(UserWarning, match=r"no split\.csv .* divided by --data\.seed 0"):
        run(test)


def test_a_file_of_splits_divides_as_it_says(flat: Path, tmp_path: Path) -> None:
    file = tmp_path / "some.csv"
    data = CAMDataModule(root=flat, seed=5)
    data.write_split(file)
    same = CAMDataModule(root=flat, seed=0, split_file=file)
    assert {s: list(p.paths) for s, p in same.sources.items()} == {
        s: list(p.paths) for s, p in data.sources.items()
    }


def several_labels(root: Path) -> Path:
    """A data folder whose list gives pictures no, one or two classes."""
    lines = ["path,label,split"]
    for number in range(48):
        channels = [channel for bit, channel in enumerate((0, 2)) if number >> bit & 1]
        names = ";".join({0: "red", 2: "blue"}[channel] for channel in channels)
        split = "val" if number % 12 > 7 else "test" if number % 12 > 5 else "train"
        draw(root / f"{number}.png", number, *channels)
        lines.append(f"{number}.png,{names},{split}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


def test_several_labels_are_trained_and_measured(
    fit_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = several_labels(tmp_path / "several")
    source = ("--data.source", "csv", "--data.root", str(root))
    run(fit_arguments(*source, "--model.task", "multilabel", "--model.lr", "0.01"))
    folder = tmp_path / "runs" / "run"
    with (folder / "metrics.csv").open() as lines:
        assert {"val/map", "val/loss"} < set(next(csv.reader(lines)))
    assert "test/map" in capsys.readouterr().out
    predictor = camtrain.load(folder / "model.safetensors")
    assert predictor.net.task == "multilabel"
    assert predictor.net.class_names == ("blue", "red")
    assert len(list((folder / "cams").iterdir())) == 4  # three epochs and the test
    run(["test", "--ckpt_path", str(folder / "checkpoints" / "best.ckpt")])
    assert "test/map" in capsys.readouterr().out


def test_batches_of_several_labels_are_multi_hot(tmp_path: Path) -> None:
    data = CAMDataModule("csv", several_labels(tmp_path), size=32, workers=0, batch_size=4)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert data.datasets["val"].labels.shape == (16, 2)


def test_several_labels_cannot_be_balanced(fit_arguments: Arguments, tmp_path: Path) -> None:
    root = several_labels(tmp_path / "several")
    given = ("--data.source", "csv", "--data.root", str(root), "--model.task", "multilabel")
    with pytest.raises(
        CamtrainError, match=r"sampler must be shuffle .* several labels or none, got b"
    ):
        run(fit_arguments(*given, "--data.sampler", "balanced"))
    assert not (tmp_path / "runs" / "run" / "config.yaml").exists()


def test_several_labels_need_a_network_for_them(fit_arguments: Arguments, tmp_path: Path) -> None:
    root = several_labels(tmp_path / "several")
    with pytest.raises(CamtrainError, match=r"several labels each, or none.*give --model\.task m"):
        run(fit_arguments("--data.source", "csv", "--data.root", str(root)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "zip"}, "must be one of folder, csv, imagenet"),
        ({"source": "cub"}, r"The source cub needs a data folder, got none; give --data\.root"),
        ({"split_file": "nowhere.csv"}, "The file of splits nowhere.csv does not exist"),
        ({"source": "wsol", "metadata": "nowhere"}, "must hold train, val or test with image_ids"),
    ],
)
def test_bad_sources_are_refused(settings: dict[str, Any], message: str, flat: Path) -> None:
    root = None if settings.get("source") == "cub" else flat
    with pytest.raises(CamtrainError, match=message):
        _ = CAMDataModule(**{"root": root, **settings}).sources
