"""PointingGame, EnergyInBox, MapStatistics: values by hand, law 7, degenerate maps."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.localization import EnergyInBox, MapStatistics, PointingGame
from camtrain.localization.pointing import box_mask, energy_share, peak_of
from camtrain.maps import heatmaps

BatchOf = Callable[[list[int]], dict[str, Any]]
SIZE = torch.tensor([[10, 16]])


def planted(x: int, y: int) -> Tensor:
    """A map at the picture's size whose only peak is one pixel."""
    class_map = torch.full((10, 16), -3.0)
    class_map[y, x] = 2.0
    return class_map


def is_hit(class_map: Tensor, truth: list[list[int]], tolerance: float = 0) -> bool:
    metric = PointingGame(tolerance)
    metric.update(class_map[None], [torch.tensor(truth)], SIZE)
    return bool(metric.compute()["pointing"])


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [(2, 1, True), (9, 4, True), (10, 4, False), (9, 5, False), (1, 1, False), (2, 0, False)],
)
def test_a_box_owns_its_first_but_not_its_last_edge(x: int, y: int, expected: bool) -> None:
    assert is_hit(planted(x, y), [[2, 1, 10, 5]]) is expected
    assert is_hit(planted(x, y), [[12, 6, 16, 10], [2, 1, 10, 5]]) is expected


@pytest.mark.parametrize(
    ("x", "y", "distance"), [(12, 3, 3.0), (6, 8, 4.0), (12, 8, 5.0), (4, 3, 0.0)]
)
def test_the_tolerance_is_a_distance_to_the_box(x: int, y: int, distance: float) -> None:
    truth = [[2, 1, 10, 5]]  # its last pixel is (9, 4)
    assert is_hit(planted(x, y), truth, tolerance=distance)
    assert distance == 0 or not is_hit(planted(x, y), truth, tolerance=distance - 0.01)


def test_of_equal_maxima_the_first_in_row_major_order_counts() -> None:
    class_map = torch.maximum(planted(12, 2), planted(3, 6))
    assert is_hit(class_map, [[12, 2, 13, 3]])
    assert not is_hit(class_map, [[3, 6, 4, 7]])


def test_a_map_is_stretched_over_the_picture() -> None:
    metric = PointingGame()
    class_map = torch.zeros(1, 3, 4)
    class_map[0, 0, 3] = 1.0
    metric.update(class_map, [torch.tensor([[300, 0, 400, 100]])], torch.tensor([[300, 400]]))
    assert metric.compute()["pointing"] == 1
    metric.update(class_map, [torch.tensor([[300, 0, 400, 100]])], torch.tensor([[400, 300]]))
    assert metric.compute()["pointing"] == 0.5


def test_the_peak_is_the_heatmaps() -> None:
    maps = torch.randn(20, 5, 8, generator=torch.Generator().manual_seed(0)) - 1
    for class_map in maps:
        heatmap = heatmaps(class_map[None, None], size=(37, 50))[0, 0]
        peak = peak_of(class_map, (37, 50))
        assert peak is not None
        assert heatmap[peak] == 1.0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, 0.3, -7.1])
@pytest.mark.parametrize("shape", [(1, 1), (5, 8)])
def test_a_map_without_a_peak_is_counted_and_misses(value: float, shape: tuple[int, int]) -> None:
    metric = PointingGame()
    metric.update(torch.full((1, *shape), value), [torch.tensor([[0, 0, 16, 10]])], SIZE)
    assert metric.compute() == {"pointing": 0.0, "centre": 1.0}


def test_a_map_below_zero_has_a_peak() -> None:
    assert is_hit(planted(15, 9) - 5, [[14, 8, 16, 10]])


def energy(class_map: Tensor, truth: list[list[int]], size_hw: Tensor = SIZE) -> dict[str, float]:
    metric = EnergyInBox()
    metric.update(class_map[None], [torch.tensor(truth)], size_hw)
    return {name: score.item() for name, score in metric.compute().items()}


def test_energy_by_hand() -> None:
    class_map = torch.full((10, 16), -3.0)
    class_map[:5], class_map[5:, :4] = 1.0, 2.0  # energies 80 and 40
    assert energy(class_map, [[0, 0, 16, 5]]) == {"energy": 80 / 120, "area": 0.5}
    assert energy(class_map, [[0, 0, 4, 10]]) == {"energy": 60 / 120, "area": 0.25}
    overlapping = [[0, 0, 4, 10], [0, 5, 4, 10], [0, 0, 2, 2]]  # the union counts once
    assert energy(class_map, overlapping) == {"energy": 60 / 120, "area": 0.25}


def test_rounding_points_nowhere() -> None:
    class_map = torch.ones(5, 8)
    class_map[2, 3] += 2.4e-7
    assert peak_of(class_map, (10, 16)) is None


def test_only_the_positive_part_of_the_upsampled_map_counts() -> None:
    computed = energy(torch.tensor([[-1.0, 1.0]]), [[0, 0, 2, 2]], torch.tensor([[2, 4]]))
    # Upsampled to 4 columns the map is -1, -0.5, 0.5, 1.
    assert computed == {"energy": 0.0, "area": 0.5}
    computed = energy(torch.tensor([[-1.0, 1.0]]), [[2, 0, 3, 2]], torch.tensor([[2, 4]]))
    assert computed["energy"] == pytest.approx(1 / 3, abs=1e-6)


@given(value=st.sampled_from([0.3, 7.0]), x0=st.integers(0, 15), y1=st.integers(1, 10))
def test_a_constant_map_earns_the_share_of_the_area(value: float, x0: int, y1: int) -> None:
    computed = energy(torch.full((3, 4), value), [[x0, 0, 16, y1]])
    assert computed["energy"] == pytest.approx(computed["area"], abs=1e-6)
    assert computed["area"] == (16 - x0) * y1 / 160


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 0.0, -7.1])
def test_a_map_without_energy_is_counted_and_earns_nothing(value: float) -> None:
    class_map = torch.zeros(5, 8)
    class_map[2, 3] = value
    assert energy(class_map, [[0, 0, 16, 10]]) == {"energy": 0.0, "area": 1.0}


def test_one_pixel_and_the_frame() -> None:
    assert energy(planted(15, 9), [[15, 9, 16, 10]])["energy"] == 1.0
    assert is_hit(planted(15, 9), [[15, 9, 16, 10]])
    assert energy_share(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)) == 1.0


def test_a_pixel_lies_in_a_box_when_its_centre_does() -> None:
    boxes_xyxy = torch.tensor([[0.4, 0.0, 1.6, 1.0], [3.0, 1.0, 9.0, 9.0]])
    assert box_mask(boxes_xyxy, (2, 4)).int().tolist() == [[1, 1, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("metric_class", [PointingGame, EnergyInBox])
def test_the_value_depends_neither_on_batches_nor_order_nor_processes(
    batch_of: BatchOf, metric_class: type[PointingGame | EnergyInBox]
) -> None:
    def metric_of(*batches: list[int]) -> PointingGame | EnergyInBox:
        metric = metric_class()
        for indices in batches:
            batch = batch_of(indices)
            metric.update(batch["maps"], batch["boxes_xyxy"], batch["sizes_hw"])
        return metric

    order = list(range(24))
    whole = metric_of(order)
    assert whole.count == 18  # every fourth picture has no box
    assert all(0 < score < 1 for score in whole.compute().values())
    merged = metric_of(order[:5])
    merged.merge_state(metric_of(order[5:]))
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(1)).tolist()
    for other in (metric_of(*[[i] for i in order]), metric_of(shuffled[:7], shuffled[7:]), merged):
        for name, score in whole.compute().items():
            assert other.compute()[name].item() == pytest.approx(score.item(), abs=1e-12)


@pytest.mark.parametrize("metric", [PointingGame(), EnergyInBox()])
def test_pictures_without_boxes_are_not_counted(metric: PointingGame | EnergyInBox) -> None:
    metric.update(torch.rand(1, 5, 8), [torch.zeros(0, 4)], SIZE)
    assert all(score.isnan() for score in metric.compute().values())
    with pytest.raises(CamtrainValueError, match=r"maps must be \(B, h, w\)"):
        metric.update(torch.rand(1, 1, 5, 8), [torch.zeros(0, 4)], SIZE)


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_bad_tolerances_are_named(tolerance: float) -> None:
    with pytest.raises(CamtrainValueError, match="tolerance must be 0 pixels or more"):
        PointingGame(tolerance)


NONE = torch.zeros(0, 4)
INPUT_HW = (40, 64)


def of_one(class_map: Tensor, boxes: Tensor = NONE) -> dict[str, float]:
    metric = MapStatistics()
    metric.update(class_map[None], [boxes], INPUT_HW)
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
    computed = of_one(torch.tensor(cells, dtype=torch.float64).reshape(2, 2))
    assert computed["area"] == area
    if entropy is not None:
        assert computed["entropy"] == pytest.approx(entropy, abs=1e-12)
    assert math.isnan(computed["energy_in_box"])


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
        rows = slice(place, place + 1)
        size_hw = tuple(batch["sizes_hw"][place].tolist())
        metric.update(batch["maps"][rows], batch["boxes_xyxy"][rows], size_hw)
    expected.update(batch["maps"], batch["boxes_xyxy"], batch["sizes_hw"])
    computed = metric.compute()
    assert computed["energy_in_box"].item() == pytest.approx(expected.compute()["energy"].item())
    for name, counts in metric.histograms().items():
        middles = (torch.arange(20) + 0.5) / 20
        mean = ((counts * middles).sum() / counts.sum()).item()
        assert mean == pytest.approx(computed[name].item(), abs=0.025)


def test_statistics_depend_neither_on_batches_nor_order(batch_of: BatchOf) -> None:
    def measured(*parts: list[int]) -> MapStatistics:
        metric = MapStatistics()
        for part in parts:
            batch = batch_of(part)
            metric.update(batch["maps"], batch["boxes_xyxy"], INPUT_HW)
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
    metric.update(bad, [NONE, NONE], INPUT_HW)
    metric.update(torch.ones(3, 1, 1), [NONE] * 3, INPUT_HW)  # maps of one cell
    metric.update(torch.zeros(0, 3, 4), [], INPUT_HW)
    assert all(value.isnan() for value in metric.compute().values())
    assert all(counts.sum() == 0 for counts in metric.histograms().values())


def test_extremes_fall_into_the_outer_bins() -> None:
    metric = MapStatistics()
    corner = torch.zeros(2, 3, 4)
    corner[0, 0, 0] = 1.0
    metric.update(corner, [NONE, NONE], INPUT_HW)
    assert metric.histograms()["entropy"].tolist() == [1] + [0] * 18 + [1]


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"threshold must lie in \[0, 1\), got 1", lambda: MapStatistics(threshold=1.0)),
        (
            r"maps must be \(B, h, w\) with B = 1",
            lambda: MapStatistics().update(torch.zeros(2, 3, 4), [NONE], INPUT_HW),
        ),
    ],
)
def test_bad_input_of_map_statistics_is_named(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        call()
