"""The commonest mistakes: each is one sentence and exit status 2, and nothing is written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from camtrain.cli import main
from tests.conftest import fit_of


class Mistake(NamedTuple):
    """A command and a part of the sentence that it must give.

    Words of the command with braces are filled in: ``{photos}`` is a data folder, ``{run}`` the
    folder of a finished training on it, ``{other}`` a data folder of other classes, ``{empty}`` an
    empty folder, ``{damaged}`` a folder whose one picture is cut off. ``fit`` alone stands for the
    arguments of a training of seconds.
    """

    command: str
    sentence: str


BUNDLE = "{run}/model.safetensors"
BEST = "{run}/checkpoints/best.ckpt"

MISTAKES = {
    # A word that no option knows.
    "verb": Mistake("train --data.root photos", "did you mean fit?"),
    "option": Mistake("fit --model.bakbone vgg16", "did you mean model.backbone"),
    "backbone": Mistake("fit --model.backbone resnet19", "resnet18"),
    "cut": Mistake("fit --model.cut conv9", "conv3"),
    "optimizer": Mistake("fit --model.optimizer adamm", "adam"),
    "augmentation": Mistake("fit --data.augment flipp", "none, flip, light"),
    "monitor": Mistake("fit --monitor val/accuracy", "val/acc1"),
    "logger": Mistake(
        "fit --logger wand", "--logger must be one of wandb, mlflow, tensorboard, csv, none"
    ),
    "format": Mistake(f"export {BEST} --format tflite", "safetensors, onnx, pt2"),
    "no format": Mistake(f"export {BEST}", "--format"),
    "network": Mistake("models zzz", "none of"),
    # A value of the wrong kind.
    "mean": Mistake(
        "fit --data.mean 0.5,0.5,0.5", "--data.mean must be a list of numbers such as [0.5, 0.5]"
    ),
    "neck": Mistake(
        "fit --model.neck abc", "--model.neck must be a list of integers such as [64, 64]"
    ),
    "rate": Mistake("fit --model.lr fast", "--model.lr must be a number, got fast"),
    "negative rate": Mistake("fit --model.lr -1", "lr must be above 0"),
    "batch size": Mistake("fit --data.batch_size 0", "batch_size must be at least 1"),
    "fraction": Mistake("fit --data.val_fraction 2", "val_fraction"),
    "epochs": Mistake("fit --trainer.max_epochs -3", "--trainer.max_epochs must be"),
    "precision": Mistake("fit --trainer.precision 8", "--trainer.precision must be one of"),
    "devices": Mistake("fit --trainer.devices -5", "--trainer.devices"),
    "interval": Mistake(
        "fit --trainer.val_check_interval 999", "--trainer.val_check_interval must be at most the 2"
    ),
    "accelerator": Mistake("fit --trainer.accelerator gpu", "--trainer.accelerator auto"),
    "size": Mistake("fit --data.size 2", "--data.size"),
    # Numbers that disagree: before, tracebacks of torch, or the name of another option.
    "size 1": Mistake("fit --data.size 1", "--data.size (1, 1) is too small for camtrain/digits"),
    "size of a trial run": Mistake(
        "fit --data.size 1 --trainer.fast_dev_run true", "--data.size (1, 1) is too small"
    ),
    "BatchNorm": Mistake(
        "fit --model.backbone timm/test_resnet --model.backbone_args {{}} --model.weights null "
        "--data.size 16 --data.batch_size 1",
        "--data.batch_size 1 is too small for BatchNorm, which sees one cell of one picture",
    ),
    "three means, one channel": Mistake(
        "fit --model.in_chans 1 --data.mean [0.5,0.5,0.5] --data.std [1,1,1]",
        "--data.mean must hold one number for each of the --model.in_chans 1 channels of the "
        "network, got 3",
    ),
    "one mean, three channels": Mistake(
        "fit --data.mean [0.5] --data.std [1]",
        "--data.mean must hold one number for each of the --model.in_chans 3 channels of the "
        "network, got 1",
    ),
    "one mean without std": Mistake("fit --data.mean [0.5]", "mean and std must be given together"),
    "port": Mistake(f"demo {BUNDLE} --port 99999", "--port must lie in 1..65535, got 99999"),
    "host": Mistake(f"demo {BUNDLE} --host 192.0.2.1", "--host and --port must be an address"),
    # A path that is not there, or not what it should be.
    "no data": Mistake("check-data", "camtrain check-data FOLDER"),
    "no data for shards": Mistake("shards --to out", "camtrain shards FOLDER"),
    "data": Mistake("check-data {empty}/photoos", "does not exist"),
    "empty data": Mistake("check-data {empty}", "holds no images"),
    "damaged validation": Mistake("fit --data.root {damaged}", "--data.allow_damaged true"),
    "config": Mistake("fit --config nowhere.yaml", "nowhere.yaml"),
    "weights": Mistake("fit --model.weights nowhere.pth", "--model.weights must be"),
    "checkpoint": Mistake("test --ckpt_path {run}/best.ckpt", "does not exist"),
    "no checkpoint": Mistake("test", "--ckpt_path"),
    "folder of no run": Mistake("test --ckpt_path {photos}", "is not the folder of a run"),
    "bundle without data": Mistake(f"test --ckpt_path {BUNDLE}", "give --data.root FOLDER"),
    "bundle to continue": Mistake(f"fit --ckpt_path {BUNDLE}", f"--model.weights {BUNDLE}"),
    "not a checkpoint": Mistake("test --ckpt_path {photos}/boxes.csv", "is not a camtrain"),
    "bundle": Mistake("predict nowhere.safetensors {photos}/test --output out", "nowhere"),
    "no run to predict": Mistake(
        "predict {photos} {photos}/test --output out", "is not the folder of a run"
    ),
    "no run to export": Mistake("export {photos} --format pt2", "is not the folder of a run"),
    "no run to show": Mistake("demo {photos}", "is not the folder of a run"),
    "picture": Mistake(f"predict {BUNDLE} nowhere.jpg --output out", "nowhere.jpg does not exist"),
    "no pictures": Mistake(f"predict {BUNDLE} {{empty}} --output out", "holds no pictures"),
    "pattern": Mistake(f"predict {BUNDLE} {{photos}}/*.gif --output out", "No file fits"),
    "a picture among others": Mistake(
        "predict nowhere.onnx {photos}/test http://a.org/b.jpg --output out", "is an address"
    ),
    "teacher": Mistake("fit --model.teacher nowhere.safetensors", "nowhere.safetensors"),
    # A place where nothing can be written.
    "runs_dir": Mistake("fit --runs_dir /proc/x", "/proc/x"),
    "output of export": Mistake(f"export {BEST} --format onnx --output /proc/m.onnx", "/proc"),
    "output of predict": Mistake(f"predict {BUNDLE} {{photos}}/test --output /proc/x", "/proc/x"),
    "folder in use": Mistake("fit --runs_dir {run}/.. --name run", "--ckpt_path last"),
    # What does not belong together.
    "other classes": Mistake(f"fit --data.root {{other}} --ckpt_path {BEST}", "'green'"),
    "teacher of other classes": Mistake(
        f"fit --data.root {{other}} --model.teacher {BUNDLE}", "'green'"
    ),
    "pictures of other classes": Mistake(f"test --ckpt_path {BEST} --data.root {{other}}", "green"),
    "option of training": Mistake(f"test --ckpt_path {BEST} --model.lr 5", "comes too late"),
    "pool of the features": Mistake(
        f"test --ckpt_path {BEST} --model.pool gmp", "--model.pool gmp comes too late"
    ),
    "option of another verb": Mistake("test --ckpt_path {run} --name x", "would ignore it"),
    # What is found out when the training begins.
    "options of the optimizer": Mistake("fit --model.opt_args {{'betaz':1}}", "betaz"),
    "training without end": Mistake("fit --trainer.max_epochs -1", "--trainer.max_epochs or"),
    "half precision": Mistake("fit --trainer.precision 16-true", "bf16-mixed or 16-mixed"),
    "nothing to continue": Mistake("fit --ckpt_path last", "--ckpt_path last"),
}


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory,
    photographs_once: Path,
    fitted_once: Callable[..., Path],
) -> dict[str, Path]:
    """The folders that the commands name."""
    folder = tmp_path_factory.mktemp("mistakes")
    empty, other, damaged = (folder / name for name in ("empty", "other", "damaged"))
    empty.mkdir()
    for split in ("train", "val"):
        shutil.copytree(photographs_once / split, other / split)
        (other / split / "red").rename(other / split / "green")
    shutil.copytree(photographs_once, damaged)
    picture = damaged / "val" / "red" / "0.jpg"
    Image.new("RGB", (64, 64), "red").save(picture)
    picture.write_bytes(picture.read_bytes()[:400])
    run = fitted_once()
    places = {"photos": photographs_once, "empty": empty, "other": other, "damaged": damaged}
    return {**places, "run": run}


@pytest.mark.filterwarnings("ignore:.* boxes are of no picture")
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    name: str,
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    verb, *words = MISTAKES[name].command.split()
    args = [verb, *(word.format(**places) for word in words)]
    if verb == "fit":
        args = [*fit_of(places["photos"], Path("runs")), *args[1:]]
    try:
        status: object = main(args)
    except SystemExit as exit_:
        status = exit_.code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("camtrain")]
    assert status == 2
    assert "Traceback" not in error
    assert [line.startswith("camtrain: error: ") for line in lines] == [True]
    assert MISTAKES[name].sentence.format(**places) in lines[0]
    assert list(tmp_path.rglob("*")) == []
