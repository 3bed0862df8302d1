"""The feature cache from the command line: refusals, continued runs, two processes."""

import csv
import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from camtrain.cli import main
from camtrain.training.cache import store
from camtrain.training.cli.main import main as run
from camtrain.training.module import CAMModule
from tests.by_two import run_by_two
from tests.conftest import everyday

Arguments = Callable[..., list[str]]
FROZEN = ("--model.freeze_backbone", "true", "--data.augment", "flip")


def last_state(tmp_path: Path, name: str) -> dict[str, torch.Tensor]:
    checkpoint = tmp_path / "runs" / name / "checkpoints" / "last.ckpt"
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("neck", "is_refilled"),
    everyday(itertools.product(("[]", "[4]"), (False, True)), ("[4]", True)),
)
def test_a_continued_run_equals_one_never_stopped(
    neck: str,
    is_refilled: bool,
    fit_arguments: Arguments,
    tmp_path: Path,
    features_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = (*FROZEN, "--model.neck", neck, "--model.dropout", "0.4", "--trainer.max_epochs", "4")
    run(fit_arguments(*more, "--name", "whole"))

    def cut(module: CAMModule, batch: object, batch_idx: int) -> None:
        if module.current_epoch == 2 and batch_idx == 1:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(CAMModule, "on_train_batch_start", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run(fit_arguments(*more, "--name", "cut"))
    if is_refilled:
        shutil.rmtree(features_folder)
    run(fit_arguments(*more, "--name", "cut", "--ckpt_path", "last"))
    whole, found = last_state(tmp_path, "whole"), last_state(tmp_path, "cut")
    for name, tensor in whole.items():
        assert torch.equal(tensor, found[name]), name
    tables = [(tmp_path / "runs" / name / "metrics.csv").read_text() for name in ("whole", "cut")]
    assert tables[0] == tables[1]


@pytest.mark.nightly
def test_measuring_afterwards_gives_the_scores_of_the_run(
    fit_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_arguments(*FROZEN, "--data.cache_features", "true")) == 0
    fitted = re.findall(r"test/\w+ .*", capsys.readouterr().out)
    checkpoint = str(tmp_path / "runs" / "run" / "checkpoints" / "best.ckpt")
    assert main(["test", "--ckpt_path", checkpoint, "--trainer.accelerator", "cpu"]) == 0
    assert re.findall(r"test/\w+ .*", capsys.readouterr().out) == fitted
    assert main(["validate", "--ckpt_path", checkpoint, "--trainer.accelerator", "cpu"]) == 0
    printed = dict(re.findall(r"val/(\w+) .*? ([\d.]+)", capsys.readouterr().out))
    logged = max(rows_of(tmp_path / "runs" / "run"), key=lambda row: float(row["val/acc1"]))
    assert float(printed["loss"]) == pytest.approx(float(logged["val/loss"]), abs=1e-3)


UNFIT: dict[str, tuple[list[str], str]] = {
    "augmentation": (
        [*FROZEN[:2], "--data.augment", "light", "--data.cache_features", "true"],
        "give --data.augment flip or none, or leave cache_features out",
    ),
    "trained backbone": (
        ["--data.augment", "none", "--data.cache_features", "true"],
        "give --model.freeze_backbone true",
    ),
    "solver": (
        [*FROZEN[:2], "--data.augment", "light", "--model.head_solver", "svm"],
        "head_solver svm works on kept features",
    ),
    "disk": ([*FROZEN, "--data.cache_features", "true"], "give --data.cache_dir on another disk"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_refusal_is_one_sentence_and_nothing_is_written(
    what: str,
    fit_arguments: Arguments,
    fitted: Callable[..., Path],
    tmp_path: Path,
    features_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fitted()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    if what == "disk":
        tiny = SimpleNamespace(total=10_000, used=9_000, free=1_000)
        monkeypatch.setattr(store.shutil, "disk_usage", lambda _: tiny)
    more, message = UNFIT[what]
    assert main(fit_arguments(*more, "--overwrite")) == 2
    error = capsys.readouterr().err
    [line] = [line for line in error.splitlines() if line.startswith("camtrain: error: ")]
    assert message in line
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    assert not features_folder.exists()


@pytest.mark.nightly
@pytest.mark.parametrize("model", [[], ["--model.head_solver", "logistic"]], ids=["sgd", "solved"])
def test_two_processes_fill_one_cache(
    model: list[str], fit_arguments: Arguments, tmp_path: Path, features_folder: Path
) -> None:
    tables: dict[str, list[dict[str, str]]] = {}
    for name, cache in (("plain", "false"), ("filled", "true"), ("kept", "true")):
        if model and cache == "false":
            continue
        more = (*FROZEN, *model, "--data.cache_features", cache, "--data.batch_size", "4")
        two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
        printed = "".join(run_by_two(main, fit_arguments(*more, *two, "--name", name)))
        assert printed.count("filled in") == (2 if name == "filled" else 0)
        assert printed.count("of an earlier run") == (2 if name == "kept" else 0)
        tables[name] = rows_of(tmp_path / "runs" / name)
    assert all(store.is_complete(folder) for folder in features_folder.iterdir())
    assert len(list(features_folder.iterdir())) == 2
    assert tables["kept"] == tables["filled"]
    for found, expected in zip(tables["filled"], tables.get("plain", []), strict=False):
        for score in ("train/loss", "val/loss", "val/acc1"):
            assert float(found[score]) == pytest.approx(float(expected[score]), rel=1e-3), score
