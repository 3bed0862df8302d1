"""Everything that is shown of one epoch, in the report and by every logger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from pytorch_lightning import Trainer
from torch import Tensor, nn

from camtrain.thresholds import DEFAULT_THRESHOLD
from camtrain.training.evaluate.scores import ClassScores, Evaluation
from camtrain.training.run.trainer import ends_epoch
from camtrain.training.watch.results import PictureResult
from camtrain.visualize import SheetRow, contact_sheet, reliability_picture

_MOST_CLASSES = 1000  # of a table: about 50 kB in the report and in W&B


class BoxThreshold(NamedTuple):
    """The threshold of an epoch's boxes: that which its bundle ships."""

    value: float = DEFAULT_THRESHOLD  # part of the heatmap's maximum, in [0, 1)
    is_calibrated: bool = False  # whether the epoch's validation chose it

    def __str__(self) -> str:
        """How legends state it."""
        return f"{self.value:.3g}, {'calibrated' if self.is_calibrated else 'the default'}"


DEFAULT_BOX_THRESHOLD = BoxThreshold()


class Moment(NamedTuple):
    """When a training is looked at: at the end of an epoch, or within one, after some steps.

    Example:
        >>> moments = Moment(2), Moment(2, 0.25, 30)
        >>> [moment.stem for moment in sorted(moments)]
        ['epoch_002_step_000030', 'epoch_002']
    """

    epoch: int  # number of the epoch, from 1; 0 before the training
    part: float = 1.0  # of the epoch
    step: int | None = None  # optimizer steps of the training; None at the end of the epoch

    @classmethod
    def of(cls, trainer: Trainer) -> Moment:
        """The moment of a validation of a training."""
        epoch, batches = trainer.current_epoch + 1, trainer.fit_loop.batch_idx + 1
        if ends_epoch(trainer):
            return cls(epoch)
        return cls(epoch, batches / trainer.num_training_batches, trainer.global_step)

    @property
    def epochs(self) -> float:
        """Epochs done, whole and parts."""
        return self.epoch if self.step is None else self.epoch - 1 + self.part

    @property
    def label(self) -> int | str:
        """What follows the word epoch."""
        return self.epoch if self.step is None else f"{self.epoch}, step {self.step}"

    @property
    def stem(self) -> str:
        """Name of its files, without suffix."""
        return f"epoch_{self.epoch:03d}" + ("" if self.step is None else f"_step_{self.step:06d}")


@dataclass(frozen=True, eq=False)
class ValidationStatistics:
    """What a validation measures besides its scores."""

    classes: ClassScores
    histograms: Mapping[str, Tensor]  # pictures per bin by name, see `MapStatistics`
    localization: Mapping[str, Any]  # see `BoxScores.report`; empty where no picture had boxes
    reliability: Sequence[Sequence[float]]  # see `CalibrationError`

    @classmethod
    def of(cls, evaluation: nn.Module) -> ValidationStatistics:
        """What an ``Evaluation`` has counted in all processes; call in every process."""
        assert isinstance(evaluation, Evaluation)
        calibrated = evaluation.boxes.calibrated_threshold()
        histograms = evaluation.statistics.histograms()
        report, reliability = (
            evaluation.boxes.report(calibrated),
            evaluation.calibration.reliability(),
        )
        return cls(evaluation.by_class(), histograms, report, reliability)

    @cached_property
    def reliability_chart(self) -> Image.Image | None:
        """Accuracy against score; None if nothing was counted."""
        return reliability_picture(self.reliability) if self.reliability else None

    @property
    def threshold(self) -> BoxThreshold:
        """The threshold that the validation chose; the default where it could choose none."""
        calibrated = self.localization.get("thresholds", {}).get("calibrated")
        return BoxThreshold() if calibrated is None else BoxThreshold(calibrated, True)


@dataclass(frozen=True, eq=False)
class EpochSnapshot:
    """What is shown of a validation. Sheets and tiles are drawn once, when they are first used."""

    moment: Moment
    step: int  # the step under which Lightning logs the scores
    names: Sequence[str]  # K class names
    results: Sequence[PictureResult]  # of the watched pictures
    mistakes: Sequence[PictureResult]  # the most confident ones of the validation, worst first
    # None before the training, and for a module that is not a `CAMModule`
    statistics: ValidationStatistics | None
    threshold: BoxThreshold = DEFAULT_BOX_THRESHOLD  # of the boxes of results and mistakes
    split: Literal["val", "test"] = "val"
    colormap: str = "viridis"
    tile: int = 256  # longer side of a drawn picture, in pixels

    @cached_property
    def rows(self) -> dict[PictureResult, SheetRow]:
        """Watched pictures and mistakes as they are drawn; a picture may be both."""
        return {result: self._row(result) for result in (*self.results, *self.mistakes)}

    @cached_property
    def sheet(self) -> Image.Image:
        """The contact sheet of the watched pictures."""
        right = sum(result.is_right for result in self.results)
        test = "test split  ·  " if self.split == "test" else ""
        title = f"{test}epoch {self.moment.label}  ·  {right} of {len(self.results)} right"
        return self._sheet(self.results, title)

    @cached_property
    def mistake_sheet(self) -> Image.Image:
        """The contact sheet of the mistakes; there must be a mistake."""
        title = f"epoch {self.moment.label}  ·  the most confident mistakes"
        return self._sheet(self.mistakes, title)

    def _sheet(self, results: Sequence[PictureResult], title: str) -> Image.Image:
        rows = [self.rows[result] for result in results]
        return contact_sheet(
            rows, title=title, box_name=f"predicted box, threshold {self.threshold}"
        )

    def _row(self, result: PictureResult) -> SheetRow:
        """A result as a row of a contact sheet."""
        picture, true, predicted = result.picture, result.true, result.predicted
        return SheetRow(
            image=picture.pixels,
            true_heatmap=torch.zeros(picture.size_hw) if true is None else true.heatmap,
            predicted_heatmap=predicted.heatmap,
            true_boxes_xyxy=picture.boxes_xyxy,
            predicted_boxes_xyxy=torch.zeros(0, 4) if true is None else true.boxes_xyxy,
            true_name="no class" if true is None else self.names[true.label],
            predicted_name=self.names[predicted.label],
            true_score=0.0 if true is None else true.score,
            predicted_score=predicted.score,
            is_right=result.is_right,
            colormap=self.colormap,
            tile=self.tile,
        )


class Column(NamedTuple):
    """A column of a table: its heading, and the kind of its values; percents are fractions."""

    name: str
    kind: Literal["text", "number", "percent"]


class ClassTable(NamedTuple):
    """A table with a row per class; a value is None where nothing was counted."""

    columns: list[Column]
    rows: list[list[Any]]
    score: int  # index of the column that says how well a class is classified


def class_table(scores: ClassScores, names: Sequence[str]) -> ClassTable | None:
    """A table with a row for each class, at most the worst 1,000; None if nothing was counted."""
    columns, values = [Column("class", "text")], [list[Any](names)]
    if scores.confusion is not None:
        pictures = scores.confusion.sum(1)
        columns += [Column("pictures", "number"), Column("accuracy", "percent")]
        values += [pictures.tolist(), _fractions(scores.confusion.diagonal(), pictures)]
    elif scores.average_precision is not None:
        columns.append(Column("average precision", "percent"))
        precisions = scores.average_precision.tolist()
        values.append([None if math.isnan(value) else value for value in precisions])
    score = max(1, len(columns) - 1)
    if scores.boxes_seen.any():
        columns += [Column("GT-known", "percent"), Column("pictures with boxes", "number")]
        values += [_fractions(scores.boxes_right, scores.boxes_seen), scores.boxes_seen.tolist()]
    if len(columns) == 1:
        return None
    rows = list(map(list, zip(*values, strict=True)))
    if len(rows) > _MOST_CLASSES:
        rows.sort(key=lambda row: (row[score] is None, row[score]))
    return ClassTable(columns, rows[:_MOST_CLASSES], score)


def confused_pairs(confusion: Tensor, names: Sequence[str], most: int) -> list[list[Any]]:
    """The ``most`` pairs of classes that are confused most often, the most frequent first.

    Args:
        confusion: (K, K) int64, by true class (rows) and predicted class (columns).
        names: K class names.
        most: How many pairs at most.

    Returns:
        Rows of true class, predicted class, pictures, and their fraction of the true class.
    """
    totals = confusion.sum(1).tolist()
    wrong = [(int(confusion[i, j]), i, j) for i, j in confusion.nonzero().tolist() if i != j]
    wrong.sort(key=lambda pair: (-pair[0], pair[1:]))
    return [[names[i], names[j], count, count / totals[i]] for count, i, j in wrong[:most]]


def _fractions(part: Tensor, whole: Tensor) -> list[float | None]:
    """Each part divided by its whole; None if the whole is 0."""
    return [a / b if b else None for a, b in zip(part.tolist(), whole.tolist(), strict=True)]
