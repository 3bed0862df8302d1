"""Sinks pass what is shown of an epoch on to the loggers of the trainer, one sink per logger."""

from __future__ import annotations

import csv
import gc
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from camtrain.arguments import print_paragraph
from camtrain.files import write_text
from camtrain.localization.pointing import BINS
from camtrain.training.lightnings import is_lightnings
from camtrain.training.run.worker import enqueue_call, errors_as_warnings
from camtrain.training.watch.image_sinks import (
    MATRIX_CLASSES,
    ImageSink,
    MlflowSink,
    pictures_of,
    takes_images,
)
from camtrain.training.watch.results import PictureResult
from camtrain.training.watch.snapshot import (
    EpochSnapshot,
    ValidationStatistics,
    class_table,
    confused_pairs,
)
from camtrain.visualize import SheetRow

if TYPE_CHECKING:
    import wandb

TABLE = "val/cams_table"
_COLUMNS = "epoch", "picture", "image", "overlay", "true", "predicted", "score", "GT-known hit"
_PAIRS = 500
_LEVELS = 5  # of a mask; the lowest is no part of it
_COLLECT_EVERY = 20  # validations
_CSV_COLUMNS = (
    *("epoch", "step", "picture", "true", "predicted", "true_score", "predicted_score"),
    *("is_right", "gt_known", "map_min", "map_max", "map_mean", "box_threshold"),
)


@dataclass
class TensorBoardSink:
    """Shows contact sheets, charts, and histograms of the maps."""

    logger: TensorBoardLogger
    log_mistakes: bool

    def log(self, snapshot: EpochSnapshot) -> None:
        """Show an epoch."""
        pictures = pictures_of(snapshot, log_mistakes=self.log_mistakes)
        histograms = {} if snapshot.statistics is None else snapshot.statistics.histograms
        for name, counts in histograms.items():
            self._add_histogram(f"val/cam_{name}_histogram", counts, snapshot.step)
        for name, picture in pictures.items():
            self.logger.experiment.add_image(
                name, np.asarray(picture), snapshot.step, dataformats="HWC"
            )

    def _add_histogram(self, name: str, counts: Tensor, step: int) -> None:
        """Log the counts of equal bins in [0, 1]; skip a histogram without any."""
        if not counts.any():
            return
        limits = (torch.arange(BINS, dtype=torch.float64) + 1) / BINS
        middles, pictures = limits - 0.5 / BINS, counts.double()
        self.logger.experiment.add_histogram_raw(
            name,
            min=0.0,
            max=1.0,
            num=int(counts.sum()),
            sum=float((pictures * middles).sum()),
            sum_squares=float((pictures * middles.square()).sum()),
            bucket_limits=limits.tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )


class CSVSink:
    """Writes ``cams.csv`` beside the logger's ``metrics.csv``: a line per picture and epoch."""

    def __init__(self, logger: CSVLogger) -> None:
        self.path = Path(logger.log_dir) / "cams.csv"
        self._text = io.StringIO()
        self._lines = csv.writer(self._text, lineterminator="\n")
        self._lines.writerow(_CSV_COLUMNS)

    def log(self, snapshot: EpochSnapshot) -> None:
        """Add the lines of an epoch."""
        if snapshot.split == "test":
            return
        names = snapshot.names
        for result in snapshot.results:
            true, predicted = result.true, result.predicted
            class_map = result.true_or_predicted.class_map
            self._lines.writerow(
                [
                    *(snapshot.moment.epoch, snapshot.step, result.picture.path),
                    *("" if true is None else names[true.label], names[predicted.label]),
                    *("" if true is None else true.score, predicted.score, int(result.is_right)),
                    "" if result.is_located is None else int(result.is_located),
                    *(class_map.min().item(), class_map.max().item(), class_map.mean().item()),
                    snapshot.threshold.value,
                ]
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # File names need not be valid text.
        text = self._text.getvalue().encode("utf-8", "backslashreplace").decode()
        write_text(self.path, text)


@dataclass
class WandbSink:
    """Shows overlays, whose boxes can be switched off, and tables in a W&B run.

    A validation is one row of the run's history: what is logged here waits for the scores, which
    ``CAMModule`` logs right afterwards under the same ``trainer/global_step``. The table
    ``val/cams_table`` is incremental: W&B shows the rows of all validations, and each uploads only
    its own; within an epoch, the column epoch holds parts. A run that is continued online continues
    its table. A run that is continued offline begins a new table; the earlier rows stay at their
    steps.
    """

    logger: WandbLogger
    log_mistakes: bool
    masks: bool = False  # whether heatmaps are masks, whose opacity can be changed in the browser
    _table: wandb.Table | None = field(default=None, init=False)
    _images: list[wandb.Image] = field(default_factory=list, init=False)  # without heatmaps

    def log(self, snapshot: EpochSnapshot) -> None:
        """Show an epoch."""
        with errors_as_warnings(self.logger):
            overlays = _overlays(snapshot, snapshot.results)
            shown = _overlays(snapshot, snapshot.results, masks=True) if self.masks else overlays
            if snapshot.split == "test":  # not of the table; the scores come in the same row
                row = {"test/cams": shown, "trainer/global_step": snapshot.step}
                log = partial(self.logger.experiment.log, row, commit=False)
                enqueue_call(self.logger, log)
                return
            rows = [snapshot.rows[result] for result in snapshot.results]
            if not self._images:
                tiles = _pad_to_one_size([row.picture_tile for row in rows])
                self._images = [_image(tile) for tile in tiles]
            lines = [
                [
                    *(snapshot.moment.epochs, result.picture.path, image, overlay),
                    *(row.true_name, row.predicted_name, row.predicted_score, result.is_located),
                ]
                for result, row, image, overlay in zip(
                    snapshot.results, rows, self._images, overlays, strict=True
                )
            ]
            media: dict[str, Any] = {"val/cams": shown, "epoch": snapshot.moment.epoch}
            if self.log_mistakes and snapshot.mistakes:
                media["val/cam_mistakes"] = _overlays(snapshot, snapshot.mistakes, masks=self.masks)
            if snapshot.statistics is not None:
                media |= _statistics_media(snapshot.statistics, list(snapshot.names))
            media["trainer/global_step"] = snapshot.step
            commit = snapshot.statistics is None  # else what is logged waits for the scores
            # Only the call that logs the table touches it, since it may run in a thread.
            enqueue_call(self.logger, partial(self._log, media, lines, commit=commit))

    def _log(self, media: dict[str, Any], lines: list[list[Any]], *, commit: bool) -> None:
        """Log media, and lines of the table; ``commit`` ends the row of the history."""
        import wandb

        if self._table is None:
            self._table = wandb.Table(columns=[*_COLUMNS], log_mode="INCREMENTAL")
        for line in lines:
            self._table.add_data(*line)
        self.logger.experiment.log({**media, TABLE: self._table}, commit=commit)
        for row in self._table.data[-len(lines) :]:
            row.clear()  # it is written, and W&B would keep its pictures for as long as the table
        if len(self._table.data) % (_COLLECT_EVERY * max(1, len(lines))) == 0:
            gc.collect()  # W&B keeps the last 100 artifacts of tables; older ones are cycles


Sink = TensorBoardSink | CSVSink | WandbSink | MlflowSink | ImageSink


def make_sinks(
    trainer: Trainer, folder: Path, report: Path, *, log_mistakes: bool, masks: bool
) -> list[Sink]:
    """A sink for each logger of the trainer that can show pictures or tables.

    One line says of the others, and of CSV, that the heatmaps are on disk.
    """
    sinks: list[Sink] = []
    loggers: list[Any] = trainer.loggers
    without = []
    for logger in loggers:
        if is_lightnings(logger, "WandbLogger"):
            sinks.append(WandbSink(logger, log_mistakes, masks))
        elif is_lightnings(logger, "TensorBoardLogger"):
            sinks.append(TensorBoardSink(logger, log_mistakes))
        elif is_lightnings(logger, "MLFlowLogger"):
            sinks.append(MlflowSink(logger, log_mistakes))
        elif is_lightnings(logger, "CSVLogger"):
            sinks.append(CSVSink(logger))
            without.append(type(logger).__name__)
        elif takes_images(logger):
            sinks.append(ImageSink(logger, log_mistakes))
        else:
            without.append(type(logger).__name__)
    if without:
        print_paragraph(
            f"No pictures for {', '.join(without)}: the heatmaps are in {folder} and {report}."
        )
    return sinks


def _image(tile: Image.Image, **options: Any) -> wandb.Image:
    """A tile as a JPEG for W&B."""
    import wandb

    return wandb.Image(tile, file_type="jpg", **options)


def _overlays(
    snapshot: EpochSnapshot, results: Sequence[PictureResult], *, masks: bool = False
) -> list[wandb.Image]:
    """Pictures under the heatmap of the true class; of the predicted class if there is none.

    ``masks`` puts the heatmap into a mask of a few levels over the picture.
    """
    rows = [snapshot.rows[result] for result in results]
    labels = [None if result.true is None else result.true.label for result in results]
    tiles = [
        row.picture_tile if masks else row.predicted_tile if label is None else row.true_tile
        for row, label in zip(rows, labels, strict=True)
    ]
    # W&B keeps the names of a key's boxes once, so each picture has to bring them all.
    names = {label: snapshot.names[label] for label in labels if label is not None}
    images = []
    for tile, row, label in zip(_pad_to_one_size(tiles), rows, labels, strict=True):
        caption = (
            f"true: {row.true_name} {row.true_score:.2f} | predicted: {row.predicted_name} "
            f"{row.predicted_score:.2f} ({'right' if row.is_right else 'wrong'})"
        )
        if label is not None:
            caption += f" | box threshold {snapshot.threshold}"
        boxes = None if label is None else _boxes(row, label, names)
        mask = _mask(row, label, tile.size) if masks else None
        images.append(_image(tile, caption=caption, boxes=boxes, masks=mask))
    return images


def _mask(row: SheetRow, label: int | None, size: tuple[int, int]) -> dict[str, Any]:
    """The heatmap as W&B's mask of a picture of a size, which may be padded."""
    heatmap = row.tile_of(row.predicted_heatmap if label is None else row.true_heatmap)
    data = np.zeros(size[::-1], np.uint8)
    height, width = heatmap.shape
    data[:height, :width] = (heatmap * _LEVELS).clip(0, _LEVELS - 1)
    names = {i: f"{i / _LEVELS:.1f} to {(i + 1) / _LEVELS:.1f}" for i in range(1, _LEVELS)}
    return {"heatmap": {"mask_data": data, "class_labels": names}}


def _pad_to_one_size(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures filled up with white at the right and bottom, since W&B wants one size."""
    size = (max(p.width for p in pictures), max(p.height for p in pictures))
    canvases = [Image.new("RGB", size, "white") for _ in pictures]
    for canvas, picture in zip(canvases, pictures, strict=True):
        canvas.paste(picture, (0, 0))
    return canvases


def _boxes(row: SheetRow, label: int, names: dict[int, str]) -> dict[str, Any]:
    """True and predicted boxes as W&B draws them, in pixels of the picture that is sent."""

    def boxes_of_one_kind(boxes_xyxy: Tensor, caption: str) -> dict[str, Any]:
        boxes = [
            {
                "position": {"minX": x0, "minY": y0, "maxX": x1, "maxY": y1},
                "domain": "pixel",
                "class_id": label,
                "box_caption": caption,
            }
            for x0, y0, x1, y1 in (boxes_xyxy * row.scale).round().int().tolist()
        ]
        return {"box_data": boxes, "class_labels": names}

    return {
        "truth": boxes_of_one_kind(row.true_boxes_xyxy, row.true_name),
        "prediction": boxes_of_one_kind(
            row.predicted_boxes_xyxy, f"{row.true_name} {row.true_score:.2f}"
        ),
    }


def _statistics_media(statistics: ValidationStatistics, names: list[str]) -> dict[str, Any]:
    """Histograms of the maps, the charts, and a table of the classes."""
    import wandb

    edges = np.linspace(0, 1, BINS + 1)
    media: dict[str, Any] = {
        f"val/cam_{name}_histogram": wandb.Histogram(np_histogram=(counts.numpy(), edges))
        for name, counts in statistics.histograms.items()
        if counts.any()
    }
    table = class_table(statistics.classes, names)
    if table is not None:
        columns = [column.name for column in table.columns]
        media["val/classes"] = wandb.Table(columns=[*columns], data=table.rows)
    if statistics.reliability_chart is not None:
        media["val/reliability"] = wandb.Image(statistics.reliability_chart)
    confusion = statistics.classes.confusion
    if confusion is not None and len(names) <= MATRIX_CLASSES:
        media["val/confusion"] = _confusion_chart(confusion, names)
    elif confusion is not None:
        pairs = confused_pairs(confusion, names, _PAIRS)
        columns = ["true", "predicted", "pictures", "part of the class"]
        media["val/confusion"] = wandb.Table(columns=[*columns], data=pairs)
    return media


def _confusion_chart(confusion: Tensor, names: list[str]) -> object:
    """W&B's own chart of a confusion matrix, from counts."""
    import wandb

    columns = ["Actual", "Predicted", "nPredictions"]
    data = [
        [names[i], names[j], count]
        for i, counts in enumerate(confusion.tolist())
        for j, count in enumerate(counts)
    ]
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=[*columns], data=data),
        {column: column for column in columns},
        {"title": "confusion of the classes"},
    )
