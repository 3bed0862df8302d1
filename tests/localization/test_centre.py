"""The baselines in the middle of the picture: what is known of them, values by hand, and law 7."""

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from camtrain.errors import CamtrainValueError
from camtrain.localization import CentreBoxAcc, MaxBoxAcc, PointingGame, centre_map

BatchOf = Callable[[list[int]], dict[str, Any]]


@pytest.mark.parametrize(
    ("data_set", "box", "point"), [("animals3", 0.600, 0.852), ("imagenet_val300", 0.583, 0.867)]
)
def test_the_centre_scores_what_is_known_of_it(
    shared: Path, data_set: str, box: float, point: float
) -> None:
    boxes_of_path = defaultdict(list)
    with (shared / "data" / data_set / "boxes.csv").open() as file:
        for row in csv.DictReader(file):
            edges = [int(row[edge]) for edge in ("xmin", "ymin", "xmax", "ymax")]
            if row["path"].startswith("test/"):
                boxes_of_path[row["path"]].append(edges)
    metric, game = CentreBoxAcc(), PointingGame()
    for path, boxes in boxes_of_path.items():
        with Image.open(shared / "data" / data_set / path) as image:
            truth, sizes_hw = [torch.tensor(boxes)], torch.tensor([[image.height, image.width]])
        metric.update(truth, sizes_hw)
        game.update(torch.zeros(1, 2, 3), truth, sizes_hw)
    assert round(metric.compute().item(), 3) == box
    assert round(game.compute()["centre"].item(), 3) == point


def test_the_centre_box_by_hand() -> None:
    metric = CentreBoxAcc(side=0.5)
    boxes_xyxy = [torch.tensor([[25, 10, 75, 30]]), torch.tensor([[10, 25, 30, 75]])]
    metric.update(boxes_xyxy, torch.tensor([[40, 100], [40, 100]]))
    assert metric.compute().item() == 0.5


def test_several_thresholds_give_the_mean() -> None:
    metric = CentreBoxAcc(side=0.5, iou_threshold=(0.3, 0.5, 0.7))
    # The centre box is (25, 10, 75, 30); the IoUs are 1, 0.5 and 0.4.
    truth = [[25, 10, 75, 30], [25, 10, 50, 30], [25, 10, 45, 30]]
    for box in truth:
        metric.update([torch.tensor([box])], torch.tensor([[40, 100]]))
    assert metric.compute().item() == pytest.approx((3 + 2 + 1) / 9, abs=1e-15)


def test_the_centre_box_of_pictures_without_boxes_is_not_counted() -> None:
    metric = CentreBoxAcc()
    metric.update([torch.zeros(0, 4)], torch.tensor([[40, 100]]))
    assert metric.compute().isnan()


@pytest.mark.parametrize("iou_threshold", [0.3, (0.1, 0.3)])
def test_two_halves_give_the_whole_centre_box_score(
    batch_of: BatchOf, iou_threshold: float | tuple[float, float]
) -> None:
    def metric_of(indices: range) -> CentreBoxAcc:
        metric, batch = CentreBoxAcc(iou_threshold=iou_threshold), batch_of(list(indices))
        metric.update(batch["boxes_xyxy"], batch["sizes_hw"])
        return metric

    whole, merged = metric_of(range(24)), metric_of(range(9))
    merged.merge_state(metric_of(range(9, 24)))
    assert 0 < whole.compute() < 1
    assert merged.compute() == whole.compute()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"side": 0.0}, "side must lie in"),
        ({"iou_threshold": 1.5}, "iou_threshold must lie in"),
        ({"iou_threshold": (0.5, 0.0)}, "iou_threshold must lie in"),
        ({"iou_threshold": ()}, "iou_threshold must lie in"),
    ],
)
def test_bad_settings_of_the_centre_box_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        CentreBoxAcc(**arguments)


def test_the_centre_map_is_symmetric_and_falls_to_the_edges() -> None:
    gaussian = centre_map(6, 9)
    assert gaussian.shape == (6, 9)
    assert torch.equal(gaussian, gaussian.flip(0))
    assert torch.equal(gaussian, gaussian.flip(1))
    assert (gaussian[:3].diff(dim=0) > 0).all()
    assert (gaussian[:, :5].diff(dim=1) > 0).all()
    with pytest.raises(CamtrainValueError, match="at least 1, got 0, 3"):
        centre_map(0, 3)


def test_the_centre_map_finds_a_centred_box_at_its_best_threshold() -> None:
    metric = MaxBoxAcc(iou_threshold=0.7)
    maps, size_hw = centre_map()[None], torch.tensor([[90, 120]])
    metric.update(maps, [torch.tensor([[30, 22, 90, 68]])], size_hw)
    metric.update(maps, [torch.tensor([[0, 0, 30, 20]])], size_hw)
    assert metric.compute() == 0.5
