"""MapStatistics: exact values by hand, the energy of EnergyInBox, law 7, degenerate maps."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.localization import EnergyInBox, MapStatistics

BatchOf = Callable[[list[int]], dict[str, Any]]
NONE = torch.zeros(0, 4)
SIZE = (40, 64)


def of_one(class_map: Tensor, boxes: Tensor = NONE) -> dict[str, float]:
    metric = MapStatistics()
    metric.update(class_map[None], [boxes], SIZE)
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize(
    ("cells", "area", "entropy"),
    [
        ([0.0, 0.0, 0.0, 8.0], 0.25, 0.0),  # one cell has it all
        ([-5.0, -5.0, 2.0, 2.0], 0.5, 0.5),  # two of four: ln 2 / ln 4
        ([1.0, 1.0, 1.0, 1.0], 0.0, 1.0),  # flat
        ([-4.0, -3.0, -2.0, -1.0], 0.75, 1.0),  # no positive energy; 0, 1/3, 2/3, 1 of the range
        ([0.0, 0.2, 1.0, 0.21], 0.5, None),  # exactly the threshold is not above it
    ],
)
def test_area_and_entropy_by_hand(cells: list[float], area: float, entropy: float | None) -> None:
    found = of_one(torch.tensor(cells, dtype=torch.float64).reshape(2, 2))
    assert found["area"] == area
    if entropy is not None:
        assert found["entropy"] == pytest.approx(entropy, abs=1e-12)
    assert math.isnan(found["energy_in_box"])


def test_entropy_is_that_of_the_definition() -> None:
    class_map = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    p = [value for value in class_map.flatten().tolist() if value > 0]
    p = [value / sum(p) for value in p]
    expected = -sum(value * math.log(value) for value in p) / math.log(40)
    assert of_one(class_map)["entropy"] == pytest.approx(expected, rel=1e-6)


def test_height_and_width_are_not_swapped() -> None:
    class_map = torch.zeros(5, 8)
    class_map[:, 0] = 1.0  # the left edge, 8 pixels wide
    left, top = torch.tensor([[0, 0, 12, 40]]), torch.tensor([[0, 0, 64, 8]])
    assert of_one(class_map, left)["energy_in_box"] == 1.0
    assert of_one(class_map, top)["energy_in_box"] == pytest.approx(0.2)


def test_energy_is_that_of_energy_in_box_and_the_mean_of_its_histogram(batch_of: BatchOf) -> None:
    batch = batch_of([i for i in range(24) if i not in (3, 7)])
    expected, metric = EnergyInBox(), MapStatistics()
    for place in range(len(batch["maps"])):
        one = slice(place, place + 1)
        size_hw = tuple(batch["sizes_hw"][place].tolist())
        metric.update(batch["maps"][one], batch["boxes_xyxy"][one], size_hw)
    expected.update(batch["maps"], batch["boxes_xyxy"], batch["sizes_hw"])
    found = metric.compute()
    assert found["energy_in_box"].item() == pytest.approx(expected.compute()["energy"].item())
    for name, counts in metric.histograms().items():
        middles = (torch.arange(20) + 0.5) / 20
        mean = ((counts * middles).sum() / counts.sum()).item()
        assert mean == pytest.approx(found[name].item(), abs=0.025)


def test_law_7_neither_batches_nor_order_matter(batch_of: BatchOf) -> None:
    def measured(*parts: list[int]) -> MapStatistics:
        metric = MapStatistics()
        for part in parts:
            batch = batch_of(part)
            metric.update(batch["maps"], batch["boxes_xyxy"], SIZE)
        return metric

    everything = list(range(24))
    whole = measured(everything)
    for other in (measured(*([i] for i in everything)), measured(everything[::-1])):
        for name, value in whole.compute().items():
            assert other.compute()[name].item() == pytest.approx(value.item(), abs=1e-12)
            assert torch.equal(other.histograms()[name], whole.histograms()[name])


def test_what_shows_nothing_is_not_counted() -> None:
    metric = MapStatistics()
    bad = torch.zeros(2, 3, 4)
    bad[0, 0, 0], bad[1, 2, 3] = torch.nan, torch.inf
    metric.update(bad, [NONE, NONE], SIZE)
    metric.update(torch.ones(3, 1, 1), [NONE] * 3, SIZE)  # maps of one cell
    metric.update(torch.zeros(0, 3, 4), [], SIZE)
    assert all(value.isnan() for value in metric.compute().values())
    assert all(counts.sum() == 0 for counts in metric.histograms().values())


def test_extremes_fall_into_the_outer_bins() -> None:
    metric = MapStatistics()
    corner = torch.zeros(2, 3, 4)
    corner[0, 0, 0] = 1.0
    metric.update(corner, [NONE, NONE], SIZE)
    assert metric.histograms()["entropy"].tolist() == [1] + [0] * 18 + [1]


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"threshold must lie in \[0, 1\), got 1", lambda: MapStatistics(threshold=1.0)),
        (
            r"maps must be \(B, h, w\) with B = 1",
            lambda: MapStatistics().update(torch.zeros(2, 3, 4), [NONE], SIZE),
        ),
    ],
)
def test_bad_input_is_named(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        call()
