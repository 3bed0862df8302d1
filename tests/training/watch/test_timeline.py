"""Some pictures over the epochs: what a column shows is what the epoch's sheet shows."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camtrain.training import CAMDataModule, CAMLogger
from camtrain.training.watch.report import TrainingReport
from camtrain.visualize import PREDICTED_BOX, TRUE_BOX
from tests.conftest import everyday
from tests.training.conftest import quiet_trainer, small_module
from tests.training.watch.snapshots import pictures_of, snapshot
from tests.visualize.conftest import has


def test_every_epoch_has_a_column(tmp_path: Path) -> None:
    report = TrainingReport(tmp_path / "report.html", "viridis")
    pictures = pictures_of(snapshot(0, pictures=7))
    report.set_pictures(pictures, snapshot(0).names)
    for epoch in range(3):
        report.add(snapshot(epoch, pictures=7))
    drawn = report.timeline(list(pictures.values()))
    assert drawn is not None
    assert drawn.size == (4 * 134 - 6, 60 + 5 * (85 + 6) - 6)  # at most five pictures, 40 x 60
    columns = [drawn.crop((x, 60, x + 128, drawn.height)) for x in range(0, drawn.width, 134)]
    for column in columns[1:]:
        assert has(column.convert("RGB"), TRUE_BOX, tolerance=60)
        assert has(column.convert("RGB"), PREDICTED_BOX, tolerance=60)
    assert len({np.asarray(column).tobytes() for column in columns}) == 4


@pytest.mark.parametrize("resize_mode", everyday(["squash", "crop"], "crop"))
def test_it_is_written_at_the_end_of_a_training(
    photographs: Path, tmp_path: Path, resize_mode: str
) -> None:
    data = CAMDataModule(root=photographs, size=32, workers=0, resize_mode=resize_mode)
    watcher = CAMLogger(4, dirpath=tmp_path / "cams")
    quiet_trainer(callbacks=[watcher]).fit(small_module(), data)
    with Image.open(tmp_path / "cams" / "over_epochs.png") as picture:
        assert picture.mode == "RGBA"
        assert picture.width == 4 * 134 - 6  # the picture, and epochs 0, 1 and 2
