"""What the tests of training share: small networks, and a trainer that writes nothing."""

from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Trainer

from camtrain.training import CAMDataModule, CAMModule


@pytest.fixture(autouse=True)
def features_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where feature caches go: not into the cache folder of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "camtrain" / "features"


@pytest.fixture
def data(photographs: Path) -> CAMDataModule:
    """Photographs without boxes: to measure those takes a third of a small training."""
    (photographs / "boxes.csv").unlink()
    return CAMDataModule(root=photographs, size=32, batch_size=8, workers=0)


@pytest.fixture
def boxed_data(photographs: Path) -> CAMDataModule:
    """Photographs with their boxes."""
    return CAMDataModule(root=photographs, size=32, batch_size=8, workers=0)


def small_module(**settings: Any) -> CAMModule:
    """A network that trains in a second."""
    defaults = {"backbone": "camtrain/digits", "num_classes": 2, "neck": ()}
    return CAMModule(**{**defaults, "backbone_args": {"width": 4}, **settings})


def quiet_trainer(**settings: Any) -> Trainer:
    """A trainer on the CPU that prints and writes nothing."""
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**defaults, **settings})
