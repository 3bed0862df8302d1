"""The report of a training: what it keeps of every epoch, and the page it makes of that."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from camtrain.localization.map_statistics import STATISTICS
from camtrain.training.evaluation import ClassScores
from camtrain.training.files import write_text
from camtrain.training.watching.choice import Watched
from camtrain.training.watching.classes import class_table, confused_pairs
from camtrain.training.watching.looking import Look, Seen
from camtrain.training.watching.view import EpochView, Measured
from camtrain.version import __version__
from camtrain.visualize.report import (
    PackedJson,
    packed_colormap,
    packed_map,
    packed_picture,
    part_of_picture,
    report_page,
)

_MOST_BYTES = 8_000_000  # of the maps of all epochs; beyond it, epochs in between are left out
_MATRIX_CLASSES = 30  # more are listed
_PAIRS = 300  # of classes taken for one another, the most frequent ones
_CURVE_POINTS = 200

_CURVES: dict[str, tuple[list[int] | None, tuple[str, ...]]] = {
    "loss": (None, ("train/loss", "val/loss")),
    "accuracy": ([0, 1], ("val/acc1", "val/acc5", "val/map")),
    "localization": (
        [0, 1],
        ("val/loc_gt_known", "val/loc_top1", "val/max_box_acc", "val/centre_box_acc"),
    ),
}
_REFERENCES = {"val/centre_box_acc"}  # what any network must beat
_TITLES = {
    "energy_in_box": "share of the energy inside the boxes",
    "area": "area above 0.2 of the maximum",
    "entropy": "entropy (1: looks everywhere alike)",
}
_PACKAGES = ("torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "wandb")


@dataclass
class _Epoch:
    """What the report keeps of an epoch, in a file of its own."""

    epoch: int
    scores: dict[str, float | None]
    histograms: dict[str, list[int]]
    looks: PackedJson

    def as_json(self) -> str:
        own = {"epoch": self.epoch, "scores": self.scores, "histograms": self.histograms}
        return f'{json.dumps(own)[:-1]}, "looks": {self.looks}}}'


class Report:
    """Follows a training, and writes its page anew after every epoch.

    Args:
        path: The page. Beside it, in the folder of the same name without suffix, it keeps what a
            resumed training goes on with: ``epoch_000.json``, ...
        colormap: See ``camtrain.visualize.overlay``.
    """

    def __init__(self, path: Path, colormap: str) -> None:
        self.path = path
        self.folder = path.with_suffix("")
        self.colormap = colormap
        self._epochs: dict[int, _Epoch] = {}
        self._pictures: PackedJson | None = None
        self._mistakes = PackedJson("[]")
        self._last: EpochView | None = None  # with what was measured
        self._test: dict[str, float | None] = {}

    def load(self, epochs: int) -> None:
        """Go on after so many epochs; what a killed training had written beyond is forgotten."""
        for file in sorted(self.folder.glob("epoch_*.json")):
            kept = json.loads(file.read_text())
            if kept["epoch"] <= epochs:
                looks = kept.pop("looks")
                packed = PackedJson("null") if looks is None else _packed(looks)
                self._epochs[kept["epoch"]] = _Epoch(**kept, looks=packed)

    def add(self, view: EpochView) -> None:
        """Take what is seen in an epoch; its scores may come later."""
        if self._pictures is None:
            self._pictures = _packed(_picture(one, view.names) for one in view.pictures)
        histograms = view.measured.histograms if view.measured else {}
        self._epochs[view.epoch] = _Epoch(
            view.epoch,
            scores={},
            histograms={name: counts.tolist() for name, counts in histograms.items()},
            looks=_packed(_look(one, look, view.names) for one, look in view.seen),
        )
        self._mistakes = _packed(
            {"picture": _picture(one, view.names), "look": _look(one, look, view.names)}
            for one, look in view.mistakes
        )
        self._last = view

    def score(self, epoch: int, scores: Mapping[str, Tensor]) -> None:
        """Give an epoch scores, by logged name, in addition to those it has."""
        record = self._epochs.setdefault(epoch, _Epoch(epoch, {}, {}, PackedJson("null")))
        record.scores.update(_plain_scores(scores))

    def conclude(self, scores: Mapping[str, Tensor]) -> None:
        """Add the scores of the test split."""
        self._test = _plain_scores(scores)

    def looks(self, most: int) -> dict[int, list[dict[str, Any]]]:
        """What was seen in some epochs, as the page has it: dense at first, where most changes."""
        seen = [number for number, epoch in sorted(self._epochs.items()) if epoch.looks != "null"]
        count = min(most, len(seen))
        parts = [i / max(1, count - 1) for i in range(count)]
        places = [round(len(seen) ** part) - 1 for part in parts]
        # No place twice, nor beyond what is left for those that follow.
        for i in range(1, count):
            places[i] = max(places[i], places[i - 1] + 1)
        return {seen[place]: json.loads(self._epochs[seen[place]].looks) for place in places}

    def write(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the last epoch's file, and the page, each atomically."""
        last = self._last
        if last is None:
            return
        newest = self._epochs[max(self._epochs)]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / f"epoch_{newest.epoch:03d}.json", newest.as_json())
        write_text(self.path, report_page(self._content(last, trainer, module)))

    def _content(
        self, last: EpochView, trainer: Trainer, module: LightningModule
    ) -> dict[str, Any]:
        epochs = [self._epochs[number] for number in sorted(self._epochs)]
        planned = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        measured = last.measured
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        return {
            "title": self.path.absolute().parent.name,
            "state": f"epoch {last.epoch}{f' of {planned}' if planned else ''}, written {now}",
            "colormap": packed_colormap(self.colormap),
            "curves": _score_charts(epochs),
            "maps": _map_charts(epochs),
            "localization": _localization_chart(measured) if measured else [],
            "pictures": self._pictures or [],
            "epochs": _packed_epochs(epochs),
            "mistakes": self._mistakes,
            "classes": _classes(measured.classes, last.names) if measured else None,
            "classes_epoch": last.epoch,
            "test": {name: value for name, value in self._test.items() if value is not None},
            "settings": _settings(trainer, module),
        }


def _packed(parts: Iterable[Mapping[str, Any]]) -> PackedJson:
    """A list that the page is made of again and again, as JSON."""
    return PackedJson(json.dumps(list(parts), separators=(",", ":"), allow_nan=False))


def _plain_scores(scores: Mapping[str, Tensor]) -> dict[str, float | None]:
    values = {name: float(value) for name, value in scores.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _picture(one: Watched, names: Sequence[str]) -> dict[str, Any]:
    height, width = one.size_hw
    placement = one.preprocessing.placement(one.size_hw)
    input_h, input_w = one.preprocessing.size
    covered = [
        -placement.offset_x / placement.scale_x,
        -placement.offset_y / placement.scale_y,
        (input_w - placement.offset_x) / placement.scale_x,
        (input_h - placement.offset_y) / placement.scale_y,
    ]
    return {
        **packed_picture(one.shown),
        "covered": part_of_picture([covered], (height, width))[0],
        "boxes": part_of_picture(one.boxes_xyxy, (height, width)),
        "name": ", ".join(names[label] for label in one.labels) or "no class",
        "path": one.path,
    }


def _look(one: Watched, look: Look, names: Sequence[str]) -> dict[str, Any]:
    def side(seen: Seen) -> dict[str, Any]:
        return {
            "name": names[seen.label],
            "score": round(seen.score, 4) if math.isfinite(seen.score) else None,
            "map": packed_map(seen.class_map),
            "boxes": part_of_picture(seen.boxes_xyxy, one.size_hw),
        }

    return {
        "true": None if look.true is None else side(look.true),
        "predicted": side(look.predicted),
        "is_right": look.is_right,
        "is_located": look.is_located,
    }


def _packed_epochs(epochs: Sequence[_Epoch]) -> PackedJson:
    """The looks of all epochs, or of as many, evenly spread, as the page has room for."""
    seen = [epoch for epoch in epochs if epoch.looks != "null"]
    size = sum(len(epoch.looks) for epoch in seen)
    count = len(seen) if size <= _MOST_BYTES else max(2, len(seen) * _MOST_BYTES // size)
    places = sorted({round(i * (len(seen) - 1) / max(1, count - 1)) for i in range(count)})
    shown = (f'{{"epoch":{seen[i].epoch},"looks":{seen[i].looks}}}' for i in places)
    return PackedJson(f"[{','.join(shown)}]")


def _series(epochs: Sequence[_Epoch], name: str) -> dict[str, Any]:
    found = ((epoch.epoch, epoch.scores.get(name)) for epoch in epochs)
    points = [[number, value] for number, value in found if value is not None]
    return {"name": name, "points": points, "reference": name in _REFERENCES}


def _score_charts(epochs: Sequence[_Epoch]) -> list[dict[str, Any]]:
    charts = []
    for title, (range_, names) in _CURVES.items():
        series = [one for one in (_series(epochs, name) for name in names) if one["points"]]
        if series:
            charts.append({"title": title, "range": range_, "series": series})
    return charts


def _map_charts(epochs: Sequence[_Epoch]) -> list[dict[str, Any]]:
    charts = []
    for name in STATISTICS:
        series = {**_series(epochs, f"val/cam_{name}"), "name": "mean"}
        density = [
            [epoch.epoch, epoch.histograms[name]]
            for epoch in epochs
            if any(epoch.histograms.get(name, ()))
        ]
        if density:
            title = _TITLES[name]
            charts.append({"title": title, "range": [0, 1], "series": [series], "density": density})
    return charts


def _localization_chart(measured: Measured) -> list[dict[str, Any]]:
    report = measured.localization
    if not report:
        return []
    thresholds = report["curves"]["threshold"]
    step = max(1, len(thresholds) // _CURVE_POINTS)
    marks = {name: report["thresholds"][name] for name in ("fixed", "calibrated", "oracle")}
    series = [
        {
            "name": f"IoU {iou}",
            "points": list(map(list, zip(thresholds[::step], values[::step], strict=True))),
        }
        for iou, values in report["curves"]["largest_contour"].items()
    ]
    return [
        {
            "title": "part of the pictures whose box is right (largest contour)",
            "xs": "threshold, part of the heatmap's maximum",
            "width": 840,
            "range": [0, 1],
            "xRange": [0, 1],
            "series": series,
            "marks": {name: value for name, value in marks.items() if value is not None},
        }
    ]


def _classes(found: ClassScores, names: Sequence[str]) -> dict[str, Any] | None:
    table, confusion = class_table(found, names), found.confusion
    if table is None:
        return None
    return {
        "names": list(names),
        "matrix": None if confusion is None or len(names) > _MATRIX_CLASSES else confusion.tolist(),
        "pairs": [] if confusion is None else confused_pairs(confusion, names, _PAIRS),
        "columns": [column._asdict() for column in table.columns],
        "rows": table.rows,
        "sorted": {"sortBy": table.score, "descending": False},  # the worst first
    }


def _settings(trainer: Trainer, module: LightningModule) -> dict[str, dict[str, str]]:
    data = getattr(trainer, "datamodule", None)
    training = {
        "epochs": trainer.max_epochs,
        "precision": trainer.precision,
        "devices": f"{trainer.world_size} x {module.device.type}",
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
    }
    parts = {
        "Training": training,
        "Network (--model)": module.hparams,
        "Pictures (--data)": getattr(data, "hparams", {}),
        "Versions": {
            "camtrain": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
            "system": platform.platform(),
        },
    }
    return {
        title: {name: str(value) for name, value in part.items() if not name.startswith("_")}
        for title, part in parts.items()
        if part
    }
