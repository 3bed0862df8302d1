"""Where an epoch is shown beside the disk: one outlet per logger of the trainer."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from camtrain.localization.map_statistics import BINS
from camtrain.training.files import write_text
from camtrain.training.watch.view import EpochView, Style
from camtrain.training.watch.wandb_outlet import WandbOutlet
from camtrain.visualize import confusion_picture

_MATRIX_CLASSES = 60  # more cannot be read in a picture
_CSV_COLUMNS = (
    *("epoch", "step", "picture", "true", "predicted", "true_score", "predicted_score"),
    *("is_right", "gt_known", "map_min", "map_max", "map_mean"),
)


class Outlet(Protocol):
    """Shows epochs to a logger."""

    def publish(self, view: EpochView) -> None:
        """Show an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on with, plain values."""


def make_outlets(trainer: Trainer, style: Style, states: Sequence[dict[str, Any]]) -> list[Outlet]:
    """An outlet for each logger that can show pictures or tables.

    Args:
        trainer: Whose loggers.
        style: How to draw.
        states: ``state_dict`` of each, from the training that is resumed, if it had as many.
    """
    outlets: list[Outlet] = []
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            outlets.append(WandbOutlet(logger, style))
        elif isinstance(logger, TensorBoardLogger):
            outlets.append(_TensorBoardOutlet(logger, style))
        elif isinstance(logger, CSVLogger):
            outlets.append(_CSVOutlet(logger))
    for outlet, state in zip(outlets, states, strict=False):
        if isinstance(outlet, WandbOutlet):
            outlet.load_state_dict(state)
    return outlets


class _TensorBoardOutlet:
    """Contact sheets, the confusion matrix, and histograms of the maps."""

    def __init__(self, logger: TensorBoardLogger, style: Style) -> None:
        self.logger = logger
        self.style = style

    def publish(self, view: EpochView) -> None:
        """Show an epoch."""
        pictures = {"val/cams": view.sheet(self.style)}
        if self.style.logs_mistakes and view.mistakes:
            pictures["val/cam_mistakes"] = view.mistake_sheet(self.style)
        measured, writer = view.measured, self.logger.experiment
        if measured is not None:
            confusion = measured.classes.confusion
            if confusion is not None and len(confusion) <= _MATRIX_CLASSES:
                pictures["val/confusion"] = confusion_picture(confusion, view.names)
            for name, counts in measured.histograms.items():
                self._add_histogram(f"val/cam_{name}_histogram", counts, view.step)
        for name, picture in pictures.items():
            writer.add_image(name, np.asarray(picture), view.step, dataformats="HWC")

    def _add_histogram(self, name: str, counts: Tensor, step: int) -> None:
        if not counts.any():
            return
        limits = (torch.arange(BINS, dtype=torch.float64) + 1) / BINS
        middles, number = limits - 0.5 / BINS, counts.double()
        self.logger.experiment.add_histogram_raw(
            name,
            min=0.0,
            max=1.0,
            num=int(counts.sum()),
            sum=float((number * middles).sum()),
            sum_squares=float((number * middles.square()).sum()),
            bucket_limits=limits.tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class _CSVOutlet:
    """``cams.csv`` beside the logger's ``metrics.csv``: a line per watched picture and epoch."""

    def __init__(self, logger: CSVLogger) -> None:
        self.path = Path(logger.log_dir) / "cams.csv"
        self._text = io.StringIO()
        self._lines = csv.writer(self._text, lineterminator="\n")
        self._lines.writerow(_CSV_COLUMNS)

    def publish(self, view: EpochView) -> None:
        """Add the lines of an epoch."""
        for one, look in view.seen:
            true, predicted = look.true, look.predicted
            class_map = (predicted if true is None else true).class_map
            self._lines.writerow(
                [
                    *(view.epoch, view.step, one.path),
                    *("" if true is None else view.names[true.label], view.names[predicted.label]),
                    *("" if true is None else true.score, predicted.score, int(look.is_right)),
                    "" if look.is_located is None else int(look.is_located),
                    *(class_map.min().item(), class_map.max().item(), class_map.mean().item()),
                ]
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Names of files need not be text.
        text = self._text.getvalue().encode("utf-8", "backslashreplace").decode()
        write_text(self.path, text)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a resumed training writes a version of its own."""
        return {}
