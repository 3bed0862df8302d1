"""Labels of pictures: one class each, or several."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch

from camtrain.errors import CamtrainValueError

Task = Literal["multiclass", "multilabel"]


def check_task(task: str) -> Task:
    """The task itself; raise CamtrainValueError unless it is ``multiclass`` or ``multilabel``."""
    if task not in get_args(Task):
        raise CamtrainValueError(f"task must be multiclass or multilabel, got {task!r}.")
    return cast("Task", task)


def classes_of(label: object) -> tuple[int, ...]:
    """The classes of one picture's label, which is a class number or multi-hot, (K,).

    Example:
        >>> classes_of(3), classes_of([0.0, 1.0, 1.0])
        ((3,), (1, 2))
    """
    label = torch.as_tensor(label)
    return (int(label),) if label.ndim == 0 else tuple(label.nonzero()[:, 0].tolist())
