"""fit, validate and test from the command line: what they write, and what they refuse."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import camtrain
from camtrain.cli import main
from camtrain.data import PreparedDataset, read_image, resize
from camtrain.training import CAMDataModule
from camtrain.training.cli.main import main as run
from camtrain.training.module import CAMModule
from camtrain.training.run.writer import RunWriter
from tests.conftest import everyday
from tests.training.conftest import quiet_trainer
from tests.training.run.wandb_file import history

Arguments = Callable[..., list[str]]


def test_a_run_writes_everything_and_the_bundle_predicts(
    fit_arguments: Arguments, tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_arguments("--model.lr", "0.01", "--trainer.max_epochs", "4")) == 0
    folder = tmp_path / "runs" / "run"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    seen = {f"cams/epoch_{epoch:03d}.jpg" for epoch in range(5)}
    seen |= {f"report/epoch_{epoch:03d}.json" for epoch in range(5)}
    assert found == seen | {
        "cams/test.jpg",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "train_batch.jpg",
        "metrics.csv",
        "model.safetensors",
        "over_epochs.png",
        "report.html",
        "report/latest.json",
        "test/localization.json",
        "test/localization.png",
    }
    printed = capsys.readouterr().out
    assert "test/max_box_acc" in printed
    assert str(folder / "model.safetensors") in printed

    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert {"train/loss", "val/loss", "val/acc1", "val/max_box_acc"} < rows[0].keys()

    predictor = camtrain.load(folder / "model.safetensors")
    [prediction] = predictor(photographs / "test" / "red" / "0.png")
    assert set(prediction.names) == {"blue", "red"}
    assert prediction.heatmaps.shape == (2, 40, 56)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, best["state_dict"][f"net.{name}"]), name
    from_checkpoint = camtrain.load(folder / "checkpoints" / "best.ckpt")
    [again] = from_checkpoint(photographs / "test" / "red" / "0.png")
    assert again.scores == prediction.scores
    assert again.threshold == prediction.threshold


def test_the_bundle_computes_what_evaluation_computed(
    fit_arguments: Arguments, tmp_path: Path, photographs: Path
) -> None:
    run(fit_arguments("--data.resize_mode", "crop"))
    predictor = camtrain.load(tmp_path / "runs" / "run" / "model.safetensors")
    data = CAMDataModule(
        root=photographs, size=32, resize_mode="crop", mean=[0.5] * 3, std=[0.5] * 3
    )
    source = data.sources["val"]
    dataset = PreparedDataset(source, data.preprocessing)
    for index, prediction in enumerate(predictor(source.read(i).path for i in range(len(source)))):
        with torch.inference_mode():
            scores = predictor.net(dataset[index].image[None]).softmax(1)[0].sort(descending=True)
        assert prediction.scores == pytest.approx(tuple(scores.values.tolist()), abs=1e-6)


@pytest.mark.nightly
def test_the_same_seed_gives_the_same_numbers(fit_arguments: Arguments, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(fit_arguments("--name", name, "--data.augment", "imagenet"))
    metrics = [(tmp_path / "runs" / name / "metrics.csv").read_text() for name in ("a", "b")]
    assert metrics[0] == metrics[1]


def test_a_continued_run_equals_one_never_stopped(
    fit_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--data.augment", "light", "--model.dropout", "0.5", "--trainer.max_epochs", "3")
    run(fit_arguments(*more, "--name", "whole"))

    def stop(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(CAMModule, "on_train_batch_start", stop_in_epoch(2, stop))
        with pytest.raises(RuntimeError, match="power cut"):
            run(fit_arguments(*more, "--name", "cut"))
    run(fit_arguments(*more, "--name", "cut", "--ckpt_path", "last"))
    whole, cut = (
        torch.load(tmp_path / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "cut")
    )
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, cut["state_dict"][name]), name
    tables = [(tmp_path / "runs" / name / "metrics.csv").read_text() for name in ("whole", "cut")]
    assert tables[0] == tables[1]


def stop_in_epoch(epoch: int, stop: Callable[..., None]) -> Callable[..., None]:
    def hook(module: CAMModule, batch: object, batch_idx: int) -> None:
        if module.current_epoch == epoch and batch_idx == 1:
            stop()

    return hook


@pytest.mark.parametrize("verb", everyday(["validate", "test"], "test"))
def test_a_verb_takes_network_and_data_from_the_checkpoint(
    verb: str, fit_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(fit_arguments("--data.resize_mode", "pad"))
    checkpoint = tmp_path / "runs" / "run" / "checkpoints" / "best.ckpt"
    split = "val" if verb == "validate" else "test"

    def others() -> dict[Path, int]:
        """Times of all files but the results of the split."""
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in files if path.parent.name != split}

    before, fitted = others(), capsys.readouterr().out
    assert main([verb, "--ckpt_path", str(checkpoint), "--trainer.accelerator", "cpu"]) == 0
    assert before == others()
    scores = capsys.readouterr().out
    assert "acc1" in scores
    if verb == "test":
        assert table_of(scores) == table_of(fitted)


def test_a_network_of_the_paper_sees_bgr_from_training_to_prediction(
    fit_arguments: Arguments, tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model.neck", "[1024]", "--model.backbone_args", '{"width": 0.125}')
    backbone = ("--model.backbone", "camtrain/vgg16-cam")
    run(fit_arguments(*backbone, *options))
    fitted = capsys.readouterr().out
    folder = tmp_path / "runs" / "run"
    predictor = camtrain.load(folder / "model.safetensors")
    assert predictor.net.neck.conv1.groups == 2
    preprocessing = predictor.preprocessing
    assert preprocessing.channel_order == "bgr"
    assert [round(255 * value) for value in preprocessing.mean] == [104, 117, 123]
    checkpoint = str(folder / "checkpoints" / "best.ckpt")
    assert main(["test", "--ckpt_path", checkpoint, "--trainer.accelerator", "cpu"]) == 0
    assert table_of(capsys.readouterr().out) == table_of(fitted)

    pixels = read_image(photographs / "test" / "red" / "0.png")
    images = resize(pixels, preprocessing).flip(0) - torch.tensor([104.0, 117, 123])[:, None, None]
    with torch.inference_mode():
        scores = predictor.net(images[None]).softmax(1)[0].sort(descending=True).values
    [prediction] = predictor(photographs / "test" / "red" / "0.png")
    assert prediction.scores == pytest.approx(scores.tolist(), abs=1e-5)


def table_of(text: str) -> list[list[str]]:
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("test/")]
    assert len(rows) >= 15  # and one more where a threshold was calibrated
    return rows


def test_a_fast_run_writes_nothing(fit_arguments: Arguments, tmp_path: Path) -> None:
    run(fit_arguments("--trainer.fast_dev_run", "true"))
    assert not (tmp_path / "runs").exists()


def test_an_interrupt_ends_with_130_and_a_usable_run(
    fit_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = stop_in_epoch(1, interrupt)
    monkeypatch.setattr(CAMModule, "on_train_batch_start", hook)
    assert main(fit_arguments()) == 130
    camtrain.load(tmp_path / "runs" / "run" / "model.safetensors")


@pytest.mark.nightly
def test_wandb_runs_offline_without_a_question(
    fit_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(fit_arguments("--logger", "wandb"))
    pytest.importorskip("wandb").teardown()  # its service writes the file in its own time
    [folder] = (tmp_path / "runs" / "run" / "wandb").glob("offline-run-*")
    assert f"wandb sync {folder}" in capsys.readouterr().out
    assert len(list((folder / "files" / "media" / "images" / "val").glob("cams_*.jpg"))) > 0
    rows = history(next(folder.glob("*.wandb")))
    steps = [
        row["trainer/global_step"] for row in rows if any(n.startswith("val/cams") for n in row)
    ]
    assert steps == ["0", "1", "3"]
    assert {"train/loss", "val/acc1", "test/acc1"} < {name for row in rows for name in row}


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def without_pictures_of_red(root: Path) -> None:
    for path in (root / "train" / "red").iterdir():
        path.unlink()


def with_a_green_class_in_val(root: Path) -> None:
    shutil.copytree(root / "val" / "red", root / "val" / "green")


def latin_1_config(root: Path) -> None:
    (root.parent / "latin.yaml").write_bytes(
        "# Caf\u00e9\ndata:\n  root: caf\u00e9".encode("latin-1")
    )


MISTAKES = {
    "no folder": (shutil.rmtree, [], "does not exist"),
    "no images": (empty, [], "no images"),
    "empty class": (without_pictures_of_red, [], "red"),
    "unknown class": (with_a_green_class_in_val, [], "green"),
    "unknown backbone": (None, ["--model.backbone", "resnet19"], "resnet18"),
    "unknown cut": (
        None,
        [
            *("--model.backbone", "torchvision/resnet18", "--model.weights", "null"),
            *("--model.backbone_args", "{}", "--model.cut", "layer7"),
        ],
        "layer4",
    ),
    "no weights file": (None, ["--model.weights", "nowhere.pth"], "nowhere.pth"),
    "wrong monitor": (None, ["--monitor", "val/accuracy"], "val/acc1"),
    # Before: written there; the second, into the folder of all runs.
    "name outside": (
        None,
        ["--name", ".."],
        "--name must be that of a folder in runs_dir, got '..'",
    ),
    "name of all": (None, ["--name", "a/.."], "must be that of a folder in runs_dir, got 'a/..'"),
    "absolute name": (
        None,
        ["--name", "/tmp/x"],
        "must be that of a folder in runs_dir, got '/tmp/x",
    ),
    # Before: a traceback of UnicodeDecodeError.
    "latin-1": (
        latin_1_config,
        ["--config", "latin.yaml"],
        "latin.yaml, line 1: the text must be UTF-8",
    ),
}


@pytest.mark.filterwarnings("ignore:.* boxes are of no picture")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    mistake: str,
    fit_arguments: Arguments,
    tmp_path: Path,
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare, more, told = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    if prepare is not None:
        prepare(photographs)
    assert main(fit_arguments(*more)) == 2
    error = capsys.readouterr().err
    [line] = [line for line in error.splitlines() if line.startswith("camtrain: error: ")]
    assert told in line
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_weights_of_another_architecture_are_refused(
    fit_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = camtrain.create_model("camtrain/digits", 2, backbone_args={"width": 2}, neck=())
    torch.save(other.state_dict(), tmp_path / "other.pth")
    assert main(fit_arguments("--model.weights", str(tmp_path / "other.pth"))) == 2
    error = capsys.readouterr().err
    assert "shapes differ: conv1.weight (2, 3, 3, 3), (4, 3, 3, 3) expected" in error
    assert not (tmp_path / "runs").exists()


TYPOS = {
    "in the config": (["--config", "typo.yaml"], "did you mean model.backbone"),
    "as an option": (["--model.bakbone", "vgg16"], "did you mean model.backbone"),
    "a word for a number": (["--model.lr", "fast"], "--model.lr must be a number, got fast"),
    "no such config": (["--config", "nowhere.yaml"], "nowhere.yaml"),
}


@pytest.mark.parametrize("typo", TYPOS)
def test_a_typo_is_one_line_with_the_nearest_option(
    typo: str,
    fit_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("typo.yaml").write_text("model:\n  bakbone: vgg16\n")
    more, told = TYPOS[typo]
    with pytest.raises(SystemExit) as exit_:
        main([*fit_arguments(), *more])
    assert exit_.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("camtrain: error: ")
    assert told in line
    assert not Path("runs").exists()


def test_a_run_folder_in_use_is_refused(
    fit_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "runs" / "run" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.touch()
    assert main(fit_arguments()) == 2
    assert "is not empty" in capsys.readouterr().err
    assert os.listdir(precious.parent) == ["precious.txt"]


def test_overwriting_waits_until_the_new_run_can_begin(
    fit_arguments: Arguments, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    fitted()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(fit_arguments("--overwrite", "--monitor", "val/accuracy")) == 2
    assert main(fit_arguments("--overwrite", "true", "--model.backbone", "resnet19")) == 2
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_overwriting_keeps_the_checkpoint_it_is_told_to_start_from(
    fit_arguments: Arguments,
    fitted: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fitted()
    checkpoint = tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt"
    assert main(fit_arguments("--overwrite", "--ckpt_path", str(checkpoint))) == 2
    assert "--overwrite would delete" in capsys.readouterr().err
    assert checkpoint.is_file()
    assert main(fit_arguments("--overwrite", "--ckpt_path", "nowhere.ckpt")) == 2
    assert "nowhere.ckpt does not exist" in capsys.readouterr().err
    assert main(fit_arguments("--overwrite")) == 0


def test_what_a_verb_is_told_goes_before_the_checkpoint(
    fitted: Callable[..., Path],
    tmp_path: Path,
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fitted()
    checkpoint = str(tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt")
    told = ("--data.resize_mode", "crop", "--trainer.accelerator", "cpu")
    capsys.readouterr()
    assert main(["test", "--ckpt_path", checkpoint, *told]) == 0
    printed = {row[0]: row[-2:] for row in table_of(capsys.readouterr().out)}

    module = CAMModule.load_from_checkpoint(checkpoint, map_location="cpu")
    grey = {"mean": [0.5] * 3, "std": [0.5] * 3}
    data = CAMDataModule(root=photographs, size=32, workers=0, resize_mode="crop", **grey)
    [scores] = quiet_trainer().test(module, data, verbose=False)
    for name in ("test/acc1", "test/loc_gt_known", "test/max_box_acc"):
        assert printed[name] == [f"{100 * scores[name]:.2f}", "%"]


@pytest.mark.nightly
def test_a_moved_run_goes_on_with_its_best_epoch(
    fit_arguments: Arguments,
    fitted: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted("--model.lr", "0.01", "--trainer.max_epochs", "4")
    shutil.move(tmp_path / "runs" / "run", tmp_path / "runs" / "moved")
    bundle = tmp_path / "runs" / "moved" / "model.safetensors"
    before = bundle.read_bytes()
    update_best = RunWriter._update_best

    def best_is_known(writer: RunWriter, row: dict[str, float]) -> None:
        assert writer.best is not None
        assert writer.best["epoch"] <= 4
        update_best(writer, {**row, "val/acc1": 0.0})

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "_update_best", best_is_known)
        more = ("--name", "moved", "--ckpt_path", "last", "--trainer.max_epochs", "5")
        run(fit_arguments("--model.lr", "0.01", *more))
    assert bundle.read_bytes() == before


@pytest.mark.nightly
def test_somebody_s_own_checkpoints_do_not_choose_the_bundle(
    fit_arguments: Arguments, tmp_path: Path
) -> None:
    config = tmp_path / "own.yaml"
    kind = "pytorch_lightning.callbacks.ModelCheckpoint"
    own = f"{{class_path: {kind}, init_args: {{dirpath: {tmp_path / 'own'}}}}}"
    config.write_text(f"trainer:\n  callbacks: [{own}]\n")
    run(
        [*fit_arguments("--model.lr", "0.01", "--trainer.max_epochs", "4"), "--config", str(config)]
    )
    folder = tmp_path / "runs" / "run"
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, best["state_dict"][f"net.{name}"]), name


@pytest.mark.nightly
def test_validating_every_other_epoch_is_enough(fit_arguments: Arguments, tmp_path: Path) -> None:
    more = ("--trainer.check_val_every_n_epoch", "2", "--trainer.max_epochs", "4")
    assert main(fit_arguments(*more)) == 0
    with open(tmp_path / "runs" / "run" / "metrics.csv") as file:
        assert [row["val/acc1"] != "" for row in csv.DictReader(file)] == [False, True] * 2


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_measuring_needs_a_checkpoint(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb]) == 2
    assert "give --ckpt_path runs/NAME" in capsys.readouterr().err


def test_the_config_of_a_run_repeats_it(fitted: Callable[..., Path], tmp_path: Path) -> None:
    fitted()
    folder = tmp_path / "runs" / "run"
    before = (folder / "metrics.csv").read_text()
    config = (folder / "config.yaml").rename(tmp_path / "again.yaml")
    assert main(["fit", "--config", str(config), "--runs_dir", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "run" / "metrics.csv").read_text() == before


def test_a_checkpoint_of_somebody_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    assert main(["test", "--ckpt_path", str(tmp_path / "a.ckpt")]) == 2
    assert "is not a camtrain checkpoint" in capsys.readouterr().err
    assert main(["test", "--ckpt_path", str(tmp_path / "b.ckpt")]) == 2
    assert "does not exist" in capsys.readouterr().err
