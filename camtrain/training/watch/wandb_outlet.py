"""Epochs in Weights & Biases: pictures with boxes that can be switched off, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from camtrain.localization.map_statistics import BINS
from camtrain.training.run.wandb import enqueue_call, errors_as_warnings
from camtrain.training.watch.classes import class_table, confused_pairs
from camtrain.training.watch.looking import Look
from camtrain.training.watch.view import EpochView, Measured, Style, caption
from camtrain.visualize import Tiles, WatchedPicture, tiles

if TYPE_CHECKING:
    import wandb

TABLE = "val/cams_table"
_COLUMNS = ["epoch", "picture", "image", "overlay", "true", "predicted", "score", "GT-known hit"]
_MATRIX_CLASSES = 60  # the chart of more could not be read; they are a table of pairs
_PAIRS = 500


class WandbOutlet:
    """Shows epochs in a W&B run.

    All of an epoch is one row of the run's history: what is logged here waits for the scores, which
    ``CAMModule`` logs right afterwards, under the same ``trainer/global_step``.
    """

    def __init__(self, logger: WandbLogger, style: Style) -> None:
        self.logger = logger
        self.style = style
        self._table: wandb.Table | None = None
        self._images: list[wandb.Image] = []  # of the watched pictures, as they are
        self._state: dict[str, Any] = {}

    def publish(self, view: EpochView) -> None:
        """Show an epoch."""
        with errors_as_warnings(self.logger):
            rows = view.rows
            drawn = self._drawn(rows)
            if not self._images:
                self._images = _images([one.picture for one in drawn])
            overlays = _overlays(rows, view.looks, drawn)
            lines = [
                _line(view, place, image, overlay)
                for place, (image, overlay) in enumerate(zip(self._images, overlays, strict=True))
            ]
            media = {"val/cams": overlays, **self._more(view), "trainer/global_step": view.step}
            # The table is known to whoever logs it only, which may be a thread.
            enqueue_call(
                self.logger, partial(self._log, media, lines, waits=view.measured is not None)
            )

    def state_dict(self) -> dict[str, Any]:
        """Where the table goes on; an offline run cannot look it up."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``state_dict``; the table of another run is none of ours."""
        if state.get("run") == self.logger.version:
            self._state = dict(state)

    def _more(self, view: EpochView) -> dict[str, Any]:
        """The mistakes, by choice, and what was measured."""
        media: dict[str, Any] = {}
        if self.style.logs_mistakes and view.mistakes:
            rows, looks = view.mistake_rows, [look for _, look in view.mistakes]
            media["val/cam_mistakes"] = _overlays(rows, looks, self._drawn(rows))
        if view.measured is not None:
            media |= _measured_media(view.measured, list(view.names))
        return media

    def _drawn(self, rows: Sequence[WatchedPicture]) -> list[Tiles]:
        return [tiles(row, **self.style.drawing) for row in rows]

    def _log(self, media: dict[str, Any], lines: list[list[Any]], *, waits: bool) -> None:
        """Log a row with the table, of which only the new lines are sent."""
        import wandb

        run = self.logger.experiment
        if self._table is None:
            self._table = wandb.Table(columns=[*_COLUMNS], log_mode="INCREMENTAL")
            if not run.resumed:  # else W&B asks its server
                self._table._increment_num = self._state.get("increments", 0)
                self._table._previous_increments_paths = list(self._state.get("paths", ()))
        for line in lines:
            self._table.add_data(*line)
        run.log({**media, TABLE: self._table}, commit=not waits)
        entry = self._table._get_artifact_entry_ref_url()
        self._state = {
            "run": self.logger.version,
            "increments": (self._table._increment_num or 0) + 1,
            "paths": [
                *(self._table._previous_increments_paths or ()),
                *([entry] if entry else ()),
            ],
        }


def _line(view: EpochView, place: int, image: wandb.Image, overlay: wandb.Image) -> list[Any]:
    """A line of the table."""
    one, look = view.seen[place]
    true, predicted = look.true, look.predicted
    names = ["no class" if true is None else view.names[true.label], view.names[predicted.label]]
    return [view.epoch, one.path, image, overlay, *names, predicted.score, look.is_located]


def _images(pictures: list[Image.Image]) -> list[wandb.Image]:
    import wandb

    return [wandb.Image(picture, file_type="jpg") for picture in _of_one_size(pictures)]


def _overlays(
    rows: Sequence[WatchedPicture], looks: Sequence[Look], drawn: Sequence[Tiles]
) -> list[wandb.Image]:
    """Pictures under the heatmaps of their true classes (of what is predicted, for none)."""
    import wandb

    shown = [
        one.predicted if look.true is None else one.true
        for one, look in zip(drawn, looks, strict=True)
    ]
    pairs = [(look.true, row) for row, look in zip(rows, looks, strict=True)]
    # W&B keeps the names of a key's boxes once, so each picture has to bring them all.
    names = {true.label: row.true_name for true, row in pairs if true is not None}
    return [
        wandb.Image(
            picture,
            caption=caption(row),
            boxes=None if true is None else _boxes(row, true.label, names, one.scale),
            file_type="jpg",
        )
        for picture, (true, row), one in zip(_of_one_size(shown), pairs, drawn, strict=True)
    ]


def _of_one_size(pictures: list[Image.Image]) -> list[Image.Image]:
    """Pictures filled up with white at the right and bottom, since W&B wants one size."""
    size = (max(one.width for one in pictures), max(one.height for one in pictures))
    filled = [Image.new("RGB", size, "white") for _ in pictures]
    for canvas, one in zip(filled, pictures, strict=True):
        canvas.paste(one, (0, 0))
    return filled


def _boxes(row: WatchedPicture, label: int, names: dict[int, str], scale: float) -> dict[str, Any]:
    """Truth and prediction as W&B draws them, in pixels of the picture that is sent."""

    def kind(boxes_xyxy: Tensor, words: str) -> dict[str, Any]:
        boxes = [
            {
                "position": {"minX": x0, "minY": y0, "maxX": x1, "maxY": y1},
                "domain": "pixel",
                "class_id": label,
                "box_caption": words,
            }
            for x0, y0, x1, y1 in (boxes_xyxy * scale).round().int().tolist()
        ]
        return {"box_data": boxes, "class_labels": names}

    return {
        "truth": kind(row.true_boxes_xyxy, row.true_name),
        "prediction": kind(row.predicted_boxes_xyxy, f"{row.true_name} {row.true_score:.2f}"),
    }


def _measured_media(measured: Measured, names: list[str]) -> dict[str, Any]:
    """Histograms of the maps, the confusion matrix, and a table of the classes."""
    import wandb

    edges = np.linspace(0, 1, BINS + 1)
    media: dict[str, Any] = {
        f"val/cam_{name}_histogram": wandb.Histogram(np_histogram=(counts.numpy(), edges))
        for name, counts in measured.histograms.items()
        if counts.any()
    }
    table = class_table(measured.classes, names)
    if table is not None:
        columns = [column.name for column in table.columns]
        media["val/classes"] = wandb.Table(columns=[*columns], data=table.rows)
    confusion = measured.classes.confusion
    if confusion is not None and len(names) <= _MATRIX_CLASSES:
        media["val/confusion"] = _chart(confusion, names)
    elif confusion is not None:
        pairs = confused_pairs(confusion, names, _PAIRS)
        columns = ["true", "predicted", "pictures", "part of the class"]
        media["val/confusion"] = wandb.Table(columns=[*columns], data=pairs)
    return media


def _chart(confusion: Tensor, names: list[str]) -> object:
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
