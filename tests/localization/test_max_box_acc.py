"""MaxBoxAcc and V2: the benchmark's numbers, values by hand, groups of pictures, and law 7."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from camtrain.errors import CamtrainValueError
from camtrain.localization import (
    CentreBoxAcc,
    MaxBoxAcc,
    MaxBoxAccV2,
    auto_threshold,
    centre_map,
    max_box_acc,
)
from camtrain.localization.max_box_acc import Outcomes, outcomes_at_thresholds
from camtrain.maps import score_map

BatchOf = Callable[[list[int]], dict[str, Any]]
NOT_NORMALIZED = [41, 42, 59]  # score maps of the oracle that min-max would change


def oracle_batch(folder: Path, indices: list[int]) -> tuple[Tensor, list[Tensor], Tensor]:
    inputs = np.load(folder / "inputs.npz")
    boxes = torch.from_numpy(inputs["boxes_imgidx_x0y0x1y1"])
    half_open = boxes[:, 1:] + torch.tensor([0, 0, 1, 1])
    maps = torch.from_numpy(inputs["scoremaps_u16"][indices] / 65535)
    sizes_hw = torch.from_numpy(inputs["image_sizes_wh"][indices]).flip(1)
    return maps, [half_open[boxes[:, 0] == index] for index in indices], sizes_hw


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "oracles" / "wsol_metrics"


def expected_of(folder: Path, multiple: bool) -> dict[str, Any]:
    sets = json.loads((folder / "expected.json").read_text())["sets"]
    expected: dict[str, Any] = sets["blobs"][f"interval_0.001_multi_{multiple}"]
    return expected


@pytest.mark.parametrize(("column", "iou_threshold"), [(0, 0.3), (1, 0.5), (2, 0.7)])
def test_scores_and_thresholds_are_those_of_the_benchmark(
    folder: Path, column: int, iou_threshold: float
) -> None:
    metric = MaxBoxAcc(iou_threshold)
    all_contours = MaxBoxAccV2()
    for box_metric in (metric, all_contours):
        box_metric.update(*oracle_batch(folder, list(range(40))))
    for box_metric, multiple in ((metric, False), (all_contours, True)):
        expected = expected_of(folder, multiple)
        thresholds, accuracy = box_metric.curve(iou_threshold)
        score = expected["max_box_acc_iou30_50_70"][column] / 100
        assert accuracy.max().item() == pytest.approx(score, abs=1e-12)
        best = expected["argmax_threshold_first"][str(round(iou_threshold * 100))]
        assert box_metric.best_threshold(iou_threshold) == pytest.approx(best, abs=1e-12)
        assert thresholds[accuracy.argmax()] == box_metric.best_threshold(iou_threshold)
    assert metric.compute() == metric.curve()[1].max()
    assert all_contours.compute().item() == pytest.approx(0.6166666666666667, abs=1e-12)


def test_hits_are_those_of_the_benchmark_for_every_map_and_threshold(folder: Path) -> None:
    expected = np.load(folder / "expected.npz")
    best_iou = np.stack([expected[f"best_iou_0.001_{multiple}"] for multiple in (False, True)])
    indices = [index for index in range(61) if index not in NOT_NORMALIZED]
    iou_thresholds = (0.1, 0.3, 0.5, 0.7, 0.8)
    for index, class_map, boxes, (height, width) in zip(
        indices, *oracle_batch(folder, indices), strict=True
    ):
        hits = outcomes_at_thresholds(
            class_map, boxes, (height.item(), width.item()), iou_thresholds
        ).hits
        np.testing.assert_array_equal(
            hits, best_iou[:, index, None] >= np.array(iou_thresholds)[:, None]
        )


def test_counts_over_all_maps_are_those_of_the_benchmark(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The benchmark took the maps as they are; min-max would change three of them.
    monkeypatch.setattr(max_box_acc, "score_map", lambda class_map: class_map.numpy())
    metric, expected = MaxBoxAccV2(), np.load(folder / "expected.npz")
    metric.update(*oracle_batch(folder, list(range(61))))
    for row, multiple in enumerate((False, True)):
        np.testing.assert_array_equal(metric.hits[row], expected[f"num_correct_0.001_{multiple}"])
    assert metric.compute().item() == pytest.approx(0.6612021857923497, abs=1e-12)


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
    assert metric.hits[0, 1].tolist() == [is_hit] * 1000


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


def test_any_contour_will_do_for_v2_and_each_iou_threshold_has_its_best_threshold() -> None:
    class_map = planted(100, 100, 220, 220) + planted(10, 20, 49, 39)
    truth = torch.tensor([[10, 20, 50, 30]])  # one half of the smaller rectangle's box
    metric = MaxBoxAccV2()
    metric.update(class_map, [truth], torch.tensor([[224, 224]]))
    assert metric.hits[:, :, 0].tolist() == [[0, 0, 0], [1, 1, 0]]
    assert metric.compute().item() == pytest.approx(2 / 3, abs=1e-15)
    assert [metric.curve(iou)[1].max().item() for iou in (0.3, 0.5, 0.7)] == [1, 1, 0]


def test_the_border_of_a_hole_counts_for_v2() -> None:
    class_map = planted(10, 20, 200, 180) - planted(50, 60, 99, 89)
    metric = MaxBoxAccV2()
    metric.update(class_map, [torch.tensor([[49, 59, 101, 91]])], torch.tensor([[224, 224]]))
    assert metric.compute().item() == 1.0
    assert not metric.hits[0].any()


@pytest.fixture
def stair() -> MaxBoxAcc:
    """Accuracies of ten pictures: a first, narrow best step, a dip, and a wide one."""
    metric = MaxBoxAcc()
    metric.update(planted(0, 0, 9, 9), [torch.tensor([[0, 0, 9, 9]])], torch.tensor([[224, 224]]))
    metric.hits[0, 1] = 2
    metric.hits[0, 1, 100:110] = metric.hits[0, 1, 300:501] = 8
    metric.count.fill_(10)
    return metric


def test_three_thresholds_are_told_apart(stair: MaxBoxAcc) -> None:
    assert stair.best_threshold() == pytest.approx(0.1)
    assert stair.calibrated_threshold() == pytest.approx(0.4)
    scores = [stair.accuracy_at(threshold).item() for threshold in (0.2, 0.4, 0.1)]
    assert scores == [0.2, 0.8, 0.8]
    assert stair.compute().item() == 0.8


def test_the_calibrated_threshold_of_a_tie_is_the_lower_one(stair: MaxBoxAcc) -> None:
    stair.hits[0, 1, 300:501] = 2
    assert stair.calibrated_threshold() == pytest.approx(0.104)  # 0.1 to 0.109
    stair.hits[0, 1, 700:710] = 8
    assert stair.calibrated_threshold() == pytest.approx(0.104)


@pytest.mark.parametrize(
    ("threshold", "index"), [(0.0, 0), (0.2, 200), (0.2004, 200), (0.9999, 999)]
)
def test_a_fixed_threshold_is_the_nearest_thousandth(
    stair: MaxBoxAcc, threshold: float, index: int
) -> None:
    stair.hits[0, 1] = torch.arange(1000)
    assert stair.accuracy_at(threshold).item() == index / 10


def test_one_pass_gives_both_metrics(batch_of: BatchOf, monkeypatch: pytest.MonkeyPatch) -> None:
    maps_seen = []

    def counting(*arguments: Any) -> Outcomes:
        maps_seen.append(arguments[0])
        return outcomes_at_thresholds(*arguments)

    monkeypatch.setattr(max_box_acc, "outcomes_at_thresholds", counting)
    groups = [["MaxBoxAcc", "MaxBoxAccV2"]]
    both = MetricCollection([MaxBoxAcc(), MaxBoxAccV2()], compute_groups=groups)
    alone = MaxBoxAcc(), MaxBoxAccV2()
    for batch in ([0, 1, 2, 3], list(range(4, 24))):
        pictures = batch_of(batch)
        arguments = pictures["maps"], pictures["boxes_xyxy"], pictures["sizes_hw"]
        both.update(*arguments)
        assert len(maps_seen) == 0.75 * len(batch)  # every fourth picture has no box
        for metric in alone:
            metric.update(*arguments)
        maps_seen.clear()
    assert both.compute() == {type(metric).__name__: metric.compute() for metric in alone}
    for metric in alone:
        other = both[type(metric).__name__]
        assert other.best_threshold() == metric.best_threshold()
        assert torch.equal(other.hits, metric.hits)


@pytest.mark.parametrize("value", [torch.nan, 0.3, -1.0])
def test_a_map_without_foreground_is_counted_and_misses(value: float) -> None:
    metric = MaxBoxAcc()
    metric.update(
        torch.full((1, 5, 8), value), [torch.tensor([[5, 5, 40, 30]])], torch.tensor([[60, 50]])
    )
    assert metric.compute().item() == 0.0
    assert metric.count.item() == 1


def test_without_foreground_the_box_is_the_pixel_at_the_origin() -> None:
    metric = MaxBoxAccV2()  # the benchmark's (0, 0, 0, 0), inclusive
    metric.update(torch.zeros(1, 5, 8), [torch.tensor([[0, 0, 1, 1]])], torch.tensor([[224, 224]]))
    assert metric.compute().item() == 1.0


def test_one_pixel_all_negative_and_the_frame() -> None:
    one_pixel, size_hw = planted(223, 150, 224, 151), torch.tensor([[224, 224]])
    metric = MaxBoxAcc(0.7)
    metric.update(one_pixel - 5, [torch.tensor([[223, 150, 224, 152]])], size_hw)
    metric.update(planted(0, 3, 224, 224) - 5, [torch.tensor([[0, 3, 224, 224]])], size_hw)
    assert metric.hits[0, 2].tolist() == [2] * 1000


def test_pictures_without_boxes_are_not_counted() -> None:
    metric = MaxBoxAcc()
    metric.update(torch.rand(2, 5, 8), [torch.zeros(0, 4)] * 2, torch.tensor([[60, 50]] * 2))
    assert metric.compute().isnan()
    assert math.isnan(metric.best_threshold())
    assert math.isnan(metric.calibrated_threshold())
    assert metric.accuracy_at(0.2).isnan()
    assert metric.curve()[1].isnan().all()


def test_the_value_depends_neither_on_batches_nor_order_nor_processes(batch_of: BatchOf) -> None:
    def metric_of(*batches: list[int]) -> MaxBoxAccV2:
        metric = MaxBoxAccV2()
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
        assert other.breakdown(0.3) == whole.breakdown(0.3)
        assert other.best_threshold() == whole.best_threshold()


def test_maps_may_differ_in_size(batch_of: BatchOf) -> None:
    pictures = batch_of([1, 2])
    maps = [pictures["maps"][0], pictures["maps"][1, :3]]
    together, one_by_one = MaxBoxAccV2(), MaxBoxAccV2()
    together.update(maps, pictures["boxes_xyxy"], pictures["sizes_hw"])
    for row, class_map in enumerate(maps):
        rows = slice(row, row + 1)
        one_by_one.update(class_map[None], pictures["boxes_xyxy"][rows], pictures["sizes_hw"][rows])
    assert together.count == 2
    assert torch.equal(together.hits, one_by_one.hits)


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


@pytest.mark.parametrize("threshold", [-0.1, 1.0, math.nan])
def test_bad_thresholds_are_named(threshold: float) -> None:
    with pytest.raises(CamtrainValueError, match="threshold must lie in"):
        MaxBoxAcc().accuracy_at(threshold)


def test_iou_thresholds_that_were_not_counted_are_named() -> None:
    metric = MaxBoxAcc(0.4)
    with pytest.raises(CamtrainValueError, match=r"one of those counted, \(0.4,\), got 0.5"):
        metric.curve(0.5)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_value_does_not_depend_on_the_threads(batch_of: BatchOf, threads: int) -> None:
    pictures, usual = batch_of(list(range(24))), torch.get_num_threads()
    arguments = pictures["maps"], pictures["boxes_xyxy"], pictures["sizes_hw"]
    metric, reference = MaxBoxAcc(), MaxBoxAcc()
    reference.update(*arguments)
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            metric.update(*arguments)
    finally:
        torch.set_num_threads(usual)
    assert torch.equal(metric.hits, reference.hits)


def picture(x0: int, y0: int, x1: int, y1: int) -> Tensor:
    """A map whose box is the given one at every threshold, (1, 224, 224)."""
    return planted(x0, y0, x1, y1) - 5


def test_the_breakdown_by_hand() -> None:
    """Six pictures of 224 x 224: right, too large, too small, beside, and two with two things."""
    pictures = [
        (picture(0, 0, 100, 100), [[0, 0, 100, 100]]),  # 20 %
        (picture(0, 0, 200, 200), [[0, 0, 100, 100]]),
        (picture(0, 0, 50, 50), [[0, 0, 170, 170]]),  # 58 %, the centre box is right
        (picture(150, 150, 220, 220), [[0, 0, 30, 30]]),  # 2 %
        (picture(0, 0, 200, 60), [[0, 0, 60, 60], [140, 0, 200, 60]]),  # 7 %
        (picture(0, 0, 60, 60), [[0, 0, 60, 60], [140, 0, 200, 60]]),
    ]
    metric = MaxBoxAcc()
    for class_map, truth in pictures:
        metric.update(class_map, [torch.tensor(truth)], torch.tensor([[224, 224]]))
    whole = metric.breakdown(0.5)
    assert whole["misses"] == {
        "too large": 1,
        "too small": 1,
        "beside": 1,
        "several in one box": 1,
    }
    by_size = {name: (row["pictures"], row["boxes"]) for name, row in whole["by_size"].items()}
    assert by_size == {
        "below 5 %": (1, 0.0),
        "5 to 15 %": (2, 0.5),
        "15 to 30 %": (2, 0.5),
        "30 to 60 %": (1, 0.0),
    }
    one, several = whole["by_number"].values()
    assert (one["pictures"], one["boxes"], one["centre"]) == (4, 0.25, 0.25)
    assert (several["pictures"], several["boxes"], several["centre"]) == (2, 0.5, 0.0)


def test_groups_and_misses_add_up_at_every_threshold(batch_of: BatchOf) -> None:
    pictures = batch_of(list(range(24)))
    metric = MaxBoxAcc()
    metric.update(pictures["maps"], pictures["boxes_xyxy"], pictures["sizes_hw"])
    assert metric.pictures.sum() == metric.count == 18
    assert torch.equal(metric.by_group.sum((0, 1)), metric.hits[0, 1])
    assert torch.equal(metric.misses.sum(0), metric.count - metric.hits[0, 1])
    centre = CentreBoxAcc()
    centre.update(pictures["boxes_xyxy"], pictures["sizes_hw"])
    assert metric.centre.sum() == centre.compute() * 18
    assert MaxBoxAcc().breakdown(0.2) == {
        "by_size": {},
        "by_number": {},
        "misses": dict.fromkeys(("too large", "too small", "beside", "several in one box"), 0),
    }


def test_many_truth_boxes_are_those_of_a_few() -> None:
    """More boxes than are compared at once."""
    boxes = torch.tensor([[0, 0, 60, 60]]).repeat(2500, 1)
    boxes[2400] = torch.tensor([100, 100, 200, 200])
    metric, few = MaxBoxAcc(), MaxBoxAcc()
    class_map, size_hw = picture(110, 110, 140, 140), torch.tensor([[224, 224]])
    metric.update(class_map, [boxes], size_hw)
    few.update(class_map, [boxes[2399:2401]], size_hw)
    assert metric.breakdown(0.5) == few.breakdown(0.5)
    assert few.breakdown(0.5)["misses"]["too small"] == 1


def test_each_map_at_its_own_threshold() -> None:
    """Hills of several widths and boxes: some are right at the automatic threshold."""
    metric, right, size_hw = MaxBoxAcc(), [], torch.tensor([[224, 224]])
    assert metric.accuracy_auto().isnan()
    for width in (0.2, 0.4, 0.8):
        for side in (60, 100, 140, 180):
            class_map = centre_map(28, 28)[None] ** (1 / width**2)
            low, high = 112 - side // 2, 112 + side // 2
            truth, alone = [torch.tensor([[low, low, high, high]])], MaxBoxAcc()
            metric.update(class_map, truth, size_hw)
            alone.update(class_map, truth, size_hw)
            threshold = auto_threshold(score_map(class_map[0]))
            right.append(alone.accuracy_at(threshold).item())
    assert metric.accuracy_auto().item() == sum(right) / 12
    assert 0 < sum(right) < 12
