"""Tables of what was measured of each class, by hand."""

import torch
from torch import Tensor

from camtrain.training.evaluate.scores import ClassScores
from camtrain.training.watch.snapshot import class_table, confused_pairs

NAMES = ["cat", "dog", "owl"]
CONFUSION = torch.tensor([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
NONE = torch.zeros(3, dtype=torch.int64)


def scores(
    confusion: Tensor | None = None,
    average_precision: Tensor | None = None,
    right: Tensor = NONE,
    seen: Tensor = NONE,
) -> ClassScores:
    return ClassScores(confusion, average_precision, right, seen)


def test_accuracy_of_each_class() -> None:
    table = class_table(scores(CONFUSION), NAMES)
    assert table is not None
    assert [column.name for column in table.columns] == ["class", "pictures", "accuracy"]
    assert table.rows == [["cat", 4, 0.75], ["dog", 4, 0.5], ["owl", 0, None]]
    assert table.columns[table.score].name == "accuracy"


def test_localization_of_each_class() -> None:
    found = scores(CONFUSION, right=torch.tensor([1, 0, 0]), seen=torch.tensor([2, 0, 0]))
    table = class_table(found, NAMES)
    assert table is not None
    assert [row[3:] for row in table.rows] == [[0.5, 2], [None, 0], [None, 0]]


def test_average_precision_of_each_class() -> None:
    found = scores(average_precision=torch.tensor([1.0, float("nan"), 0.25]))
    table = class_table(found, NAMES)
    assert table is not None
    assert table.rows == [["cat", 1.0], ["dog", None], ["owl", 0.25]]


def test_of_10_000_classes_the_1_000_worst_are_listed() -> None:
    precisions = torch.arange(10_000).flip(0) / 10_000
    precisions[-1] = float("nan")
    table = class_table(scores(average_precision=precisions), list(map(str, range(10_000))))
    assert table is not None
    assert [row[0] for row in table.rows] == [str(number) for number in range(9_998, 8_998, -1)]


def test_above_2_000_classes_the_worst_are_those_whose_boxes_are_wrong() -> None:
    """Nothing else is counted of each class there."""
    seen = torch.full((3,), 2)
    table = class_table(scores(right=torch.tensor([1, 0, 2]), seen=seen), NAMES)
    assert table is not None
    assert table.columns[table.score].name == "GT-known"


def test_nothing_is_no_table() -> None:
    assert class_table(scores(), NAMES) is None


def test_pairs_are_sorted_by_pictures() -> None:
    assert confused_pairs(CONFUSION, NAMES, 9) == [["dog", "cat", 2, 0.5], ["cat", "dog", 1, 0.25]]
    assert confused_pairs(CONFUSION, NAMES, 1) == [["dog", "cat", 2, 0.5]]
