"""Tests on a GPU: run by ``tests/gpu/run.sh`` alone.

``CAMTRAIN_GPU_DEVICE=cpu`` replaces the GPU, so that everything here can be tried without one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

DEVICE = torch.device(os.environ.get("CAMTRAIN_GPU_DEVICE") or "cuda")
ACCELERATOR = "gpu" if DEVICE.type == "cuda" else DEVICE.type
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # of deterministic matrix products


@pytest.fixture(autouse=True, scope="session")
def device() -> torch.device:
    """The device of the tests; they are skipped where it is missing."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU of CUDA; CAMTRAIN_GPU_DEVICE=cpu tries these tests on the CPU")
    return DEVICE


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches go into the folder of the test, and Lightning's choice of algorithms ends with it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def tf32_in_convolutions(allowed: bool) -> Iterator[None]:
    """Let cuDNN's convolutions of float32 round to TF32, torch's default, or not."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def fit_on(
    accelerator: str,
    root: Path,
    folder: Path,
    *,
    module: Any = None,  # noqa: ANN401 - a CAMModule; Lightning is imported when it is needed
    settings: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[Any, Any, Any]:
    """A run of seconds; returns its result, its module and its data module."""
    from pytorch_lightning import seed_everything

    from camtrain.training import CAMDataModule, CAMLogger, fit
    from tests.training.conftest import small_module

    seed_everything(0, workers=True, verbose=False)
    module = small_module(**(settings or {})) if module is None else module
    arguments = {"root": root, "size": 32, "batch_size": 8, "workers": 0, **(data or {})}
    pictures = CAMDataModule(**arguments)
    options = {"accelerator": accelerator, "devices": 1, "max_epochs": 2, "precision": "32-true"}
    options |= {"enable_progress_bar": False, **(trainer or {})}
    cams = CAMLogger(2, num_mistakes=2, faithfulness=2)
    result = fit(module, pictures, folder=folder, logger="none", cams=cams, trainer=options, **more)
    return result, module, pictures
