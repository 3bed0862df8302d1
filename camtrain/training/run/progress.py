"""Lightning's progress bar as a person reads it on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    RichProgressBarTheme,
)
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn

# Names of the terminal's own colours, which its owner can read on its own ground.
_THEME = RichProgressBarTheme(
    progress_bar="magenta",
    progress_bar_finished="green",
    progress_bar_pulse="magenta",
    time="",
    processing_speed="",
    metrics="",
)
_BAR_WIDTH = 10
_FIRST = ("train/loss", "val/acc1", "val/map", "val/loss")


class ProgressBarFromOne(RichProgressBar):
    """Epochs that count from 1 as everywhere else, a line that names the phase, in one row.

    Of the scores it shows those that fit behind the bar.
    """

    _writing: Any = None  # the row of the phase in which scores and files are made

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"theme": _THEME, **options})

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Phase, bar, batches, time left."""
        theme = self.theme
        bar = BarColumn(
            bar_width=_BAR_WIDTH,
            complete_style=theme.progress_bar,
            finished_style=theme.progress_bar_finished,
            pulse_style=theme.progress_bar_pulse,
        )
        batches = BatchesProcessedColumn(style=theme.batch_progress)
        return [TextColumn("{task.description}"), bar, batches, TimeRemainingColumn()]

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Those that fit beside the bar, the most important ones first."""
        metrics = super().get_metrics(trainer, pl_module)
        names = sorted(metrics, key=lambda n: _FIRST.index(n) if n in _FIRST else len(_FIRST))
        room = (self._console.width if self._console else 80) - self._width(trainer)
        fitting = {}
        for name in names:
            room -= len(name) + len(": 0.000 ")
            if room < 0:
                break
            fitting[name] = metrics[name]
        return fitting

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What follows a validation takes time: scores, heatmaps, report, checkpoint, bundle."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._show_writing()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As after a validation."""
        self._show_writing()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The files of the epoch before are written."""
        self._hide_writing()
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """The files of a validation within the epoch are written."""
        self._hide_writing()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing more is written."""
        self._hide_writing()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing more is written."""
        self._hide_writing()
        super().on_test_end(trainer, pl_module)

    def _width(self, trainer: Trainer) -> int:
        """Columns of all but the scores: phase, bar, batches, time left, and a space after each."""
        batches = len(str(trainer.num_training_batches))
        description = len(self._get_train_description(trainer.current_epoch))
        return description + _BAR_WIDTH + 2 * batches + 1 + len("0:00:00") + 4

    def _show_writing(self) -> None:
        if self.progress is not None and self.is_enabled and not self.trainer.sanity_checking:
            self._hide_writing()
            self._writing = self._add_task(1, "Writing".ljust(len(self.validation_description)))
            self.refresh(hard=True)

    def _hide_writing(self) -> None:
        if self._writing is not None and self.progress is not None:
            self.progress.update(self._writing, visible=False)
            self.refresh(hard=True)
        self._writing = None

    def _get_train_description(self, current_epoch: int) -> str:
        total = self.trainer.max_epochs
        text = f"Epoch {current_epoch + 1}{f'/{total}' if total and total > 0 else ''}"
        return text.ljust(len(self.validation_description))


def count_from_one(callbacks: Sequence[Callback]) -> None:
    """Let Lightning's usual progress bar be as ours; other bars are left as they are."""
    for bar in callbacks:
        if type(bar) is RichProgressBar:
            bar.__class__ = ProgressBarFromOne  # keeps its settings
