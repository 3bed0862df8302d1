"""MaxBoxAcc: the benchmark's numbers, exact values by hand, and law 7."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.localization import MaxBoxAcc
from camtrain.localization.max_box_acc import hits_at_thresholds

BatchOf = Callable[[list[int]], dict[str, Any]]
NOT_NORMALIZED = [41, 42, 59]  # score maps of the oracle that min-max would change


def oracle_batch(folder: Path, indices: list[int]) -> tuple[Tensor, list[Tensor], Tensor]:
    inputs = np.load(folder / "inputs.npz")
    boxes = torch.from_numpy(inputs["boxes_imgidx_x0y0x1y1"])
    half_open = boxes[:, 1:] + torch.tensor([0, 0, 1, 1])
    maps = torch.from_numpy(inputs["scoremaps_u16"][indices] / 65535)
    sizes_hw = torch.from_numpy(inputs["image_sizes_wh"][indices]).flip(1)
    return maps, [half_open[boxes[:, 0] == index] for index in indices], sizes_hw


@pytest.mark.parametrize(("column", "iou_threshold"), [(0, 0.3), (1, 0.5), (2, 0.7)])
def test_scores_and_thresholds_are_those_of_the_benchmark(
    shared: Path, column: int, iou_threshold: float
) -> None:
    folder = shared / "oracles" / "wsol_metrics"
    expected = json.loads((folder / "expected.json").read_text())["sets"]["blobs"]
    expected = expected["interval_0.001_multi_False"]
    metric = MaxBoxAcc(iou_threshold)
    metric.update(*oracle_batch(folder, list(range(40))))
    score = expected["max_box_acc_iou30_50_70"][column] / 100
    assert metric.compute().item() == pytest.approx(score, abs=1e-12)
    best_threshold = expected["argmax_threshold_first"][str(round(iou_threshold * 100))]
    assert metric.best_threshold() == pytest.approx(best_threshold, abs=1e-12)


def test_hits_are_those_of_the_benchmark_for_every_map_and_threshold(shared: Path) -> None:
    folder = shared / "oracles" / "wsol_metrics"
    best_iou = np.load(folder / "expected.npz")["best_iou_0.001_False"]  # (61, 1000)
    indices = [index for index in range(61) if index not in NOT_NORMALIZED]
    for index, class_map, boxes, (height, width) in zip(
        indices, *oracle_batch(folder, indices), strict=True
    ):
        for iou_threshold in (0.1, 0.5, 0.8):
            hits = hits_at_thresholds(
                class_map, boxes, (height.item(), width.item()), iou_threshold
            )
            np.testing.assert_array_equal(hits, best_iou[index] >= iou_threshold)


def planted(x0: int, y0: int, x1: int, y1: int) -> Tensor:
    """A map at the benchmark's size, so that the box is exact but for its one pixel too many."""
    class_map = torch.zeros(1, 224, 224)
    class_map[0, y0:y1, x0:x1] = 1.0
    return class_map


@pytest.mark.parametrize(
    ("truth", "is_hit"),
    [
        ([[10, 20, 111, 71]], True),  # the found box is one pixel wider: x 10..110, y 20..70
        ([[20, 10, 71, 111]], False),  # x and y swapped
        ([[10, 20, 61, 71]], True),  # IoU 51 / 101, a little more than one half
        ([[10, 20, 60, 71]], False),  # IoU 50 / 101, a little less
        ([[200, 200, 220, 220], [10, 20, 111, 71]], True),  # any truth box will do
    ],
)
def test_a_planted_rectangle_by_hand(truth: list[list[int]], is_hit: bool) -> None:
    metric = MaxBoxAcc()
    metric.update(planted(10, 20, 110, 70), [torch.tensor(truth)], torch.tensor([[224, 224]]))
    assert metric.compute().item() == is_hit
    assert metric.hits.tolist() == [is_hit] * 1000


def test_exactly_the_iou_threshold_is_a_hit() -> None:
    truth, size_hw = torch.tensor([[10, 20, 60, 30]]), torch.tensor([[224, 224]])
    metric = MaxBoxAcc(0.5)
    metric.update(planted(10, 20, 109, 29), [truth], size_hw)  # found: 100 x 10 pixels
    assert metric.compute().item() == 1.0


def test_truth_is_in_pixels_of_a_picture_that_is_not_square() -> None:
    class_map = torch.zeros(1, 7, 14)
    class_map[0, 1:3, 8:13] = 1.0
    truth = torch.tensor([[8 * 40, 1 * 60, 13 * 40, 3 * 60]])
    right, swapped = MaxBoxAcc(0.7), MaxBoxAcc(0.7)
    right.update(class_map, [truth], torch.tensor([[7 * 60, 14 * 40]]))
    swapped.update(class_map, [truth], torch.tensor([[14 * 40, 7 * 60]]))
    assert (right.compute().item(), swapped.compute().item()) == (1.0, 0.0)


def test_best_threshold_is_the_first_that_reaches_the_maximum() -> None:
    class_map = planted(10, 20, 110, 70) + planted(50, 40, 70, 50)
    metric = MaxBoxAcc()
    metric.update(class_map, [torch.tensor([[50, 40, 71, 51]])], torch.tensor([[224, 224]]))
    # The core alone is left above level 127 = int(t * 255), from t = 0.499 on.
    assert metric.best_threshold() == pytest.approx(0.499)
    assert metric.compute().item() == 1.0


@pytest.mark.parametrize("value", [torch.nan, 0.3, -1.0])
def test_a_map_without_foreground_is_counted_and_misses(value: float) -> None:
    metric = MaxBoxAcc()
    metric.update(
        torch.full((1, 5, 8), value), [torch.tensor([[5, 5, 40, 30]])], torch.tensor([[60, 50]])
    )
    assert metric.compute().item() == 0.0
    assert metric.count.item() == 1


def test_pictures_without_boxes_are_not_counted() -> None:
    metric = MaxBoxAcc()
    metric.update(torch.rand(2, 5, 8), [torch.zeros(0, 4)] * 2, torch.tensor([[60, 50]] * 2))
    assert metric.compute().isnan()
    assert math.isnan(metric.best_threshold())


def test_the_value_depends_neither_on_batches_nor_order_nor_processes(batch_of: BatchOf) -> None:
    def metric_of(*batches: list[int]) -> MaxBoxAcc:
        metric = MaxBoxAcc(0.3)
        for batch in batches:
            pictures = batch_of(batch)
            metric.update(pictures["maps"], pictures["boxes_xyxy"], pictures["sizes_hw"])
        return metric

    order = list(range(24))
    whole = metric_of(order)
    assert 0 < whole.compute() < 1
    merged = metric_of(order[:5])
    merged.merge_state(metric_of(order[5:]))
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(1)).tolist()
    for other in (metric_of(*[[i] for i in order]), metric_of(shuffled[:7], shuffled[7:]), merged):
        assert torch.equal(other.hits, whole.hits)
        assert torch.equal(other.compute(), whole.compute())
        assert other.best_threshold() == whole.best_threshold()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_maps_of_every_precision_are_taken(batch_of: BatchOf, dtype: torch.dtype) -> None:
    pictures = batch_of(list(range(24)))
    maps = pictures["maps"].to(dtype)
    metric, reference = MaxBoxAcc(), MaxBoxAcc()
    metric.update(maps.requires_grad_(), pictures["boxes_xyxy"], pictures["sizes_hw"])
    reference.update(maps.double(), pictures["boxes_xyxy"], pictures["sizes_hw"])
    assert torch.equal(metric.hits, reference.hits)


BOXES, SIZES = [torch.tensor([[0, 0, 4, 4]])], torch.tensor([[5, 8]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(1, 1, 5, 8), BOXES, SIZES), "maps must be (B, h, w) with B = 1"),
        ((torch.rand(2, 5, 8), BOXES, SIZES), "maps must be (B, h, w) with B = 1"),
        ((torch.rand(1, 5, 8), BOXES, SIZES[0]), "sizes_hw must be (B, 2)"),
        ((torch.rand(1, 5, 8), BOXES, torch.ones(1, 3)), "sizes_hw must be (B, 2)"),
        ((torch.rand(1, 5, 8), [BOXES[0][0]], SIZES), "boxes_xyxy[0] must be (n, 4), got (4,)"),
    ],
)
def test_bad_batches_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CamtrainValueError) as error:
        MaxBoxAcc().update(*arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("iou_threshold", [0.0, 1.1, math.nan])
def test_bad_iou_thresholds_are_named(iou_threshold: float) -> None:
    with pytest.raises(CamtrainValueError, match="iou_threshold must lie in"):
        MaxBoxAcc(iou_threshold)
