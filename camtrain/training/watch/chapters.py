"""The chapters of the report, as the page takes them: pictures, looks, charts, tables."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol

from pytorch_lightning import LightningModule, Trainer

from camtrain.localization.map_statistics import STATISTICS
from camtrain.training.evaluate.evaluator import ClassScores
from camtrain.training.watch.choice import Watched
from camtrain.training.watch.classes import class_table, confused_pairs
from camtrain.training.watch.looking import Look, Seen
from camtrain.version import __version__
from camtrain.visualize.report import packed_map, packed_picture, part_of_picture

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

Chart = dict[str, Any]


class Epoch(Protocol):
    """What the charts are made of."""

    epoch: int
    scores: dict[str, float | None]
    histograms: dict[str, list[int]]


def picture_part(one: Watched, names: Sequence[str]) -> dict[str, Any]:
    """A picture: how it looks, which part of it the maps cover, its boxes, class and path."""
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


def look_part(one: Watched, look: Look, names: Sequence[str]) -> dict[str, Any]:
    """What was seen in a picture, by class: score, raw map, box."""

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


def _series(epochs: Sequence[Epoch], name: str) -> dict[str, Any]:
    found = ((epoch.epoch, epoch.scores.get(name)) for epoch in epochs)
    points = [[number, value] for number, value in found if value is not None]
    return {"name": name, "points": points, "reference": name in _REFERENCES}


def score_charts(epochs: Sequence[Epoch]) -> list[Chart]:
    """Loss, accuracy and localization by epoch, as far as they were logged."""
    charts = []
    for title, (range_, names) in _CURVES.items():
        series = [one for one in (_series(epochs, name) for name in names) if one["points"]]
        if series:
            charts.append({"title": title, "range": range_, "series": series})
    return charts


def map_charts(epochs: Sequence[Epoch]) -> list[Chart]:
    """Mean and histogram of each statistic of the maps by epoch."""
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


def localization_charts(report: Mapping[str, Any]) -> list[Chart]:
    """The accuracy against the threshold, from ``BoxScores.report``; none without boxes."""
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


def classes_part(found: ClassScores, names: Sequence[str]) -> dict[str, Any] | None:
    """The confusion matrix of a few classes, and lists of any number of them."""
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


def settings_part(trainer: Trainer, module: LightningModule) -> dict[str, dict[str, str]]:
    """How it was trained, and with which versions."""
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
