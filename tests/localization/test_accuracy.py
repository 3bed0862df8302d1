"""LocalizationAccuracy and flat_errors: by hand, law 7, and ILSVRC's own program."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from camtrain.errors import CamtrainError, CamtrainFileNotFoundError, CamtrainValueError
from camtrain.localization import (
    LocalizationAccuracy,
    boxes_from_heatmap,
    flat_errors,
    read_predictions,
)
from camtrain.localization.accuracy import ranks_of_labels
from camtrain.maps import heatmaps

BatchOf = Callable[[list[int]], dict[str, Any]]
SIZE = torch.tensor([[10, 16]])


def scores(
    class_map: Tensor,
    truth: list[list[int]],
    logits: tuple[float, ...] = (0.0, 1.0),
    label: int = 1,
    size_hw: Tensor = SIZE,
    **thresholds: float,
) -> tuple[float, ...]:
    """The three scores of one picture."""
    metric = LocalizationAccuracy(**thresholds)
    boxes_xyxy = [torch.tensor(truth)]
    metric.update(
        class_map[None], torch.tensor([logits]), torch.tensor([label]), boxes_xyxy, size_hw
    )
    computed = metric.compute()
    return tuple(computed[name].item() for name in ("gt_known", "top1", "top5"))


def planted(x0: int, y0: int, x1: int, y1: int) -> Tensor:
    """A signed map at the picture's size, so that the box is exact."""
    class_map = torch.full((10, 16), -3.0)
    class_map[y0:y1, x0:x1] = 2.0
    return class_map


@pytest.mark.parametrize(
    ("truth", "is_right"),
    [
        ([[2, 1, 10, 5]], True),
        ([[2, 1, 6, 5]], True),  # IoU exactly 0.5
        ([[2, 1, 6, 4]], False),
        ([[1, 2, 5, 10]], False),  # x and y swapped
        ([[12, 6, 16, 10], [2, 1, 10, 5]], True),  # any truth box will do
        ([[2, 1, 6, 3], [6, 3, 10, 5]], False),  # two boxes of IoU 0.25 are not one of 0.5
    ],
)
def test_a_planted_rectangle_by_hand(truth: list[list[int]], is_right: bool) -> None:
    assert scores(planted(2, 1, 10, 5), truth) == (is_right,) * 3


def test_only_the_largest_component_counts() -> None:
    class_map = torch.maximum(planted(0, 0, 5, 5), planted(8, 6, 16, 10))
    assert scores(class_map, [[8, 6, 16, 10]])[0] == 1.0
    assert scores(class_map, [[0, 0, 5, 5]])[0] == 0.0


def test_the_threshold_is_a_part_of_the_range_of_the_map() -> None:
    class_map = planted(2, 1, 10, 5)
    class_map[1:5, 10:15] = -1.5  # 0.3 of the way from the least to the largest value
    truth = [[2, 1, 15, 5]]
    assert scores(class_map, truth, iou_threshold=1.0)[0] == 1.0
    assert scores(class_map, truth, iou_threshold=1.0, threshold=0.35)[0] == 0.0


def test_a_map_is_stretched_over_the_picture() -> None:
    class_map = torch.zeros(3, 4)
    class_map[0, 3] = 1.0
    truth, size_hw = [[300, 0, 400, 150]], torch.tensor([[300, 400]])
    assert scores(class_map, truth, size_hw=size_hw)[0] == 1.0
    assert scores(class_map, truth, size_hw=size_hw.flip(1))[0] == 0.0


@pytest.mark.parametrize(
    ("logits", "label", "expected"),
    [
        ((5.0, 4.0, 3.0, 2.0, 1.0, 0.0), 0, (1.0, 1.0, 1.0)),
        ((5.0, 4.0, 3.0, 2.0, 1.0, 0.0), 4, (1.0, 0.0, 1.0)),
        ((5.0, 4.0, 3.0, 2.0, 1.0, 0.0), 5, (1.0, 0.0, 0.0)),
        ((5.0, 4.0, 3.0), 2, (1.0, 0.0, 1.0)),  # top 5 of 3 classes are all 3
        ((torch.nan,) * 3, 0, (1.0, 0.0, 0.0)),
    ],
)
def test_a_guess_needs_the_label_and_the_box(
    logits: tuple[float, ...], label: int, expected: tuple[float, ...]
) -> None:
    class_map = planted(2, 1, 10, 5)
    assert scores(class_map, [[2, 1, 10, 5]], logits, label) == expected
    assert scores(class_map, [[12, 6, 16, 10]], logits, label) == (0.0, 0.0, 0.0)


def test_ranks_agree_with_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(4, (50, 7), generator=generator).float()  # many ties
    labels = torch.randint(7, (50,), generator=generator)
    guesses = logits.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(
        ranks_of_labels(logits, labels), (guesses == labels[:, None]).int().argmax(1)
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.3, -7.1])
def test_a_map_without_foreground_is_counted_and_wrong(value: float) -> None:
    for shape in ((1, 1), (5, 8)):
        assert scores(torch.full(shape, value), [[0, 0, 16, 10]]) == (0.0, 0.0, 0.0)


def test_one_pixel_and_the_frame_are_found() -> None:
    assert scores(planted(15, 9, 16, 10), [[15, 9, 16, 10]])[0] == 1.0
    assert scores(planted(0, 0, 16, 9), [[0, 0, 16, 9]], iou_threshold=1.0)[0] == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_box_is_the_one_of_the_heatmap_that_people_look_at(
    batch_of: BatchOf, dtype: torch.dtype
) -> None:
    maps, size_hw = batch_of(list(range(24)))["maps"].to(dtype), torch.tensor([[37, 50]])
    for class_map, heatmap in zip(maps, heatmaps(maps[:, None], size=(37, 50))[:, 0], strict=True):
        boxes = boxes_from_heatmap(heatmap)[:1].tolist()
        for box in boxes or [[0, 0, 50, 37]]:
            score = scores(class_map, [box], size_hw=size_hw, iou_threshold=1.0)[0]
            assert score == len(boxes)


def test_rounding_is_no_box_for_evaluation_as_for_the_predictor() -> None:
    class_map = torch.ones(5, 8)
    class_map[2, 3] += 2.4e-7
    assert not heatmaps(class_map[None, None], size=(10, 16)).any()
    for x, y in ((6, 4), (7, 5)):
        assert scores(class_map, [[x, y, x + 2, y + 2]], iou_threshold=0.01)[0] == 0.0


def test_the_value_depends_neither_on_batches_nor_order_nor_processes(batch_of: BatchOf) -> None:
    def metric_of(*batches: list[int]) -> LocalizationAccuracy:
        metric = LocalizationAccuracy(iou_threshold=0.2)
        for batch in batches:
            metric.update(**batch_of(batch))
        return metric

    order = list(range(24))
    whole = metric_of(order)
    expected = whole.compute()
    assert whole.count.item() == 18  # every fourth picture has no box
    assert 0 < expected["top1"] < expected["top5"] < expected["gt_known"] < 1
    merged = metric_of(order[:5])
    merged.merge_state(metric_of(order[5:]))
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(1)).tolist()
    for other in (metric_of(*[[i] for i in order]), metric_of(shuffled[:7], shuffled[7:]), merged):
        assert other.compute() == expected


def test_pictures_without_boxes_are_not_counted() -> None:
    assert str(scores(planted(2, 1, 10, 5), [])) == "(nan, nan, nan)"


BOXES = [torch.tensor([[0, 0, 4, 4]])]


@pytest.mark.parametrize(
    ("maps", "logits", "labels", "message"),
    [
        (torch.rand(1, 1, 5, 8), torch.rand(1, 3), torch.tensor([0]), "maps must be (B, h, w)"),
        (torch.rand(1, 5, 8), torch.rand(3), torch.tensor([0]), "logits must be (B, K)"),
        (torch.rand(1, 5, 8), torch.rand(1, 3), torch.tensor([0, 1]), "labels must be (B)"),
    ],
)
def test_bad_batches_are_named(maps: Tensor, logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(CamtrainValueError) as error:
        LocalizationAccuracy().update(maps, logits, labels, BOXES, SIZE)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["threshold", "iou_threshold"])
def test_bad_settings_are_named(name: str) -> None:
    with pytest.raises(CamtrainValueError, match=f"{name} must lie in"):
        LocalizationAccuracy(**{name: 1.5})


def test_a_blacklist_affects_localization_only(batch_of: BatchOf) -> None:
    blacklisted = torch.arange(24) % 5 == 0
    metric, kept, every = (LocalizationAccuracy(iou_threshold=0.2) for _ in range(3))
    metric.update(**batch_of(list(range(24))), blacklisted=blacklisted)
    kept.update(**batch_of((~blacklisted).nonzero().flatten().tolist()))
    every.update(**batch_of(list(range(24))))
    for name in ("gt_known", "top1", "top5"):
        assert metric.compute()[name] == kept.compute()[name] != every.compute()[name]
    for name in ("cls_top1", "cls_top5"):
        assert metric.compute()[name] == every.compute()[name] != kept.compute()[name]


def test_classification_counts_every_picture(batch_of: BatchOf) -> None:
    batch = batch_of(list(range(24)))
    metric = LocalizationAccuracy()
    metric.update(**batch)
    guesses = batch["logits"].topk(5).indices == batch["labels"][:, None]
    assert metric.compute()["cls_top1"] == guesses[:, 0].double().mean()
    assert metric.compute()["cls_top5"] == guesses.any(dim=1).double().mean()
    assert metric.cls_count == 24
    assert metric.count == 18


@pytest.mark.parametrize("classes", [3, 9])
def test_the_same_from_a_prediction_file(tmp_path: Path, classes: int) -> None:
    """Every guess with the box of its own map: no other map than the true class's matters."""
    generator = torch.Generator().manual_seed(classes)
    count, size_hw = 60, (37, 50)
    maps = torch.randn(count, classes, 3, 4, generator=generator)
    maps[::7] = 0.0  # without a box
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    mins = torch.randint(10, (count, 2, 2), generator=generator)
    sides = torch.randint(16, 28, (count, 2, 2), generator=generator)
    truth = list(torch.cat((mins, mins + sides), dim=2))  # two boxes each
    blacklisted = torch.rand(count, generator=generator) < 0.2

    metric = LocalizationAccuracy(iou_threshold=0.3)
    own_maps = maps[torch.arange(count), labels]
    sizes_hw = torch.tensor([size_hw] * count)
    metric.update(own_maps, logits, labels, truth, sizes_hw, blacklisted)

    lines = []
    for row, guesses in enumerate(logits.topk(min(5, classes)).indices.tolist()):
        groups = []
        for guess in guesses:
            heatmap = heatmaps(maps[row, guess][None, None], size=size_hw)[0, 0]
            x0, y0, x1, y1 = [*boxes_from_heatmap(heatmap).tolist(), [0, 0, 0, 0]][0]
            groups.append(f"{guess} {x0} {y0} {x1 - 1} {y1 - 1}")
        lines.append(" ".join(groups))
    path = tmp_path / "predictions.txt"
    path.write_text("\n".join(lines))
    errors = flat_errors(
        read_predictions(path),
        labels,
        boxes_xyxy=[boxes - torch.tensor([0, 0, 1, 1]) for boxes in truth],
        blacklisted=blacklisted,
        iou_threshold=0.3,
    )
    computed = {name: score.item() for name, score in metric.compute().items()}
    assert 0 < computed["top1"] < computed["top5"]
    assert computed["top1"] == pytest.approx(1 - errors.localization[0], abs=1e-12)
    assert computed["top5"] == pytest.approx(1 - errors.localization[4], abs=1e-12)
    assert computed["cls_top1"] == pytest.approx(1 - errors.classification[0], abs=1e-12)
    assert computed["cls_top5"] == pytest.approx(1 - errors.classification[4], abs=1e-12)


def test_gt_known_of_each_class_adds_up_to_that_of_all(batch_of: BatchOf) -> None:
    metric = LocalizationAccuracy(num_classes=9)
    metric.update(**batch_of(list(range(24))))
    right, seen = metric.by_class()
    assert right.shape == seen.shape == (9,)
    assert int(seen.sum()) == int(metric.count) == 18
    assert int(right.sum()) == int(metric.gt_known)
    for label in range(9):
        alone = LocalizationAccuracy()
        labels = batch_of(list(range(24)))["labels"]
        alone.update(**batch_of([i for i in range(24) if labels[i] == label]))
        assert (int(alone.gt_known), int(alone.count)) == (int(right[label]), int(seen[label]))
    assert LocalizationAccuracy().by_class()[0].shape == (0,)


@pytest.mark.parametrize("blacklist", ["no_blacklist", "with_blacklist"])
@pytest.mark.parametrize("way", ["tensor", "file", "unsigned"])
def test_the_errors_of_the_official_program(
    shared: Path, tmp_path: Path, blacklist: str, way: str
) -> None:
    folder = shared / "oracles" / "ilsvrc_eval"
    data = np.load(folder / "data.npz")
    predictions = torch.from_numpy(data["pred"]).reshape(-1, 5, 5)
    rows, truth = data["gt_boxes"][:, 0], data["gt_boxes"][:, 1:]
    if way == "file":
        np.savetxt(tmp_path / "predictions.txt", data["pred"], fmt="%.17g")
        predictions = read_predictions(tmp_path / "predictions.txt")
    if way == "unsigned":  # as the official file of the truth is read when one is not careful
        truth = truth.astype(np.uint16)
    is_blacklisted = torch.zeros(len(predictions), dtype=torch.bool)
    is_blacklisted[data["blacklist0"]] = blacklist == "with_blacklist"
    computed = flat_errors(
        predictions,
        torch.from_numpy(data["labels"]),
        boxes_xyxy=[torch.from_numpy(truth[rows == row]) for row in range(len(predictions))],
        blacklisted=is_blacklisted,
    )
    for k, expected in enumerate(json.loads((folder / "expected.json").read_text())[blacklist]):
        assert computed.classification[k] == pytest.approx(expected["cls_error"], abs=1e-12)
        assert computed.localization[k] == pytest.approx(expected["clsloc_error"], abs=1e-12)


def errors(guesses: list[list[float]], truth: list[list[int]], label: int = 3) -> tuple[float, ...]:
    """The localization errors of one picture."""
    predictions = torch.full((1, 5, 5), -1.0)
    predictions[0, : len(guesses)] = torch.tensor(guesses).reshape(-1, 5)
    boxes_xyxy = [torch.tensor(truth).reshape(-1, 4)]
    return flat_errors(predictions, torch.tensor([label]), boxes_xyxy=boxes_xyxy).localization


TRUTH = [[0, 0, 9, 7]]  # 10 x 8 pixels


@pytest.mark.parametrize(
    ("guesses", "expected"),
    [
        ([[3, 0, 0, 9, 3]], (0, 0, 0, 0, 0)),  # exactly one half
        ([[3, 0, 0, 9, 2]], (1, 1, 1, 1, 1)),
        ([[3, 0, 0, 7, 9]], (0, 0, 0, 0, 0)),  # 64 of 96
        ([[2, 0, 0, 9, 7], [3, 0, 0, 9, 7]], (1, 0, 0, 0, 0)),
        ([[3, 50, 50, 60, 60], [3, 0, 0, 9, 7]], (1, 0, 0, 0, 0)),  # one label, guessed twice
        ([[3, 0, 0, -1, -1]], (1, 1, 1, 1, 1)),  # the empty box
        ([[3, 9, 7, 0, 0]], (1, 1, 1, 1, 1)),  # edges the wrong way round
        ([], (1, 1, 1, 1, 1)),
    ],
)
def test_guesses_by_hand(guesses: list[list[float]], expected: tuple[int, ...]) -> None:
    assert errors(guesses, TRUTH) == expected


def test_any_truth_box_will_do() -> None:
    assert errors([[3, 0, 0, 9, 7]], [[40, 40, 50, 50], *TRUTH]) == (0.0,) * 5


def test_a_missing_guess_is_no_guess_of_a_label() -> None:
    assert errors([], TRUTH, label=-1) == (1.0,) * 5


def test_pictures_without_boxes_leave_localization_only() -> None:
    assert str(errors([[3, 0, 0, 9, 7]], [])[0]) == "nan"
    predictions = torch.zeros(2, 5, 5)
    truth = [torch.zeros(0, 4), torch.tensor([[0, 0, 0, 0]])]
    computed = flat_errors(predictions, torch.tensor([1, 0]), boxes_xyxy=truth)
    assert computed.classification == (0.5,) * 5
    assert computed.localization == (0.0,) * 5


def test_flat_errors_of_nothing_are_nan() -> None:
    computed = flat_errors(torch.zeros(0, 5, 5), torch.zeros(0), boxes_xyxy=[])
    assert np.isnan(computed.classification + computed.localization).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": torch.zeros(2, 25)}, "predictions must be (n, 5, 5), got (2, 25)"),
        ({"labels": torch.zeros(3)}, "got 2, (3,) and 2"),
        ({"boxes_xyxy": []}, "got 2, (2,) and 0"),
        ({"blacklisted": torch.tensor([True])}, "one bool per picture, (2,), got (1,)"),
        ({"blacklisted": torch.tensor([0, 1])}, "of torch.int64"),
        ({"iou_threshold": 0.0}, "iou_threshold must lie in"),
    ],
)
def test_bad_arguments_of_flat_errors_are_named(arguments: dict[str, Any], message: str) -> None:
    good = {
        "predictions": torch.zeros(2, 5, 5),
        "labels": torch.zeros(2),
        "boxes_xyxy": [torch.zeros(1, 4)] * 2,
    }
    with pytest.raises(CamtrainValueError) as error:
        flat_errors(**(good | arguments))
    assert message in str(error.value)


def test_fewer_guesses_and_none_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "predictions.txt"
    path.write_text("7 1 2 3 4  12 5 6 7.5 8\n\n" + "1 0 0 9 9 " * 5 + "\n")
    predictions = read_predictions(path)
    assert predictions.shape == (3, 5, 5)
    assert predictions[:, :, 0].tolist() == [[7, 12, -1, -1, -1], [-1] * 5, [1] * 5]
    assert predictions[0, 1].tolist() == [12, 5, 6, 7.5, 8]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3 4", "got 4 numbers"),
        ("1 0 0 9 9 " * 6, "up to 5 groups of 5 numbers, label xmin ymin xmax ymax, got 30"),
        ("cat 0 0 9 9", "numbers separated by blanks, got 'cat'"),
        ("1 0 0 nan 9", "got 'nan'"),
        ("1,0,0,9,9", "got '1,0,0,9,9'"),
        ("1.5 0 0 9 9", "a label must be a whole number from 0, got 1.5"),
        ("-1 0 0 9 9", "got -1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "predictions.txt"
    path.write_text(f"1 0 0 9 9\n{line}\n")
    with pytest.raises(CamtrainValueError) as error:
        read_predictions(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert message in str(error.value)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(CamtrainFileNotFoundError, match="nowhere"):
        read_predictions(tmp_path / "nowhere.txt")
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(CamtrainError, match="picture is not a text file"):
        read_predictions(tmp_path / "picture")
