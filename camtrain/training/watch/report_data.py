"""The content of the report as plain values: pictures, results, charts, tables."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from camtrain.localization.pointing import STATISTICS
from camtrain.training.evaluate.scores import ClassScores
from camtrain.training.watch.pictures import ValidationPicture
from camtrain.training.watch.results import ClassResult, PictureResult
from camtrain.training.watch.snapshot import (
    DEFAULT_BOX_THRESHOLD,
    BoxThreshold,
    Moment,
    class_table,
    confused_pairs,
)
from camtrain.version import __version__
from camtrain.visualize.report.page import packed_map, part_of_picture

_MATRIX_CLASSES = 30  # with more classes, the report lists only the pairs
_PAIRS = 300  # of true and predicted classes, the most frequent ones
_CURVE_POINTS = 200

_CURVES: dict[str, tuple[list[int] | None, tuple[str, ...]]] = {
    "loss": (None, ("train/loss", "val/loss")),
    "accuracy": ([0, 1], ("val/acc1", "val/acc5", "val/map", "val/acc")),
    "calibration error (ECE)": (None, ("val/ece",)),
    "localization; GT-known and top-1 at the threshold 0.2": (
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

Chart = dict[str, Any]


@dataclass
class EpochRecord:
    """The values of one validation or epoch that the report keeps; each has its own file."""

    moment: Moment
    scores: dict[str, float | None] = field(default_factory=dict)  # by logged name
    # of the boxes; earlier versions stored none, and drew them at the default
    threshold: BoxThreshold = DEFAULT_BOX_THRESHOLD
    histograms: dict[str, list[int]] = field(default_factory=dict)  # of the maps, by statistic
    # what the network says about the watched pictures: `result_data` by index in the data set
    looks: dict[int, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> EpochRecord:
        """Read a record from the text of its file."""
        values = json.loads(text)
        looks = {int(index): result for index, result in values.pop("looks").items()}
        threshold = BoxThreshold(*values.pop("threshold", ()))
        moment = Moment(values.pop("epoch"), *values.pop("within", ()))
        return cls(moment, **values, threshold=threshold, looks=looks)

    def to_dict(self) -> dict[str, Any]:
        """What its file holds; ``within`` (part, step) for a validation within an epoch."""
        values = {"epoch": self.moment.epoch, **vars(self)}
        _, *within = values.pop("moment")
        return values if self.moment.step is None else {**values, "within": within}


def picture_data(picture: ValidationPicture, names: Sequence[str]) -> dict[str, Any]:
    """A picture for the page: pixels, the part that maps cover, boxes, classes and path."""
    placement = picture.preprocessing.placement(picture.size_hw)
    input_h, input_w = picture.preprocessing.size
    covered = [
        -placement.offset_x / placement.scale_x,
        -placement.offset_y / placement.scale_y,
        (input_w - placement.offset_x) / placement.scale_x,
        (input_h - placement.offset_y) / placement.scale_y,
    ]
    return {
        **picture.packed_pixels,
        "covered": part_of_picture([covered], picture.size_hw)[0],
        "boxes": part_of_picture(picture.boxes_xyxy, picture.size_hw),
        "name": ", ".join(names[label] for label in picture.labels) or "no class",
        "path": picture.path,
    }


def result_data(result: PictureResult, names: Sequence[str]) -> dict[str, Any]:
    """A result for the page: score, raw map and box of the true and of the predicted class."""

    def side_data(side: ClassResult) -> dict[str, Any]:
        return {
            "name": names[side.label],
            "score": round(side.score, 4) if math.isfinite(side.score) else None,
            "map": packed_map(side.class_map),
            "boxes": part_of_picture(side.boxes_xyxy, result.picture.size_hw),
        }

    return {
        "true": None if result.true is None else side_data(result.true),
        "predicted": side_data(result.predicted),
        "is_right": result.is_right,
        "is_located": result.is_located,
    }


def _score_series(epochs: Sequence[EpochRecord], name: str) -> dict[str, Any]:
    """The curve of a logged score: a point (epochs, value) for each record that has it."""
    values = ((epoch.moment.epochs, epoch.scores.get(name)) for epoch in epochs)
    points = [[number, value] for number, value in values if value is not None]
    return {"name": name, "points": points, "reference": name in _REFERENCES}


def score_charts(epochs: Sequence[EpochRecord]) -> list[Chart]:
    """The charts of loss, accuracy and localization by epoch; scores not logged are left out."""
    charts = []
    for title, (range_, names) in _CURVES.items():
        series = [s for s in (_score_series(epochs, name) for name in names) if s["points"]]
        if series:
            charts.append({"title": title, "range": range_, "series": series})
    return charts


def map_charts(epochs: Sequence[EpochRecord]) -> list[Chart]:
    """For each statistic of the maps, a chart of its mean and its histogram by epoch."""
    charts = []
    for name in STATISTICS:
        series = {**_score_series(epochs, f"val/cam_{name}"), "name": "mean"}
        density = [
            [epoch.moment.epochs, epoch.histograms[name]]
            for epoch in epochs
            if any(epoch.histograms.get(name, ()))
        ]
        if density:
            title = _TITLES[name]
            charts.append({"title": title, "range": [0, 1], "series": [series], "density": density})
    return charts


def localization_charts(report: Mapping[str, Any], split: str) -> list[Chart]:
    """Accuracy by threshold and by kind of picture, from ``BoxScores.report``; none without boxes.

    ``split`` names the pictures in the titles.
    """
    if "curves" not in report:
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
    chart = {
        "title": f"{split}: part of the pictures whose box is right (largest contour)",
        "xs": "threshold, part of the heatmap's maximum",
        "width": 840,
        "range": [0, 1],
        "xRange": [0, 1],
        "series": series,
        "marks": {name: value for name, value in marks.items() if value is not None},
    }
    return [chart, *_breakdown_charts(report, split)]


def _breakdown_charts(report: Mapping[str, Any], split: str) -> list[Chart]:
    """Bars of the accuracy by size and by number of things, and of the misses by kind."""
    right = [
        {
            "name": name,
            "value": row["boxes"],
            "mark": row["centre"],
            "text": f"{100 * row['boxes']:.0f} % of {row['pictures']}",
        }
        for name, row in (report["by_size"] | report["by_number"]).items()
    ]
    total = max(1, sum(report["misses"].values()))
    misses = [
        {"name": kind, "value": number / total, "text": str(number)}
        for kind, number in report["misses"].items()
    ]
    title = f"{split}: boxes that are right, by the thing's part of the picture"
    hint = "The line is a fixed box in the middle."
    explained = (
        "Too large: it holds 80 % of the thing, which fills at most 60 % of it. Too small: the "
        "same the other way round. Several in one box: right around all of them. Beside: the rest."
    )
    return [
        {"title": title, "bars": right, "hint": hint},
        {"title": f"{split}: why boxes miss", "bars": misses, "hint": explained},
    ]


def calibration_charts(reliability: Sequence[Sequence[float]]) -> list[Chart]:
    """The chart of ``CalibrationError.reliability``; of calibrated scores it is the diagonal."""
    measured = [[score, accuracy] for score, accuracy, _ in reliability]
    series = [
        {"name": "calibrated", "points": [[0, 0], [1, 1]], "reference": True},
        {"name": "measured", "points": measured},
    ]
    title, xs = "part of the predictions that is right", "score of the prediction"
    chart = {"title": title, "xs": xs, "range": [0, 1], "xRange": [0, 1], "series": series}
    return [chart] if measured else []


def faithfulness_charts(report: Mapping[str, Any]) -> list[Chart]:
    """The charts of deletion and insertion, from ``Faithfulness.report``; none where it is empty.

    Each line is the mean over both baselines.
    """
    charts = []
    for direction in ("deletion", "insertion") if report else ():
        series = []
        for kind, by_baseline in report["curves"].items():
            curves = [pair[direction] for pair in by_baseline.values()]
            heights = [sum(points) / len(points) for points in zip(*curves, strict=True)]
            last = len(heights) - 1
            points = [[step / last, height] for step, height in enumerate(heights)]
            series.append({"name": kind, "points": points})
        title = f"{direction}: score of the predicted class"
        xs = "part of the pixels, hottest first"
        charts.append(
            {"title": title, "xs": xs, "range": [0, 1], "xRange": [0, 1], "series": series}
        )
    return charts


def class_data(scores: ClassScores, names: Sequence[str]) -> dict[str, Any] | None:
    """The class table, the pairs of classes confused most often, and the confusion matrix.

    The matrix is left out for more than 30 classes. None if there is no ``class_table``.
    """
    table, confusion = class_table(scores, names), scores.confusion
    if table is None:
        return None
    rows, matrix = table.rows, confusion if len(names) <= _MATRIX_CLASSES else None
    worst = f"The worst {len(rows)} of {len(names)} classes"
    return {
        "title": "Every class" if len(rows) == len(names) else worst,
        "names": [] if matrix is None else list(names),
        "matrix": None if matrix is None else matrix.tolist(),
        "pairs": [] if confusion is None else confused_pairs(confusion, names, _PAIRS),
        "columns": [column._asdict() for column in table.columns],
        "rows": rows,
        "sorted": {"sortBy": table.score, "descending": False},  # the worst first
    }


def settings_data(trainer: Trainer, module: LightningModule) -> dict[str, dict[str, str]]:
    """Tables of the settings of a training, and of the versions of packages."""
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
            **{name: _version_of(name) for name in _PACKAGES},
            "system": platform.platform(),
        },
    }
    return {
        title: {name: str(value) for name, value in part.items() if not name.startswith("_")}
        for title, part in parts.items()
        if part
    }


def _version_of(package: str) -> str:
    """The version of a package; one that only a logger needs may be missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
