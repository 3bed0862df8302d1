"""Mosaics: the plan's promises, the picture, and the score by hand and without bias."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.localization import MosaicScore, centre_map, mosaic, mosaic_plan


@given(labels=st.lists(st.integers(0, 7), max_size=60), seed=st.integers(0, 3))
def test_four_classes_each_and_every_picture_once_as_far_as_possible(
    labels: list[int], seed: int
) -> None:
    plan = mosaic_plan(torch.tensor(labels, dtype=torch.int64), seed=seed)
    assert plan.dtype == torch.int64
    for mosaic_of_four in plan.tolist():
        counts = sorted(Counter(labels[index] for index in mosaic_of_four).values())
        assert counts == ([1] * 4 if len(set(labels)) > 3 else [2, 2])
    assert len(plan.unique()) == plan.numel()
    if len(set(labels)) < 4:
        return
    # No plan is longer: m mosaics need 4 m pictures of which a class gives at most m.
    longer = len(plan) + 1
    assert sum(min(labels.count(label), longer) for label in set(labels)) < 4 * longer


def test_the_plan_depends_on_labels_and_seed_only() -> None:
    labels = torch.arange(40) % 9
    torch.manual_seed(1)
    plan = mosaic_plan(labels)
    torch.manual_seed(2)
    assert torch.equal(mosaic_plan(labels.int().numpy()), plan)
    assert not torch.equal(mosaic_plan(labels, seed=1), plan)


def test_no_class_prefers_a_quarter() -> None:
    labels = torch.cat((torch.zeros(200), torch.arange(1, 601))).long()
    quarters = (labels[mosaic_plan(labels)] == 0).sum(dim=0)
    assert quarters.sum() == 200
    assert quarters.min() > 30


def test_two_classes_share_a_mosaic_and_chance_is_half() -> None:
    plan = mosaic_plan(torch.tensor([0, 1] * 10))
    assert plan.shape == (5, 4)
    assert len(mosaic_plan(torch.tensor([0, 1, 2] * 10))) == 7
    classes, maps = plan % 2, torch.zeros(5, 4, 2, 2)
    for row, labels in enumerate(classes.tolist()):  # every map sees the quarters of its class
        for place, label in enumerate(labels):
            maps[row, place] = (classes[row] == label).reshape(2, 2)
    metric = MosaicScore()
    metric.update(maps, classes)
    scores = metric.compute()
    assert (scores["peak"], scores["chance"]) == (1.0, 0.5)
    assert scores["energy"] > 0.85


@pytest.mark.parametrize("labels", [[], [4], [0] * 10])
def test_one_class_has_no_mosaic(labels: list[int]) -> None:
    assert mosaic_plan(torch.tensor(labels)).shape == (0, 4)


def test_four_pictures_keep_their_size() -> None:
    images = torch.rand(4, 3, 5, 7)
    joined = mosaic(images)
    assert joined.shape == (3, 10, 14)
    cells = (joined[:, :5, :7], joined[:, :5, 7:], joined[:, 5:, :7], joined[:, 5:, 7:])
    for cell, image in zip(cells, images, strict=True):
        assert torch.equal(cell, image)


def test_four_pictures_are_shrunk_into_their_quarters() -> None:
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 2, 8, 6)
    joined = mosaic(images, size=(7, 9))
    assert joined.shape == (2, 7, 9)
    expected = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    expected = expected.repeat_interleave(torch.tensor([3, 4]), 0)
    expected = expected.repeat_interleave(torch.tensor([4, 5]), 1)
    torch.testing.assert_close(joined, expected.expand(2, 7, 9))
    # Half the size is the mean of two by two pixels, but for the reach of the filter.
    image = torch.rand(1, 1, 1, 1).expand(4, 1, 12, 20)
    torch.testing.assert_close(mosaic(image, size=(12, 20)), image[0])


def scores(maps: Tensor) -> tuple[float, float]:
    metric = MosaicScore()
    metric.update(maps)
    computed = metric.compute()
    return computed["peak"].item(), computed["energy"].item()


def quadrants(height: int, width: int) -> Tensor:
    """Maps (1, 4, height, width) of even sides that are right everywhere."""
    maps = torch.full((4, 2, 2), -100.0)
    maps[range(4), [0, 0, 1, 1], [0, 1, 0, 1]] = 1.0
    return maps.repeat_interleave(height // 2, 1).repeat_interleave(width // 2, 2)[None]


def test_right_and_wrong_maps_by_hand() -> None:
    right = quadrants(6, 8)
    peak, energy = scores(right)
    assert peak == 1.0
    assert energy == 1.0
    assert scores(right.roll(1, dims=1)) == (0.0, 0.0)
    assert scores(right[:, [0, 2, 1, 3]]) == (0.5, 0.5)  # rows and columns swapped


@pytest.mark.parametrize("shape", [(6, 8), (7, 9)])
def test_the_place_alone_earns_chance(shape: tuple[int, int]) -> None:
    centre = centre_map(*shape).expand(1, 4, *shape)
    peak, energy = scores(centre)
    assert peak == 0.25
    assert energy == pytest.approx(0.25, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    one_place = torch.randn(5, 1, *shape, generator=generator).expand(5, 4, *shape)
    peak, energy = scores(one_place)
    assert peak == 0.25
    assert energy == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, -1.0])
def test_degenerate_maps_are_counted_as_0(value: float) -> None:
    assert scores(torch.full((2, 4, 3, 5), value)) == (0.0, 0.0)


def test_a_constant_map_has_energy_and_no_peak() -> None:
    peak, energy = scores(torch.full((2, 4, 1, 1), 0.7))
    assert peak == 0.0
    assert energy == pytest.approx(0.25, abs=1e-6)


def test_two_halves_give_the_whole() -> None:
    maps = torch.randn(9, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    whole, merged, rest = MosaicScore(), MosaicScore(), MosaicScore()
    whole.update(maps)
    merged.update(maps[:4])
    rest.update(maps[4:].to(torch.float64))
    merged.merge_state(rest)
    assert merged.compute()["peak"] == whole.compute()["peak"]
    expected = whole.compute()["energy"].item()
    assert merged.compute()["energy"].item() == pytest.approx(expected, abs=1e-12)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(CamtrainValueError, match=r"labels must be \(n,\), got \(2, 3\)"):
        mosaic_plan(torch.zeros(2, 3))
    with pytest.raises(CamtrainValueError, match=r"images must be \(4, C, H, W\), got \(3, 1"):
        mosaic(torch.zeros(3, 1, 2, 2))
    with pytest.raises(CamtrainValueError, match=r"size must be at least \(2, 2\)"):
        mosaic(torch.zeros(4, 1, 2, 2), size=(1, 8))
    with pytest.raises(CamtrainValueError, match=r"maps must be \(B, 4, h, w\), got \(1, 3"):
        MosaicScore().update(torch.zeros(1, 3, 5, 8))


def test_nothing_counted_is_nan() -> None:
    metric = MosaicScore()
    metric.update(torch.zeros(0, 4, 5, 8))
    assert all(score.isnan() for score in metric.compute().values())
