"""Everything that is shown of an epoch, wherever it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor, nn

from camtrain.training.evaluate.evaluator import ClassScores, Evaluation
from camtrain.training.watch.choice import Watched
from camtrain.training.watch.looking import Look, as_row
from camtrain.visualize import WatchedPicture, contact_sheet
from camtrain.visualize.overlay import palette
from camtrain.visualize.sheets import check_tile


@dataclass(frozen=True, eq=False)
class Measured:
    """What a validation has measured, beyond its scores.

    Attributes:
        classes: Of each class.
        histograms: Pictures per bin by name, see ``MapStatistics``.
        localization: See ``BoxScores.report``; empty where no picture had boxes.
    """

    classes: ClassScores
    histograms: Mapping[str, Tensor]
    localization: Mapping[str, Any]

    @classmethod
    def by(cls, evaluation: nn.Module) -> Measured:
        """What an ``Evaluation`` has counted, in all processes; every one must ask."""
        assert isinstance(evaluation, Evaluation)
        calibrated = evaluation.boxes.calibrated_threshold()
        return cls(
            evaluation.by_class(),
            evaluation.statistics.histograms(),
            evaluation.boxes.report(calibrated),
        )


@dataclass(frozen=True)
class Style:
    """How pictures are drawn.

    Attributes:
        colormap: See ``camtrain.visualize.overlay``.
        tile: Longer side of a picture, in pixels.
        logs_mistakes: Whether the loggers get the mistakes too.
    """

    colormap: str
    tile: int
    logs_mistakes: bool

    def __post_init__(self) -> None:
        """Check them at once, not after an epoch."""
        palette(self.colormap)
        check_tile(self.tile)

    @property
    def drawing(self) -> dict[str, Any]:
        """Arguments of the functions that draw."""
        return {"colormap": self.colormap, "tile": self.tile}


@dataclass(frozen=True, eq=False)
class EpochView:
    """What is shown of an epoch.

    Attributes:
        epoch: Epochs done; 0 before the training.
        step: Under which Lightning logs the scores.
        names: K class names.
        pictures: The watched pictures.
        looks: What the network sees in each.
        mistakes: The most confident ones of the validation, the worst first.
        measured: None before the training, and for another module than camtrain's.
    """

    epoch: int
    step: int
    names: Sequence[str]
    pictures: Sequence[Watched]
    looks: Sequence[Look]
    mistakes: Sequence[tuple[Watched, Look]]
    measured: Measured | None

    @property
    def seen(self) -> list[tuple[Watched, Look]]:
        """The watched pictures with what the network sees in them."""
        return list(zip(self.pictures, self.looks, strict=True))

    @property
    def rows(self) -> list[WatchedPicture]:
        """The watched pictures, as they are drawn."""
        return [as_row(one, look, self.names) for one, look in self.seen]

    @property
    def mistake_rows(self) -> list[WatchedPicture]:
        """The mistakes, as they are drawn."""
        return [as_row(one, look, self.names) for one, look in self.mistakes]

    def sheet(self, style: Style) -> Image.Image:
        """The contact sheet of the watched pictures."""
        right = sum(look.is_right for look in self.looks)
        title = f"epoch {self.epoch}  ·  {right} of {len(self.looks)} right"
        return contact_sheet(self.rows, title=title, **style.drawing)

    def mistake_sheet(self, style: Style) -> Image.Image:
        """The contact sheet of the mistakes, of which there must be one."""
        title = f"epoch {self.epoch}  ·  the most confident mistakes"
        return contact_sheet(self.mistake_rows, title=title, **style.drawing)


def caption(row: WatchedPicture) -> str:
    """Names and scores of a picture in one line."""
    verdict = "right" if row.is_right else "wrong"
    return (
        f"true: {row.true_name} {row.true_score:.2f} | "
        f"predicted: {row.predicted_name} {row.predicted_score:.2f} ({verdict})"
    )
