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
from camtrain.training.wandb_run import later, never_stopping
from camtrain.training.watching.classes import class_table, confused_pairs
from camtrain.training.watching.looking import Look
from camtrain.training.watching.view import EpochView, Measured, Style, caption
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
    Lightning logs right afterwards, under the same ``trainer/global_step``.
    """

    def __init__(self, logger: WandbLogger, style: Style) -> None:
        self.logger = logger
        self.style = style
        self._table: wandb.Table | None = None
        self._images: list[wandb.Image] = []  # of the watched pictures, as they are
        self._before: dict[str, Any] = {}

    def publish(self, view: EpochView) -> None:
        """Show an epoch."""
        with never_stopping(self.logger):
            media = {**self._media(view), "trainer/global_step": view.step}
            waits_for_scores = view.epoch > 0
            run = self.logger.experiment
            later(self.logger, partial(run.log, media, commit=not waits_for_scores))

    def state_dict(self) -> dict[str, Any]:
        """Where the table goes on; an offline run cannot look it up."""
        table = self._table
        if table is None:
            return self._before
        with never_stopping(self.logger):
            entry = table._get_artifact_entry_ref_url()
            paths = [*(table._previous_increments_paths or []), *([entry] if entry else [])]
            return {"increments": (table._increment_num or 0) + 1, "paths": paths}
        return self._before

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``state_dict``."""
        self._before = dict(state)

    def _media(self, view: EpochView) -> dict[str, Any]:
        rows, drawn = view.rows, self._drawn(view.rows)
        overlays = _overlays(rows, view.looks, drawn)
        table = self._grown_table(view, drawn, overlays)
        media: dict[str, Any] = {"val/cams": overlays, TABLE: table}
        if self.style.logs_mistakes and view.mistakes:
            rows, looks = view.mistake_rows, [look for _, look in view.mistakes]
            media["val/cam_mistakes"] = _overlays(rows, looks, self._drawn(rows))
        if view.measured is not None:
            media |= _measured_media(view.measured, list(view.names))
        return media

    def _drawn(self, rows: Sequence[WatchedPicture]) -> list[Tiles]:
        return [tiles(row, **self.style.drawing) for row in rows]

    def _grown_table(
        self, view: EpochView, drawn: list[Tiles], overlays: list[wandb.Image]
    ) -> wandb.Table:
        """The table with a row for each picture of the epoch; only they are sent."""
        import wandb

        if self._table is None:
            self._table = wandb.Table(columns=[*_COLUMNS], log_mode="INCREMENTAL")
            if not self.logger.experiment.resumed:  # else W&B asks its server
                self._table._increment_num = self._before.get("increments", 0)
                self._table._previous_increments_paths = list(self._before.get("paths", ()))
            pictures = _of_one_size([one.picture for one in drawn])
            self._images = [wandb.Image(picture, file_type="jpg") for picture in pictures]
        for (one, look), image, overlay in zip(view.seen, self._images, overlays, strict=True):
            self._table.add_data(
                view.epoch,
                one.path,
                image,
                overlay,
                "no class" if look.true is None else view.names[look.true.label],
                view.names[look.predicted.label],
                look.predicted.score,
                look.is_located,
            )
        return self._table


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
