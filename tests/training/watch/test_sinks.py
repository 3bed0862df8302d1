"""What TensorBoard, CSV and other loggers get."""

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from camtrain.training import CAMDataModule, CAMLogger
from camtrain.training.watch.sinks import Sink, make_sinks
from tests.training.conftest import quiet_trainer, small_module
from tests.training.watch.snapshots import snapshot


@pytest.mark.nightly
def test_tensorboard_gets_sheets_histograms_and_charts(
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
    for name in ("confusion", "reliability"):
        assert [event.step for event in events.Images(f"val/{name}")] == [1, 3]
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
    [sink] = sinks_of(logger, tmp_path)
    sink.log(epoch)
    text = (Path(logger.log_dir) / "cams.csv").read_text(encoding="utf-8")
    assert "caf\\udce9/0.png" in text


def sinks_of(logger: Logger | list[Logger], folder: Path) -> list[Sink]:
    trainer = quiet_trainer(logger=logger)
    return make_sinks(trainer, folder, folder / "report.html", log_mistakes=True, masks=False)


class Taking(Logger):
    """A logger whose experiment may take pictures, as those of well-known packages."""

    name = version = "0"

    def __init__(self, experiment: object) -> None:
        super().__init__()
        self.experiment = experiment

    def log_metrics(self, *arguments: object) -> None:
        """Log nothing."""

    log_hyperparams = log_metrics


def of_comet(taken: list[tuple[object, ...]]) -> object:
    def log_image(
        image_data: Image.Image, name: str | None = None, step: int | None = None
    ) -> None:
        taken.append((name, step, image_data.size))

    return SimpleNamespace(log_image=log_image)


def of_tensorboard(taken: list[tuple[object, ...]]) -> object:
    def add_image(
        tag: str, img_tensor: np.ndarray, global_step: int, dataformats: str = "CHW"
    ) -> None:
        taken.append((tag, global_step, img_tensor.shape[1::-1]))
        assert dataformats == "HWC"

    return SimpleNamespace(add_image=add_image)


class OfWandb(Taking):
    """A logger that has the method itself, as those of W&B and SwanLab."""

    def log_image(
        self, key: str, images: list[Image.Image], step: int | None = None, **options: object
    ) -> None:
        """Take pictures."""
        self.experiment.extend((key, step, image.size) for image in images)


@pytest.mark.parametrize(
    "make",
    [lambda t: Taking(of_comet(t)), lambda t: Taking(of_tensorboard(t)), OfWandb],
    ids=["comet", "tensorboard", "wandb"],
)
def test_any_logger_with_an_image_method_gets_sheets(
    make: Callable[[list[tuple[object, ...]]], Logger],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    taken: list[tuple[object, ...]] = []
    epoch = snapshot(1)
    [sink] = sinks_of(make(taken), tmp_path)
    sink.log(epoch)
    assert [entry[:2] for entry in taken] == [
        ("val/cams", 9),
        ("val/cam_mistakes", 9),
        ("val/confusion", 9),
        ("val/reliability", 9),
    ]
    assert taken[0][2] == epoch.sheet.size
    assert capsys.readouterr().out == ""


def test_neptune_gets_series(tmp_path: Path) -> None:
    series: dict[str, list[int]] = defaultdict(list)

    class Run:
        def __getitem__(self, key: str) -> object:
            return SimpleNamespace(append=lambda picture, step: series[key].append(step))

    neptune = type("NeptuneLogger", (Taking,), {"__module__": "pytorch_lightning.loggers.neptune"})(
        Run()
    )
    [sink] = sinks_of(neptune, tmp_path)
    sink.log(snapshot(1))
    names = ("cams", "cam_mistakes", "confusion", "reliability")
    assert series == {f"val/{name}": [9] for name in names}


def test_a_logger_that_refuses_pictures_is_told_once(tmp_path: Path) -> None:
    def log_image(image: Image.Image) -> None:
        raise ConnectionError("no server")

    logger = Taking(SimpleNamespace(log_image=log_image))
    [sink] = sinks_of(logger, tmp_path)
    with pytest.warns(UserWarning, match=r"Taking failed \(ConnectionError: no server\)") as told:
        sink.log(snapshot(1))
    sink.log(snapshot(2))
    assert len(told) == 1


def test_loggers_without_pictures_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers = [CSVLogger(tmp_path, name="csv"), Taking(SimpleNamespace())]
    assert len(sinks_of(loggers, tmp_path)) == 1
    report = tmp_path / "report.html"
    assert capsys.readouterr().out == (
        f"No pictures for CSVLogger, Taking: the heatmaps are in {tmp_path} and {report}.\n"
    )
