"""Machines that are taken away: ``--ckpt_path auto``, torchrun's restarts, SLURM's requeueing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from camtrain import cli
from tests.training.run import killing
from tests.training.run.test_resume import HARD, assert_same, state_of

Arguments = Callable[..., list[str]]

AUTO = ("--ckpt_path", "auto")
# Restarted processes of torch 2.14 would look for those of the first start in the shared store.
UNSHARED = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
TORCHRUN = ("-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint")


def run_script(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these words, and print the end of what it prints."""
    root = str(Path(__file__).parents[3])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, *words],
        **{"cwd": root, "env": env, "capture_output": True, "text": True, "timeout": 500},
        start_new_session=True,  # signals go to all of a group
        check=False,
    )
    print(done.stdout[-2000:], done.stderr[-4000:])
    return done


def test_auto_begins_a_run_and_goes_on_with_it(
    fit_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs/run"
    assert cli.main([*fit_arguments(*AUTO, "--trainer.max_epochs", "1")]) == 0
    assert "max_epochs: 1" in (folder / "config.yaml").read_text()
    assert "ckpt_path: null" in (folder / "config.yaml").read_text()  # so it begins another one
    begun = (folder / "metrics.csv").read_text()
    assert cli.main([*fit_arguments(*AUTO, "--trainer.max_epochs", "2")]) == 0
    both = (folder / "metrics.csv").read_text()
    assert both.startswith(begun)
    assert both.count("\n") == 3
    assert cli.main([*fit_arguments(*AUTO, "--model.lr", "0.5", "--trainer.max_epochs", "2")]) == 2
    assert "settings it began with: model.lr was" in capsys.readouterr().err
    (folder / "checkpoints/last.ckpt").unlink()  # as where it was killed before the first one
    assert cli.main([*fit_arguments(*AUTO, "--trainer.max_epochs", "2")]) == 0
    assert (folder / "metrics.csv").read_text() == both


@pytest.mark.nightly
@pytest.mark.parametrize(("rank", "place", "count"), [(0, "in a step", 5), (1, "in a step", 2)])
def test_torchrun_starts_a_killed_training_again_and_nothing_is_lost(
    rank: int, place: str, count: int, fit_arguments: Arguments, tmp_path: Path
) -> None:
    """One command; the weights are those of a run that nobody killed."""
    two = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--save_every_minutes", "0")
    more = (*HARD, *two, "--data.workers", "0", *AUTO)

    def run(place: str, name: str) -> int:
        options = ["--nproc-per-node", "2", "--max-restarts", "3", killing.__file__]
        address = f"127.0.0.1:{29_000 + os.getpid() % 1000}"
        words = [place, str(count), *fit_arguments(*more, "--name", name)]
        words = [*TORCHRUN, address, *options, *words]
        return run_script(words, STRUCK_RANK=str(rank), **UNSHARED).returncode

    assert run("nowhere", "whole") == 0
    assert run(place, "killed") == 0
    states = [state_of(tmp_path / "runs" / name) for name in ("killed", "whole")]
    assert_same(*states, "killed")


@pytest.mark.nightly
@pytest.mark.parametrize("is_known", [True, False])
def test_slurm_is_asked_to_start_a_job_again(
    is_known: bool, fit_arguments: Arguments, tmp_path: Path
) -> None:
    """SIGUSR1 saves after the step and requeues the job; ``auto`` goes on with it."""
    (tmp_path / "bin").mkdir()
    if is_known:
        scontrol = tmp_path / "bin/scontrol"
        scontrol.write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked\n")
        scontrol.chmod(0o755)
    task = {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "localhost"}
    job = {"JOB_ID": "17", "JOB_NAME": "train", "ARRAY_JOB_ID": "16", "ARRAY_TASK_ID": "3"}
    slurm = {f"SLURM_{name}": value for name, value in {**task, **job}.items()}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    args = fit_arguments(*HARD, *AUTO, "--trainer.strategy", "ddp", "--trainer.devices", "1")
    done = run_script(
        [killing.__file__, "in a step", "8", *args], **slurm, STRUCK_BY="SIGUSR1", PATH=path
    )
    assert done.returncode == 128 + signal.SIGUSR1
    assert "Traceback" not in done.stderr
    folder = tmp_path / "runs/run"
    assert not list(folder.rglob("hpc_ckpt*"))  # which Lightning would write in mid-step
    if not is_known:
        assert "SLURM does not start job 16_3 again" in done.stderr
        return
    assert (tmp_path / "asked").read_text() == "requeue 16_3\n"
    assert "with --ckpt_path auto it goes on" in done.stdout
    again = run_script([killing.__file__, "nowhere", "0", *args], **slurm)
    whole = [*args, "--name", "whole"]
    assert run_script([killing.__file__, "nowhere", "0", *whole], **slurm).returncode == 0
    assert again.returncode == 0
    assert_same(state_of(folder), state_of(tmp_path / "runs/whole"), "requeued")
