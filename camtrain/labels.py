"""Labels of pictures: one class each, or several."""

from __future__ import annotations

from typing import Literal, cast, get_args

from camtrain.errors import CamtrainValueError

Task = Literal["multiclass", "multilabel"]


def check_task(task: str) -> Task:
    """The task itself; raise CamtrainValueError unless it is ``multiclass`` or ``multilabel``."""
    if task not in get_args(Task):
        raise CamtrainValueError(f"task must be multiclass or multilabel, got {task!r}.")
    return cast("Task", task)
