"""Law 8: killed at any moment and continued equals never killed, bit for bit."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from camtrain import cli
from tests.conftest import fit_of
from tests.training.run import killing
from tests.training.run.killing import run_in_child

Arguments = Callable[..., list[str]]

# Two workers, random augmentation, dropout, BatchNorm, accumulated gradients, 5 batches per epoch
# of which the last is smaller.
HARD = (
    *("--data.workers", "2", "--data.batch_size", "3", "--data.augment", "imagenet"),
    *("--model.dropout", "0.5", "--model.neck", "[4]", "--model.neck_norm", "batch"),
    *("--model.lr", "0.01", "--trainer.max_epochs", "3"),
)


def state_of(folder: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on where it was killed."""
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    return {
        "last": last["state_dict"],
        "best": best["state_dict"],
        "optimizer": last["optimizer_states"],
        "schedule": last["lr_schedulers"],
        "random": last["run"]["random"],
        "bundle": load_file(folder / "model.safetensors"),
        "metrics": (folder / "metrics.csv").read_text(),
        "sheets": {path.name: path.read_bytes() for path in (folder / "cams").iterdir()},
        "files": {
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and "wandb" not in path.parts
        },
    }


def assert_same(found: object, expected: object, where: str) -> None:
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{number}]")
    else:
        assert found == expected, where


@pytest.fixture(scope="session")
def never_stopped(
    photographs_once: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The state of a whole run."""
    runs_dir = tmp_path_factory.mktemp("whole")
    assert run_in_child(fit_of(photographs_once, runs_dir, *HARD)) == 0
    return state_of(runs_dir / "run")


KILLS = [
    ("in a step", 1, 15),  # before the first checkpoint
    ("in a step", 8, 15),  # in the second epoch
    ("in a step", 8, 0),  # with a checkpoint after every step
    ("in a step", 12, 0),
    ("in a validation", 2, 0),
    ("in a validation", 3, 15),
    ("within the checkpoint", 2, 15),
    ("within the checkpoint", 9, 0),
    ("before last.ckpt", 2, 15),
    ("before metrics.csv", 2, 15),
    ("before best.ckpt", 1, 15),
    ("before the bundle", 1, 0),
    ("in a sheet", 1, 15),
    ("in the test", 1, 15),
]


@pytest.mark.nightly
@pytest.mark.parametrize(("place", "count", "minutes"), KILLS)
def test_killed_anywhere_and_continued_equals_never_killed(
    place: str,
    count: int,
    minutes: int,
    never_stopped: dict[str, Any],
    fit_arguments: Arguments,
    tmp_path: Path,
) -> None:
    args = fit_arguments(*HARD, "--save_every_minutes", str(minutes))
    assert run_in_child(args, kill=(place, count)) == -signal.SIGKILL
    assert run_in_child([*args, "--ckpt_path", "last"]) == 0
    assert_same(state_of(tmp_path / "runs" / "run"), never_stopped, "run")


STOPS = [
    ("in the start", 1, (signal.SIGINT, signal.SIGINT), 130),
    ("in a step", 8, (signal.SIGINT,), 130),
    ("in a step", 8, (signal.SIGTERM,), 143),
    ("in a step", 8, (signal.SIGUSR1,), 138),
    ("in a step", 8, (signal.SIGINT, signal.SIGINT), 130),  # impatient
    ("in a step", 5, (signal.SIGINT,), 130),  # with the last batch of an epoch
    ("in a step", 15, (signal.SIGTERM,), 143),  # of all
    ("in a validation", 2, (signal.SIGINT,), 130),
    ("in a sheet", 1, (signal.SIGINT,), 130),
    ("in the teardown", 1, (signal.SIGINT,), 130),  # of the training
    ("in the teardown", 1, (signal.SIGTERM,), 143),
    ("in the teardown", 2, (signal.SIGINT,), 130),  # of the test
]


@pytest.mark.nightly
@pytest.mark.parametrize(("place", "count", "signals", "status"), STOPS)
def test_stopped_anywhere_and_continued_equals_never_stopped(
    place: str,
    count: int,
    signals: tuple[signal.Signals, ...],
    status: int,
    never_stopped: dict[str, Any],
    fit_arguments: Arguments,
    tmp_path: Path,
) -> None:
    args = fit_arguments(*HARD)
    assert run_in_child(args, (place, count), signals) == status
    printed = (tmp_path / "runs" / "run.log").read_text()
    assert "Traceback" not in printed
    folder = tmp_path / "runs" / "run"
    if place == "in the start":
        assert not folder.exists()
        return
    if place == "in a step" and count == 8 and len(signals) == 1:
        last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == 8
        assert "--name run --ckpt_path last" in printed
    assert run_in_child([*args, "--ckpt_path", "last"]) == 0
    assert_same(state_of(folder), never_stopped, "run")


@pytest.mark.nightly
def test_two_processes_go_on_as_if_never_killed(fit_arguments: Arguments, tmp_path: Path) -> None:
    two = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--save_every_minutes", "0")

    def run(place: str, count: int, *more: str) -> int:
        args = [place, str(count), *fit_arguments(*HARD, *two, "--data.workers", "0", *more)]
        root = str(Path(__file__).parents[3])
        command = [sys.executable, killing.__file__, *args]
        env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=root, env=env, capture_output=True, text=True, check=False, timeout=300
        )
        print(done.stdout[-2000:], done.stderr[-4000:])
        return done.returncode

    assert run("nowhere", 0, "--name", "whole") == 0
    assert run("in a step", 5, "--name", "killed") == -signal.SIGKILL  # of three per epoch
    folder = tmp_path / "runs" / "killed"
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert run("nowhere", 0, "--name", "killed", "--ckpt_path", "last") == 0
    assert_same(state_of(folder), state_of(tmp_path / "runs" / "whole"), "two processes")


def test_a_disk_that_fills_ends_the_run_in_a_sentence_and_it_goes_on_where_there_is_room(
    fit_arguments: Arguments,
    fitted_once: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "runs" / "run"
    save = torch.save

    def save_once(content: object, path: Path) -> None:
        """Fail as torch does on a full disk, when there is a checkpoint already."""
        if (run / "checkpoints" / "best.ckpt").is_file():
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_once)
        assert cli.main(fit_arguments()) == 2
    last = run / "checkpoints" / "last.ckpt"
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("camtrain: error:")]
    assert line.startswith(f"camtrain: error: {last} cannot be written (No space left on device: ")
    assert line.endswith(f"; {last} is whole, and goes on with --ckpt_path last.")
    assert not list(run.rglob(".*"))
    assert cli.main(fit_arguments("--ckpt_path", "last")) == 0
    assert_same(state_of(run), state_of(fitted_once()), "run")
