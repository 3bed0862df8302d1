"""Labels of pictures: one class each (a class number), or several (multi-hot)."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from camtrain.errors import CamtrainTypeError, CamtrainValueError

Task = Literal["multiclass", "multilabel"]

# Under which names dictionaries hold pictures and labels: those of data sets of other libraries.
_IMAGES = ("image", "images", "img", "pixel_values", "input", "inputs", "x")
_LABELS = ("label", "labels", "target", "targets", "y")


def as_pair(batch: Any) -> Any:  # noqa: ANN401 - whatever a loader gives
    """A dictionary with images and labels as [images, labels]; any other batch as it is.

    Raises:
        CamtrainTypeError: The dictionary does not hold both under a usual name.

    Example:
        >>> as_pair({"labels": 3, "pixel_values": 0.5}), as_pair((0.5, 3))
        ([0.5, 3], (0.5, 3))
    """
    if not isinstance(batch, Mapping):
        return batch
    names = [next((n for n in usual if n in batch), None) for usual in (_IMAGES, _LABELS)]
    if None in names:
        raise CamtrainTypeError(
            f"A dictionary of pictures must hold them under {', '.join(_IMAGES)}, and labels under "
            f"{', '.join(_LABELS)}, got {', '.join(map(str, batch))}; rename them, or let the data "
            "set return (image, label)."
        )
    return [batch[name] for name in names]


def check_task(task: str) -> Task:
    """The task itself; raise CamtrainValueError unless it is ``multiclass`` or ``multilabel``."""
    if task not in get_args(Task):
        raise CamtrainValueError(f"task must be multiclass or multilabel, got {task!r}.")
    return cast("Task", task)


def normal_form(name: str) -> str:
    r"""A class name by which its spellings are compared: macOS decomposes letters with accents.

    Example:
        >>> normal_form("cafe\u0301") == "caf\u00e9"
        True
    """
    return unicodedata.normalize("NFC", name)


def class_scores(logits: Tensor, task: Task) -> Tensor:
    """Scores in [0, 1] of logits (B, K): their softmax, or the sigmoid of each for multi-label."""
    return logits.sigmoid() if task == "multilabel" else logits.softmax(1)


def best_classes(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The best class of each picture, (B,), -1 for none, and the confidence in it, (B,).

    Args:
        scores: (B, K), of ``class_scores``. Of several classes the best is that of the highest
            score. A class alone is the best from a score of 0.5 on; below it, no class is, with a
            confidence of 1 - score.

    Example:
        >>> classes, confidences = best_classes(torch.tensor([[0.75], [0.25]]))
        >>> classes.tolist(), confidences.tolist()
        ([0, -1], [0.75, 0.75])
    """
    confidences, classes = scores.max(1)
    if scores.shape[1] == 1:
        is_there = confidences >= 0.5
        classes = torch.where(is_there, classes, -1)
        confidences = torch.where(is_there, confidences, 1 - confidences)
    return classes, confidences


def classes_of(label: object) -> tuple[int, ...]:
    """The classes of one picture, whose label is a class number or multi-hot, (K,).

    Example:
        >>> classes_of(3), classes_of([0.0, 1.0, 1.0])
        ((3,), (1, 2))
    """
    if isinstance(label, (int, np.integer)):
        return (int(label),)
    tensor = torch.as_tensor(label)
    return tuple(tensor.nonzero()[:, 0].tolist()) if tensor.ndim else (int(tensor),)


def label_names(label: object, class_names: Sequence[str]) -> list[str]:
    """The names of the classes of one picture; the number of a class without a name."""
    numbers = classes_of(label)
    return [class_names[n] if n < len(class_names) else str(n) for n in numbers]


def class_counts(labels: object, num_classes: int) -> Tensor:
    """The number of pictures of each class, (K,) int64, of labels (N,) or multi-hot (N, K).

    Raises:
        CamtrainValueError: A class number lies outside 0..K-1.
    """
    tensor = torch.as_tensor(labels)
    if tensor.ndim == 2:
        return (tensor > 0).sum(0)
    if ((tensor < 0) | (tensor >= num_classes)).any():
        raise CamtrainValueError(
            f"Labels must be class numbers 0..{num_classes - 1}, got {int(tensor.min())} to "
            f"{int(tensor.max())}."
        )
    return tensor.long().bincount(minlength=num_classes)


def multi_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Targets of a sigmoid per class, (B, K) float32, 0 or 1.

    Args:
        labels: (B, K), 0 or 1 of any type, or (B,), class numbers.
        num_classes: K.

    Raises:
        CamtrainValueError: Another shape, class numbers outside 0..K-1, or values that are neither
            0 nor 1.

    Example:
        >>> multi_hot(torch.tensor([2, 0]), 3).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    is_number = labels.ndim == 1 and not labels.is_floating_point() and labels.dtype != torch.bool
    if not is_number and labels.shape[1:] != (num_classes,):
        raise CamtrainValueError(
            f"Labels of a multi-label network must be multi-hot, (B, {num_classes}), or class "
            f"numbers, (B,), got {tuple(labels.shape)} of {labels.dtype}."
        )
    last, values = num_classes - 1 if is_number else 1, labels.float()
    if ((values < 0) | (values > last) | (values % 1 != 0)).any():
        allowed = f"class numbers 0..{last}" if is_number else "0 or 1 for each class"
        raise CamtrainValueError(
            f"Labels of a multi-label network must be {allowed}, got {values.min():g} to "
            f"{values.max():g}."
        )
    return F.one_hot(labels.long(), num_classes).float() if is_number else values
