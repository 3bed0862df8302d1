"""The verdict: what the numbers allow to say."""

import pytest
import torch

from camtrain.localization import MaxBoxAcc
from camtrain.training.evaluate.verdict import verdict


def report(boxes: float, centre: float, low: float, high: float) -> dict[str, object]:
    values = {"boxes": boxes, "centre": centre, "low": low, "high": high}
    thresholds = {"calibrated": 0.503}
    return {"against_centre": values, "thresholds": thresholds, "pictures_with_boxes": 135}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.622, 0.6, -0.06, 0.1), "no better than"),
        ((0.9, 0.6, 0.2, 0.4), "better than"),
        ((0.3, 0.6, -0.4, -0.2), "worse than"),
    ],
)
def test_a_difference_within_its_uncertainty_is_none(
    values: tuple[float, float, float, float], words: str
) -> None:
    sentence = verdict(report(*values), {})
    assert sentence is not None
    begin = f"{100 * values[0]:.1f} % against 60.0 % for a fixed box, 135 pictures: "
    assert sentence.startswith(f"{begin}{words} the middle of the picture (difference ")
    assert sentence.endswith("threshold 0.503, calibrated on val).")


def test_without_boxes_mosaics_tell_and_without_both_nothing() -> None:
    assert verdict({}, {}) is None
    sentence = verdict({}, {"mosaic_peak": 0.71, "mosaic_chance": 0.5})
    assert sentence is not None
    assert "71.0 %" in sentence
    assert "50.0 % by chance" in sentence


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.05, 0.2, "better than"), (-0.1, 0.1, "no better than"), (-0.2, -0.1, "worse than")],
)
def test_without_boxes_faithfulness_tells_too(low: float, high: float, words: str) -> None:
    against = {"difference": (low + high) / 2, "low": low, "high": high}
    faithfulness = {
        "pictures": 64,
        "srg": {"shown": 0.4, "centre": 0.283},
        "against": {"centre": against},
    }
    sentence = verdict({"faithfulness": faithfulness}, {})
    assert sentence is not None
    assert sentence.startswith(
        "Faithfulness (SRG) 40.0 against 28.3 for the middle, 64 pictures: the maps tell "
        f"{words} the middle"
    )
    assert verdict({"faithfulness": {**faithfulness, "pictures": 1}}, {}) is None
    both = verdict({"faithfulness": faithfulness}, {"mosaic_peak": 0.7, "mosaic_chance": 0.5})
    assert both == (
        "On mosaics 70.0 % of the maps peak in a picture of their class, 50.0 % by chance. "
        f"{sentence}"
    )
    boxes = {**report(0.9, 0.6, 0.2, 0.4), "faithfulness": faithfulness}
    assert verdict(boxes, {}) == verdict(report(0.9, 0.6, 0.2, 0.4), {})


def test_it_says_where_a_fixed_box_wins() -> None:
    groups = {
        "by_size": {
            "15 to 30 %": {"pictures": 40, "boxes": 0.8, "centre": 0.3, "low": 0.3, "high": 0.6},
            "60 % and more": {"pictures": 50, "boxes": 0.7, "centre": 1, "low": -0.4, "high": -0.2},
        },
        "by_number": {
            "one thing": {"pictures": 90, "boxes": 0.7, "centre": 0.7, "low": -0.1, "high": 0.1},
        },
    }
    plain = report(0.7, 0.7, -0.1, 0.1)
    assert verdict(plain | groups, {}) == (
        f"{verdict(plain, {})} The fixed box is the better one where things fill 60 % and more "
        "(100.0 % against 70.0 % of 50 pictures)."
    )


def test_the_interval_is_that_of_pairs() -> None:
    """Two pictures: the box is right in one of them, the fixed box in the other."""
    maps = torch.zeros(2, 8, 8)
    maps[:, :2, :2] = 1.0
    boxes = [torch.tensor([[0, 0, 56, 56]]), torch.tensor([[28, 28, 196, 196]])]
    metric = MaxBoxAcc()
    metric.update(maps, boxes, torch.tensor([[224, 224]] * 2))
    values = metric.against_centre(0.5)
    assert (values["boxes"], values["centre"]) == (0.5, 0.5)
    reach = 1.96 * (3 / 4) ** 0.5 / 2  # one and a half picture for each side, of four
    assert values["high"] == pytest.approx(reach)
    assert values["low"] == pytest.approx(-reach)
