"""PxAP: the benchmark's histograms and numbers, exact values by hand, and law 7."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.localization import PxAP, pxap
from camtrain.localization.contours import THRESHOLDS
from camtrain.localization.pxap import pixel_histograms


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "oracles" / "wsol_metrics"


def test_histograms_and_score_are_those_of_the_benchmark(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The benchmark took the maps as they are; min-max would change three of them.
    monkeypatch.setattr(pxap, "score_map", lambda class_map: class_map.numpy())
    inputs, expected = np.load(folder / "inputs.npz"), np.load(folder / "expected.npz")
    metric = PxAP()
    metric.update(torch.from_numpy(inputs["scoremaps_u16"] / 65535), list(inputs["masks"]))
    np.testing.assert_array_equal(metric.objects, expected["hist_true_0.001"])
    np.testing.assert_array_equal(metric.background, expected["hist_false_0.001"])
    sets = json.loads((folder / "expected.json").read_text())["sets"]
    score = sets["all"]["interval_0.001_PxAP"]["PxAP"] / 100
    assert metric.compute().item() == pytest.approx(score, abs=1e-11)


def test_every_picture_scores_as_in_the_benchmark(folder: Path) -> None:
    inputs = np.load(folder / "inputs.npz")
    expected = np.load(folder / "expected.npz")["pxap_per_image_0.001"] / 100
    checked = 0
    for scores, mask, score in zip(
        inputs["scoremaps_u16"] / 65535, inputs["masks"], expected, strict=True
    ):
        if scores.min() == 0 and scores.max() == 1 and (mask == 1).any():
            assert score_of(scores, mask) == pytest.approx(score, abs=1e-11)
            checked += 1
    assert checked > 40


def test_real_masks_score_as_in_the_benchmark(folder: Path) -> None:
    stored = np.load(folder / "openimages_test_masks.npz")
    expected = json.loads((folder / "openimages_test_masks_expected.json").read_text())
    for name, mask in zip(stored["ids"].tolist(), stored["masks"], strict=True):
        for kind, scores in (("0.0", np.zeros((224, 224))), ("perfect", (mask == 1) * 1.0)):
            [score] = [v for k, v in expected.items() if name in k and k.endswith(f"|{kind}")]
            if isinstance(score, str):
                with pytest.raises(CamtrainValueError, match="at least one pixel of an object"):
                    score_of(scores, mask)
            elif scores.min() < scores.max() or kind == "0.0":
                assert score_of(scores, mask) == pytest.approx(score / 100, abs=1e-11)


def score_of(scores: NDArray[np.float64], mask: NDArray[np.uint8] | Tensor) -> float:
    metric = PxAP()
    metric.update(torch.from_numpy(scores)[None], [mask])
    return metric.compute().item()


@given(
    scores=hnp.arrays(
        np.float64,
        (4, 9),
        elements=st.floats(0, 1)
        | st.sampled_from([*THRESHOLDS.tolist(), 1.0]).flatmap(
            lambda edge: st.sampled_from([edge, float(np.nextafter(edge, 0))])
        ),
    ),
    mask=hnp.arrays(np.uint8, (4, 9), elements=st.sampled_from([0, 1, 255])),
)
def test_histograms_are_numpy_s(scores: NDArray[np.float64], mask: NDArray[np.uint8]) -> None:
    edges = [*THRESHOLDS.tolist(), 1.0, 2.0, 3.0]
    objects, background = pixel_histograms(scores, mask)
    np.testing.assert_array_equal(objects, np.histogram(scores[mask == 1], edges)[0])
    np.testing.assert_array_equal(background, np.histogram(scores[mask == 0], edges)[0])


def test_a_picture_by_hand() -> None:
    class_map, mask = np.zeros((224, 224)), np.zeros((224, 224), dtype=np.uint8)
    class_map[:112] = 1.0
    mask[56:168] = 1
    # Half of the object at precision 1/2, the other half at that of the whole picture, 1/2.
    assert score_of(class_map, mask) == 0.5
    mask[:56] = 255  # the false half of the upper pixels is ignored
    assert score_of(class_map, mask) == pytest.approx(0.5 * 1 + 0.5 * 112 / 168, abs=1e-15)


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray])
def test_masks_of_other_sizes_are_resized_by_the_nearest_neighbour(
    kind: Callable[..., Tensor],
) -> None:
    class_map = np.zeros((7, 14))
    class_map[2:4, 3:9] = 1.0
    mask = np.zeros((70, 140), dtype=np.uint8)
    mask[20:40, 30:90] = 1
    large = np.zeros((448, 448), dtype=np.uint8)
    large[::2, ::2] = np.arange(224) >= 100  # the pixels that the nearest neighbour takes
    large[1::2] = 255
    assert 0.9 < score_of(class_map, kind(mask)) < 1.0
    assert score_of(np.eye(7), kind(large)) == score_of(np.eye(7), kind(large[::2, ::2]))


def test_the_value_depends_neither_on_batches_nor_order_nor_processes() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(12, 5, 8, generator=generator)
    maps[3], maps[7], maps[11] = torch.nan, 0.3, maps[11] - 100
    masks: list[Tensor | None] = list(torch.randint(3, (12, 30, 40), generator=generator))
    masks = [torch.tensor([0, 1, 255], dtype=torch.uint8)[mask] for mask in masks]
    masks[4], masks[5] = None, torch.zeros(0, 0)

    def metric_of(*batches: list[int]) -> PxAP:
        metric = PxAP()
        for batch in batches:
            metric.update(maps[batch], [masks[index] for index in batch])
        return metric

    order = list(range(12))
    whole = metric_of(order)
    assert 0 < whole.compute() < 1
    merged = metric_of(order[:5])
    merged.merge_state(metric_of(order[5:]))
    shuffled = torch.randperm(12, generator=generator).tolist()
    without = metric_of([index for index in order if index not in (4, 5)])
    split = metric_of(*[[index] for index in order])
    for other in (split, metric_of(shuffled[:7], shuffled[7:]), merged, without):
        assert torch.equal(other.objects, whole.objects)
        assert torch.equal(other.background, whole.background)
        assert torch.equal(other.compute(), whole.compute())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.3, -7.0])
def test_a_map_that_shows_nothing_scores_the_part_of_the_object(value: float) -> None:
    mask = np.zeros((224, 224), dtype=np.uint8)
    mask[:56] = 1
    assert score_of(np.full((5, 8), value), mask) == 0.25


@pytest.mark.parametrize("mask", [None, torch.zeros(0), torch.zeros(5, 8), torch.full((5, 8), 255)])
def test_without_a_pixel_of_an_object_there_is_no_score(mask: Tensor | None) -> None:
    metric = PxAP()
    metric.update(torch.rand(1, 5, 8), [mask])
    with pytest.raises(CamtrainValueError, match="at least one pixel of an object"):
        metric.compute()


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (torch.rand(1, 1, 5, 8), [torch.ones(5, 8)], "per picture as in masks, got"),
        (torch.rand(2, 5, 8), [torch.ones(5, 8)], "maps must be (B, h, w) with B = 1"),
        (torch.rand(1, 5, 8), [torch.ones(1, 5, 8)], "masks[0] must be one mask of shape (H, W)"),
        (torch.rand(2, 5, 8), [None, torch.full((5, 8), 7)], "masks[1] must hold 0 (background)"),
        (torch.rand(1, 5, 8), [torch.full((5, 8), 0.5)], "got [0.5]"),
    ],
)
def test_bad_batches_are_named(maps: Tensor, masks: list[Tensor], message: str) -> None:
    with pytest.raises(CamtrainValueError) as error:
        PxAP().update(maps, masks)
    assert message in str(error.value)
