"""What the tests of several rooms share."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes: more threads would only wait
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data, weights and oracles beside the repository."""
    path = Path(__file__).parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"the shared oracles and data are not here: {path}")
    return path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A data folder, root/{train,val,test}/{red,blue}, of squares on noise, with their boxes."""
    return make_photographs(tmp_path / "photographs")


def make_photographs(root: Path) -> Path:
    """Fill a folder, see ``photographs``."""
    rng = np.random.default_rng(0)
    lines = ["path,xmin,ymin,xmax,ymax,class"]
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 80, (40, 56, 3), dtype=np.uint8)
                x, y = int(rng.integers(0, 32)), int(rng.integers(0, 20))
                pixels[y : y + 20, x : x + 24, channel] = 255
                path = f"{split}/{name}/{number}.png"
                Image.fromarray(pixels).save(root / path)
                lines.append(f"{path},{x},{y},{x + 24},{y + 20},{name}")
    (root / "boxes.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def fit_arguments(photographs: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of a ``fit`` of seconds, to which a test adds its own."""

    def arguments(*more: str) -> list[str]:
        return [
            "fit",
            *("--model.backbone", "camtrain/digits", "--model.backbone_args", '{"width": 4}'),
            *("--model.neck", "[]", "--data.root", str(photographs), "--data.size", "32"),
            *("--data.workers", "0", "--data.batch_size", "8", "--trainer.max_epochs", "2"),
            *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
            *("--runs_dir", str(tmp_path / "runs"), "--name", "run", "--logger", "none"),
            *more,
        ]

    return arguments
