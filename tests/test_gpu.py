"""The tests of ``tests/gpu`` and their benchmark wait for a GPU and can be tried without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "CAMTRAIN_GPU_DEVICE": ""}


def output_of(*args: str) -> str:
    """What a Python process without a GPU prints."""
    environment = {name: v for name, v in NO_GPU.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_a_gpu_its_tests_are_skipped_and_say_why() -> None:
    printed = output_of("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu")
    assert "needs a GPU of CUDA; CAMTRAIN_GPU_DEVICE=cpu tries these tests" in printed
    last = printed.splitlines()[-1]
    assert " skipped" in last
    assert " passed" not in last


def test_they_are_part_of_no_other_run() -> None:
    assert "-m 'not nightly and not gpu'" in (ROOT / "pyproject.toml").read_text()
    for file in (ROOT / "tests" / "gpu").glob("test_*.py"):
        text = file.read_text()
        assert "pytestmark = [pytest.mark.gpu, " in text
        assert "nightly" not in text


@pytest.mark.nightly
def test_every_part_of_the_benchmark_runs_on_the_cpu() -> None:
    printed = output_of("tests/benchmarks/gpu.py", "--device", "cpu", "--tiny")
    for part in ("module", "waits", "loader", "cached", "predict", "refine", "boxes"):
        assert f"\n{part:8} " in printed
    assert "failed" not in printed


@pytest.mark.nightly
def test_the_script_writes_its_results(tmp_path: Path) -> None:
    environment = {**NO_GPU, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    done = subprocess.run(
        ["bash", "tests/gpu/run.sh"],
        cwd=ROOT,
        env=environment | {"CAMTRAIN_GPU_DEVICE": "cpu", "CAMTRAIN_GPU_TESTS_SECONDS": "1"},
        capture_output=True,
        text=True,
    )
    assert "boxes " in done.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert {"machine.txt", "tests.txt", "benchmark.txt", "benchmark_errors.txt"} <= names
