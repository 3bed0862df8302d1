"""An offline W&B run, read back from its own file: pictures, boxes, rows, steps."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from PIL import Image
from pytorch_lightning.loggers import WandbLogger

from camtrain.header import read_checkpoint_content
from camtrain.inference.bundle import read_network
from camtrain.training import CAMDataModule, CAMLogger
from camtrain.training.cli.main import main as run
from camtrain.training.run.loggers import finish_loggers
from camtrain.training.run.wandb_run import start_wandb
from camtrain.training.watch import sinks
from camtrain.training.watch.sinks import WandbSink
from tests.conftest import fit_of
from tests.training.conftest import quiet_trainer, small_module
from tests.training.run.wandb_file import config, history, records, summary
from tests.training.watch.snapshots import snapshot

Arguments = Callable[..., list[str]]
WANDB = ("--logger", "wandb")


@contextmanager
def offline_in(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_DATA_DIR", str(folder / "wandb_data"))
        yield
        wandb.finish()


@pytest.fixture(autouse=True)
def offline(tmp_path: Path) -> Iterator[None]:
    with offline_in(tmp_path):
        yield


def parts_of(folder: Path) -> list[Path]:
    """The folders of a run, which has one for each time it was begun."""
    return sorted((folder / "wandb").glob("offline-run-*"))


def rows_of(part: Path) -> list[dict[str, Any]]:
    """What was logged, row by row, with the nested keys of W&B."""
    [file] = part.glob("*.wandb")
    return [{name: json.loads(value) for name, value in row.items()} for row in history(file)]


def with_pictures(part: Path) -> list[dict[str, Any]]:
    return [row for row in rows_of(part) if "val/cams/_type" in row]


def table_of(part: Path, row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    stored = json.loads((part / "files" / row[f"{name}/path"]).read_text())
    return [dict(zip(stored["columns"], line, strict=True)) for line in stored["data"]]


@pytest.fixture(scope="session")
def trained(photographs_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The only part of a run of two epochs; only to be read."""
    folder = tmp_path_factory.mktemp("wandb")
    more = ("--cams.num_images", "8", "--cams.log_mistakes", "true", "--model.lr", "1e-6")
    more += ("--trainer.log_every_n_steps", "1")
    with offline_in(folder):
        run(fit_of(photographs_once, folder, *WANDB, *more))
    [part] = parts_of(folder / "run")
    return part


def test_pictures_and_scores_of_an_epoch_are_one_row(trained: Path) -> None:
    rows = with_pictures(trained)
    assert [row["trainer/global_step"] for row in rows] == [0, 1, 3]
    for row in rows[1:]:
        assert {"val/loss", "val/acc1", "val/loc_gt_known", "val/max_box_acc", "epoch"} <= set(row)
        assert {"val/confusion_table/path", "val/classes/path", "val/reliability/path"} <= set(row)
        assert sum(row["val/cam_entropy_histogram/values"]) == 8
        assert len(row["val/cam_entropy_histogram/bins"]) == 21
    every = [row["trainer/global_step"] for row in rows_of(trained) if "train/loss" in row]
    assert every == [1, 3]


def test_epochs_count_from_1_in_every_row(trained: Path) -> None:
    epochs = [row["epoch"] for row in rows_of(trained) if "train/loss" in row or "val/loss" in row]
    assert epochs == [1, 1, 2, 2]
    [test] = [row for row in rows_of(trained) if "test/acc1" in row]
    best = read_checkpoint_content(trained.parents[1] / "checkpoints" / "best.ckpt")
    assert test["epoch"] == best["epoch"] + 1
    assert test["test/cams/count"] == 8


def test_steps_have_loss_rate_and_speed(trained: Path) -> None:
    rows = [row for row in rows_of(trained) if "train/loss_step" in row]
    assert [row["trainer/global_step"] for row in rows] == [0, 1, 2, 3]
    assert [row["epoch"] for row in rows] == [1, 1, 2, 2]
    assert all(row["train/pictures_per_second"] > 0 for row in rows)
    assert rows[0]["train/lr"] == pytest.approx(5e-7)  # half of the warm-up
    means = [row["train/loss"] for row in rows_of(trained) if "train/loss" in row]
    assert means[0] == pytest.approx(sum(row["train/loss_step"] for row in rows[:2]) / 2, rel=1e-5)


def test_config_and_summary_tell_what_was_run_and_what_was_best(trained: Path) -> None:
    [file] = trained.glob("*.wandb")
    settings, values = config(file), summary(file)
    assert json.loads(settings["max_epochs"]) == 2
    assert json.loads(settings["monitor"]) == "val/acc1"
    assert json.loads(settings["precision"]) == "32-true"
    assert json.loads(settings["pictures"]) == {"train": 16, "val": 8, "test": 8}
    best = read_checkpoint_content(trained.parents[1] / "checkpoints" / "best.ckpt")
    assert json.loads(values["best/epoch"]) == best["epoch"] + 1
    scores = read_network(trained.parents[1] / "model.safetensors").description.scores
    assert json.loads(values["best/val/acc1"]) == pytest.approx(scores["val/acc1"])


def test_pictures_have_captions_and_boxes_in_their_own_pixels(trained: Path) -> None:
    for row in with_pictures(trained):
        assert row["val/cams/_type"] == "images/separated"
        assert row["val/cams/count"] == len(row["val/cams/captions"]) == 8
        width, height = row["val/cams/width"], row["val/cams/height"]
        assert max(width, height) <= 512
        for name in row["val/cams/filenames"]:
            with Image.open(trained / "files" / name) as picture:
                assert picture.size == (width, height)
        for caption, boxes in zip(row["val/cams/captions"], row["val/cams/all_boxes"], strict=True):
            assert caption.startswith(("true: red ", "true: blue "))
            truth, prediction = (
                json.loads((trained / "files" / boxes[kind]["path"]).read_text())
                for kind in ("truth", "prediction")
            )
            [true] = truth["box_data"]
            assert true["domain"] == "pixel"
            place = true["position"]
            # 24 x 20 of 56 x 40 pixels, at 256 along the longer side
            assert place["maxX"] - place["minX"] == pytest.approx(24 * 256 / 56, abs=1)
            assert place["maxY"] - place["minY"] == pytest.approx(20 * 256 / 56, abs=1)
            name = caption.split()[1]
            assert true["box_caption"] == truth["class_labels"][str(true["class_id"])] == name
            for found in prediction["box_data"]:
                assert found["box_caption"].startswith(f"{name} 0.")
                assert 0 <= found["position"]["minX"] < found["position"]["maxX"] <= width


def test_the_table_grows_by_a_row_per_picture_and_epoch(trained: Path) -> None:
    rows = with_pictures(trained)
    assert [row["val/cams_table/nrows"] for row in rows] == [8, 16, 24]
    assert [row["val/cams_table/increment_num"] for row in rows] == [0, 1, 2]
    assert len(rows[2]["val/cams_table/previous_increments_paths"]) == 2
    for epoch, row in enumerate(rows):
        lines = table_of(trained, row, "val/cams_table")
        assert [line["epoch"] for line in lines] == [epoch] * 8
        for line, caption in zip(lines, row["val/cams/captions"], strict=True):
            score = f"{line['score']:.2f}"
            assert f"true: {line['true']} " in caption
            assert f"predicted: {line['predicted']} {score}" in caption
            assert line["GT-known hit"] in (True, False)
            assert line["picture"].endswith(".png")


def test_the_rows_of_the_table_hold_pictures(trained: Path) -> None:
    """What is uploaded with the artifact of each epoch: the pictures are the same ones."""
    stored = []
    for path in (trained.parents[2] / "wandb_data").rglob("*"):
        if path.is_file() and path.read_bytes().startswith(b"{"):
            stored.append(json.loads(path.read_bytes()))
    tables = {one["data"][0][0]: one["data"] for one in stored if one.get("ncols") == 8}
    assert sorted(tables) == [0, 1, 2]
    assert len({line[2]["sha256"] for lines in tables.values() for line in lines}) == 8
    assert len({line[3]["sha256"] for lines in tables.values() for line in lines}) == 24


def test_classes_and_confusions_are_tables(trained: Path) -> None:
    row = with_pictures(trained)[1]
    classes = table_of(trained, row, "val/classes")
    assert [line["class"] for line in classes] == ["blue", "red"]
    assert [line["pictures"] for line in classes] == [4, 4]
    confusion = table_of(trained, row, "val/confusion_table")
    assert sum(line["nPredictions"] for line in confusion) == 8
    right = sum(x["nPredictions"] for x in confusion if x["Actual"] == x["Predicted"])
    assert right / 8 == pytest.approx(row["val/acc1"])


@pytest.mark.nightly
def test_mistakes_are_logged_by_choice(
    trained: Path, fit_arguments: Arguments, tmp_path: Path
) -> None:
    row = with_pictures(trained)[1]
    wrong = row["val/cam_mistakes/captions"]
    assert wrong
    assert all("(wrong) | box threshold 0." in caption for caption in wrong)
    run(fit_arguments(*WANDB, "--name", "without"))
    [part] = parts_of(tmp_path / "runs" / "without")
    assert not any("cam_mistakes" in name for row in rows_of(part) for name in row)


def test_a_resumed_training_goes_on_in_the_same_run(
    fit_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(fit_arguments(*WANDB, "--trainer.max_epochs", "1"))
    capsys.readouterr()
    run(fit_arguments(*WANDB, "--ckpt_path", "last"))
    first, second = parts_of(tmp_path / "runs" / "run")
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]
    [row] = with_pictures(second)
    assert row["trainer/global_step"] == 3
    assert row["val/cams_table/increment_num"] == 0  # an offline run cannot look the table up
    assert [line["epoch"] for line in table_of(second, row, "val/cams_table")] == [2] * 2
    assert (
        row["val/cams/captions"][0].split()[1]
        == with_pictures(first)[0]["val/cams/captions"][0].split()[1]
    )
    assert f"wandb sync {first} {second}" in capsys.readouterr().out


def test_the_best_bundle_becomes_an_artifact_once(trained: Path) -> None:
    [file] = trained.glob("*.wandb")
    found = [record.artifact for record in records(file) if record.artifact.type == "model"]
    [artifact] = found
    assert artifact.name == f"model-{trained.name.rpartition('-')[2]}"
    assert set(artifact.aliases) == {"best", "latest"}
    metadata = json.loads(artifact.metadata)
    bundle = read_network(trained.parents[1] / "model.safetensors")
    assert {n: v for n, v in metadata.items() if n.startswith("val/")} == {
        n: pytest.approx(v) for n, v in bundle.description.scores.items() if n.startswith("val/")
    }
    assert "test/acc1" in metadata


def test_somebody_s_own_logger_gets_the_same(data: CAMDataModule, tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    logger._wandb_init.pop("anonymous", None)
    watcher = CAMLogger(num_images=2, dirpath=tmp_path / "cams")
    quiet_trainer(callbacks=[watcher], logger=logger, max_epochs=1).fit(small_module(), data)
    logger.experiment.finish()
    [part] = parts_of(tmp_path)
    assert [row["trainer/global_step"] for row in with_pictures(part)] == [0, 1]
    assert "val/acc1" in with_pictures(part)[1]


def test_a_thousand_classes_are_pairs_in_a_table(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    logger._wandb_init.pop("anonymous", None)
    names = tuple(f"class {number}" for number in range(1000))
    WandbSink(logger, log_mistakes=False).log(snapshot(1, names=names))
    logger.log_metrics({"val/acc1": 0.5}, 9)
    logger.experiment.finish()
    [part] = parts_of(tmp_path)
    [row] = with_pictures(part)
    assert row["trainer/global_step"] == 9
    pairs = table_of(part, row, "val/confusion")
    assert 0 < len(pairs) <= 500
    assert set(pairs[0]) == {"true", "predicted", "pictures", "part of the class"}
    assert len(table_of(part, row, "val/classes")) == 1000


@pytest.mark.nightly
def test_a_slow_service_loses_no_line_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs go on while W&B still logs the ones before."""
    original = wandb.sdk.wandb_run.Run.log_artifact

    def slow(*args: Any, **kwargs: Any) -> object:
        time.sleep(0.3)
        return original(*args, **kwargs)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log_artifact", slow)
    logger = start_wandb(tmp_path, "project")
    assert logger is not None
    sink = WandbSink(logger, log_mistakes=False)
    for epoch in range(4):
        sink.log(snapshot(epoch))
        logger.log_metrics({"val/acc1": 0.5}, 10 * epoch)
    finish_loggers([logger])
    [part] = parts_of(tmp_path)
    rows = with_pictures(part)
    lines = [[x["epoch"] for x in table_of(part, row, "val/cams_table")] for row in rows]
    assert lines == [[0] * 3, [1] * 3, [2] * 3, [3] * 3]
    assert [row["val/cams_table/increment_num"] for row in rows] == [0, 1, 2, 3]


def test_a_module_that_logs_nothing_loses_no_epoch(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    logger._wandb_init.pop("anonymous", None)
    sink = WandbSink(logger, log_mistakes=False)
    for epoch in range(3):
        sink.log(replace(snapshot(epoch), statistics=None))
    assert sink._table is not None
    assert sink._table.data == [[]] * 9  # memory does not grow with the epochs
    logger.experiment.finish()
    [part] = parts_of(tmp_path)
    assert [row["trainer/global_step"] for row in with_pictures(part)] == [0, 9, 19]


@pytest.mark.nightly
def test_the_table_of_another_run_is_not_continued(
    fit_arguments: Arguments, tmp_path: Path
) -> None:
    run(fit_arguments(*WANDB, "--trainer.max_epochs", "1"))
    checkpoint = str(tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt")
    run(fit_arguments(*WANDB, "--name", "other", "--ckpt_path", checkpoint))
    [part] = parts_of(tmp_path / "runs" / "other")
    [row] = with_pictures(part)
    assert row["val/cams_table/increment_num"] == 0
    assert row["val/cams_table/previous_increments_paths"] == []


def test_heatmaps_may_be_masks(tmp_path: Path) -> None:
    """Of five levels, over the picture alone, with zeros where a picture was padded."""
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    logger._wandb_init.pop("anonymous", None)
    shown = snapshot(0)
    WandbSink(logger, log_mistakes=False, masks=True).log(replace(shown, statistics=None))
    logger.experiment.finish()
    [part] = parts_of(tmp_path)
    [row] = with_pictures(part)
    names = {"1": "0.2 to 0.4", "2": "0.4 to 0.6", "3": "0.6 to 0.8", "4": "0.8 to 1.0"}
    [file] = part.glob("*.wandb")
    labels = json.loads(config(file)["_wandb"])["mask/class_labels"]
    assert labels["val/cams_wandb_delimeter_heatmap"]["value"] == names
    kept = zip(row["val/cams/all_masks"], row["val/cams/filenames"], shown.results, strict=True)
    for masks, name, result in kept:
        mask = np.asarray(Image.open(part / "files" / masks["heatmap"]["path"]))
        tile, overlay = shown.rows[result].picture_tile, shown.rows[result].true_tile
        with Image.open(part / "files" / name) as picture:
            assert picture.size == mask.shape[::-1]
            pixels = np.asarray(picture, float)[: tile.height, : tile.width]
        assert np.abs(pixels - tile).mean() < 0.7 * np.abs(pixels - overlay).mean()
        heatmap = shown.rows[result].tile_of(result.true.heatmap)
        expected = np.digitize(heatmap, [0.2, 0.4, 0.6, 0.8])
        part_of_tile = mask[: tile.height, : tile.width]
        assert (part_of_tile != expected).mean() < 0.02  # at the edges of a level
        assert set(np.unique(mask)) == {0, 1, 2, 3, 4}


def test_a_run_that_is_continued_online_continues_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B looks the table up in the summary of a resumed run."""
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    logger._wandb_init.pop("anonymous", None)
    run = logger.experiment
    WandbSink(logger, log_mistakes=False).log(snapshot(0))
    monkeypatch.setattr(type(run), "resumed", True)
    WandbSink(logger, log_mistakes=False).log(replace(snapshot(1), statistics=None))
    run.finish()
    [part] = parts_of(tmp_path)
    assert [row["val/cams_table/increment_num"] for row in with_pictures(part)] == [0, 1]


def test_only_public_names_of_wandb_are_used() -> None:
    text = Path(sinks.__file__).read_text()
    assert re.findall(r"(?<!self)\._(?!_)\w+", text) == []
