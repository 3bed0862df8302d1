"""The reliability chart: the places of its dots, their sizes, and free edges."""

from __future__ import annotations

import numpy as np
import pytest

from camtrain.visualize import reliability_picture
from camtrain.visualize.charts import COLORS
from tests.visualize.conftest import PAPER

LEFT, TOP, SIDE = 76, 16, 300  # the plot, in pixels


def dots(*bins: tuple[float, float, int]) -> np.ndarray:
    """Which pixels are of the measured line."""
    return (np.asarray(reliability_picture(bins)) == COLORS[0]).all(-1)


@pytest.mark.parametrize(("score", "accuracy"), [(0.5, 0.25), (0.1, 0.9), (1.0, 1.0)])
def test_a_bin_is_a_dot_at_its_score_and_accuracy(score: float, accuracy: float) -> None:
    y, x = np.nonzero(dots((score, accuracy, 4)))
    assert x.mean() == pytest.approx(LEFT + score * SIDE, abs=1)
    assert y.mean() == pytest.approx(TOP + (1 - accuracy) * SIDE, abs=1)


def test_more_predictions_are_a_larger_dot() -> None:
    both = dots((0.2, 0.9, 1), (0.8, 0.1, 9))
    middle = LEFT + SIDE // 2
    assert both[:, :middle].sum() < both[:, middle:].sum()


@pytest.mark.parametrize("bins", [[], [(0.5, 0.5, 1)], [(0.1, 0.0, 1), (1.0, 1.0, 9)]])
def test_nothing_reaches_the_edges(bins: list[tuple[float, float, int]]) -> None:
    picture = reliability_picture(bins)
    assert (picture.size, picture.mode) == ((400, 400), "RGB")
    pixels = np.asarray(picture)
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == PAPER).all()
