"""What was measured of each class, as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from camtrain.training.evaluate.evaluator import ClassScores


class Column(NamedTuple):
    """A column of a table: its heading, and what its values are."""

    name: str
    kind: Literal["text", "number", "percent"]


class ClassTable(NamedTuple):
    """A row per class; None where nothing was counted. Percents are fractions.

    Attributes:
        columns: The class; pictures and accuracy, or the average precision; GT-known.
        rows: K rows.
        score: Which column says how well a class is classified.
    """

    columns: list[Column]
    rows: list[list[Any]]
    score: int


def class_table(found: ClassScores, names: Sequence[str]) -> ClassTable | None:
    """A row for each class; None where only the number of classes is known."""
    columns, values = [Column("class", "text")], [list[Any](names)]
    if found.confusion is not None:
        pictures = found.confusion.sum(1)
        columns += [Column("pictures", "number"), Column("accuracy", "percent")]
        values += [pictures.tolist(), _shares(found.confusion.diagonal(), pictures)]
    elif found.average_precision is not None:
        columns.append(Column("average precision", "percent"))
        precisions = found.average_precision.tolist()
        values.append([None if math.isnan(value) else value for value in precisions])
    score = len(columns) - 1
    if found.boxes_seen.any():
        columns += [Column("GT-known", "percent"), Column("pictures with boxes", "number")]
        values += [_shares(found.boxes_right, found.boxes_seen), found.boxes_seen.tolist()]
    if len(columns) == 1:
        return None
    return ClassTable(columns, list(map(list, zip(*values, strict=True))), score)


def confused_pairs(confusion: Tensor, names: Sequence[str], most: int) -> list[list[Any]]:
    """True class, predicted class, pictures, their part of the true class; most pictures first.

    Args:
        confusion: (K, K) int64, by true class (rows) and predicted class (columns).
        names: K class names.
        most: How many pairs at most.
    """
    totals = confusion.sum(1).tolist()
    wrong = [(int(confusion[i, j]), i, j) for i, j in confusion.nonzero().tolist() if i != j]
    wrong.sort(key=lambda pair: (-pair[0], pair[1:]))
    return [[names[i], names[j], count, count / totals[i]] for count, i, j in wrong[:most]]


def _shares(part: Tensor, whole: Tensor) -> list[float | None]:
    return [a / b if b else None for a, b in zip(part.tolist(), whole.tolist(), strict=True)]
