"""What TensorBoard and CSV loggers get."""

import csv
from pathlib import Path

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from camtrain.training import CAMDataModule, CAMLogger
from camtrain.training.watch.sinks import make_sinks
from tests.training.conftest import quiet_trainer, small_module
from tests.training.watch.snapshots import snapshot


@pytest.mark.nightly
def test_tensorboard_gets_sheets_histograms_and_the_confusion_matrix(
    boxed_data: CAMDataModule, tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path, name="", version="")
    watcher = CAMLogger(dirpath=tmp_path / "cams", log_mistakes=True)
    torch.manual_seed(0)
    quiet_trainer(callbacks=[watcher], logger=logger).fit(small_module(lr=1e-6), boxed_data)
    events = accumulator.EventAccumulator(str(tmp_path), {"histograms": 0, "images": 0})
    events.Reload()
    assert [event.step for event in events.Images("val/cams")] == [0, 1, 3]
    assert {event.step for event in events.Images("val/cam_mistakes")} <= {1, 3}
    assert [event.step for event in events.Images("val/confusion")] == [1, 3]
    for name in ("energy_in_box", "area", "entropy"):
        histograms = events.Histograms(f"val/cam_{name}_histogram")
        assert [event.step for event in histograms] == [1, 3]
        assert histograms[0].histogram_value.num == 8
        assert [event.step for event in events.Scalars(f"val/cam_{name}")] == [1, 3]


def test_a_csv_logger_gets_a_line_per_picture_and_epoch(
    boxed_data: CAMDataModule, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path, name="csv")
    watcher = CAMLogger(num_images=3, dirpath=tmp_path / "cams")
    quiet_trainer(callbacks=[watcher], logger=logger).fit(small_module(), boxed_data)
    folder = Path(logger.log_dir)
    with open(folder / "cams.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["epoch"] for line in lines] == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    assert [line["step"] for line in lines][::3] == ["0", "1", "3"]
    assert len({line["picture"] for line in lines}) == 3
    for line in lines:
        assert line["true"] in ("blue", "red")
        assert line["is_right"] == str(int(line["true"] == line["predicted"]))
        assert line["gt_known"] in ("0", "1")
        assert 0 < float(line["box_threshold"]) < 1
        assert float(line["map_min"]) <= float(line["map_mean"]) <= float(line["map_max"])
    with open(folder / "metrics.csv") as file:
        assert "val/cam_entropy" in next(csv.reader(file))


def test_names_of_files_need_not_be_text(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="csv")
    epoch = snapshot(1)
    epoch.results[0].picture.__dict__["path"] = (
        "caf\udce9/0.png"  # as Python reads a name that is no UTF-8
    )
    [sink] = make_sinks(quiet_trainer(logger=logger), log_mistakes=False, masks=False)
    sink.log(epoch)
    text = (Path(logger.log_dir) / "cams.csv").read_text(encoding="utf-8")
    assert "caf\\udce9/0.png" in text
