"""Files of strangers are read or refused in one sentence, see ``tests/fuzzing.py``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EVERY_DAY = ("pictures", "bundles", "checkpoints", "boxes", "lists", "shards", "configs", "onnx")


@pytest.mark.parametrize(
    ("count", "kinds"),
    [
        (50, EVERY_DAY),
        pytest.param(50, ("pt2",), marks=pytest.mark.nightly),
        *(pytest.param(500, (kind,), marks=pytest.mark.nightly) for kind in (*EVERY_DAY, "pt2")),
    ],
)
def test_damaged_files_are_read_or_refused(count: int, kinds: tuple[str, ...]) -> None:
    packages = ("onnx", "onnxruntime", "onnxscript")
    for package in packages if {"onnx", "pt2"} & set(kinds) else ():
        pytest.importorskip(package, reason="the extra `export` is not installed")
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzzing", str(count), "0", *kinds]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
