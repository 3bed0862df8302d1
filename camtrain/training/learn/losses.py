"""Around the loss of the training: class weights, and a stop where it is no number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.labels import Task
from camtrain.training.learn.multilabel import multi_hot

ClassWeights = Literal["balanced"] | list[float]


def check_class_weights(weights: ClassWeights | None, num_classes: int) -> None:
    """Refuse class weights that cannot work.

    Raises:
        CamtrainTypeError: They are neither ``balanced`` nor numbers.
        CamtrainValueError: There are not K of them, or some are not above 0.
    """
    if weights is None or weights == "balanced":
        return
    is_list = isinstance(weights, Sequence) and not isinstance(weights, str)
    if not is_list or not all(isinstance(weight, (int, float)) for weight in weights):
        raise CamtrainTypeError(
            f"class_weights must be balanced, a list of numbers, or None, got {weights!r}."
        )
    if len(weights) != num_classes or min(weights) <= 0:
        raise CamtrainValueError(
            f"class_weights must hold one number above 0 for each of the {num_classes} "
            f"classes, got {weights}."
        )


def balanced_weights(labels: Tensor, num_classes: int, task: Task) -> Tensor:
    """Weights (K,) under which every class counts as much.

    n / (K n_k) for a class of n_k of n pictures, as in scikit-learn; for multi-label the weight of
    a picture that has the class, (n - n_k) / n_k. A class without pictures counts as one with one.

    Args:
        labels: (n,), class numbers; for multi-label also (n, K), multi-hot.
        num_classes: K.
        task: ``multiclass`` or ``multilabel``.

    Example:
        >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 2, "multiclass")
        tensor([0.6667, 2.0000])
        >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 2, "multilabel")
        tensor([0.3333, 3.0000])
    """
    counts = multi_hot(labels, num_classes).sum(0).clamp_min(1)
    if task == "multilabel":
        return (len(labels) - counts) / counts
    return len(labels) / (num_classes * counts)


class _Seen(NamedTuple):
    """The loss of one batch on its way to the CPU."""

    loss: Tensor
    arrives: torch.cuda.Event | None
    batch: Sequence[Any]
    batch_idx: int


class FiniteLoss:
    """Stops a training whose loss is no number, before the optimizer takes the step.

    On a GPU the loss is copied beside the backward pass, so that nobody waits for it: it is looked
    at once the backward pass has been asked for.
    """

    def __init__(self) -> None:
        """Nothing was seen."""
        self._seen: list[_Seen] = []

    def see(self, loss: Tensor, batch: Sequence[Any], batch_idx: int) -> None:
        """Note the loss of a batch."""
        loss, arrives = loss.detach(), None
        if loss.is_cuda:
            copied = torch.empty((), dtype=loss.dtype, pin_memory=True)
            copied.copy_(loss, non_blocking=True)
            arrives = torch.cuda.current_stream(loss.device).record_event()
            loss = copied
        self._seen.append(_Seen(loss, arrives, batch, batch_idx))

    def forget(self) -> None:
        """Look at none of the losses so far."""
        self._seen.clear()

    def check(self, *, step: int, epoch: int, lr: float) -> None:
        """Look at the losses since the last step.

        Args:
            step: Steps that the optimizer has taken.
            epoch: Counted from 0.
            lr: The highest learning rate of the step to come.

        Raises:
            CamtrainValueError: One of them is not finite; names step, rate and pictures.
        """
        seen, self._seen = self._seen, []
        for loss, arrives, batch, batch_idx in seen:
            if arrives is not None:
                arrives.synchronize()
            if not torch.isfinite(loss):
                paths = getattr(batch, "paths", None)
                where = f"of these pictures: {', '.join(paths)}" if paths else "in that order"
                raise CamtrainValueError(
                    f"The loss is {loss.item()} at step {step} (epoch {epoch}, batch {batch_idx}) "
                    f"with a learning rate of {lr:g}, in the batch {where}; the step was not "
                    "taken. Look at the pictures, lower lr, or give --trainer.gradient_clip_val 1; "
                    "the last checkpoint is good, --ckpt_path last goes on from it."
                )
