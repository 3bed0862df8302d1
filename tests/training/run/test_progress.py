"""The progress bar on a terminal of 80 columns."""

import io
from dataclasses import fields
from types import SimpleNamespace

import pytest
from pytorch_lightning.callbacks import RichProgressBar
from rich.color import Color, ColorType
from rich.console import Console

from camtrain.training.run.progress import ProgressBarFromOne, count_from_one

SCORES = {
    "val/max_box_acc": 0.5,
    "v_num": 3,
    "val/loss": 1.25,
    "val/acc1": 0.875,
    "train/loss": 1.5,
}


def bar_at(width: int, monkeypatch: pytest.MonkeyPatch, epoch: int = 2) -> ProgressBarFromOne:
    bar = ProgressBarFromOne()
    bar._console = Console(width=width, file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *_: dict(SCORES))
    bar._trainer = trainer_of(epoch)
    return bar


def trainer_of(epoch: int, bar: ProgressBarFromOne | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        max_epochs=100,
        current_epoch=epoch,
        num_training_batches=1200,
        sanity_checking=False,
        progress_bar_callback=bar,
        state=SimpleNamespace(fn="test"),
    )


@pytest.mark.parametrize(
    ("width", "names"),
    [
        (60, []),
        (80, ["train/loss", "val/acc1"]),
        (200, ["train/loss", "val/acc1", "val/loss", "val/max_box_acc", "v_num"]),
    ],
)
def test_scores_that_would_wrap_are_left_out(
    width: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = bar_at(width, monkeypatch, epoch=99)
    metrics = bar.get_metrics(trainer_of(99), None)
    assert list(metrics) == names
    text = " ".join(f"{name}: {value:.3f}" for name, value in metrics.items())
    assert bar._width(trainer_of(99)) + len(text) <= width


def test_epochs_count_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bar_at(80, monkeypatch)._get_train_description(0).strip() == "Epoch 1/100"
    [bar] = bars = [RichProgressBar(refresh_rate=3)]
    count_from_one(bars)
    assert type(bar) is ProgressBarFromOne
    assert bar.refresh_rate == 3


def test_its_colours_are_those_of_the_terminal() -> None:
    """A fixed colour vanishes on a ground that is like it; dim letters do on both."""
    theme = ProgressBarFromOne().theme
    styles = [getattr(theme, field.name) for field in fields(theme)][:-2]
    assert set(styles) == {"", "magenta", "green"}
    for name in set(styles) - {""}:
        assert Color.parse(name).type is ColorType.STANDARD


def test_writing_is_a_phase_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = bar_at(80, monkeypatch)
    bar._init_progress(trainer_of(0, bar))
    assert bar.progress is not None
    try:
        bar._show_writing()
        [row] = bar.progress.tasks
        assert (row.description.strip(), row.visible) == ("Writing", True)
        bar._hide_writing()
        assert not row.visible
        bar._hide_writing()  # twice is once
    finally:
        bar._stop_progress()
