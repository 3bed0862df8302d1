"""Losses of both tasks, and what several labels per picture need: targets and their precision."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from camtrain.errors import CamtrainValueError
from camtrain.labels import Task

# Between the bins, in logits: the scores of rare labels crowd near 0.
_EDGES = torch.linspace(-15.0, 15.0, 601)


def loss_of(
    logits: Tensor,
    labels: Tensor,
    task: Task,
    *,
    reduction: Literal["mean", "none"] = "mean",
    are_mixed: bool = False,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the classes, or for multi-label the binary one of each, mean over all.

    Args:
        logits: (B, K).
        labels: (B,), class numbers; for multi-label also (B, K), multi-hot of any type.
        task: ``multiclass`` or ``multilabel``.
        reduction: ``none`` for one number per picture, (B,), or per picture and class, (B, K).
        are_mixed: The labels are (B, K), shares of the classes in [0, 1].
        label_smoothing: Part s of a target that all classes share, as 1/K each; for multi-label it
            is moved to 1/2.
        class_weights: (K,); for multi-label the weight of what has the class.

    Raises:
        CamtrainValueError: The labels do not fit the logits or the task.
    """
    if task == "multilabel":
        targets = labels if are_mixed else multi_hot(labels, logits.shape[1])
        targets = targets.lerp(torch.full_like(targets, 0.5), label_smoothing)
        return F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=class_weights, reduction=reduction
        )
    if labels.ndim != 1 and not labels.is_floating_point():
        raise CamtrainValueError(
            f"labels must be one class number per picture, (B,), got {tuple(labels.shape)}; for "
            'several labels per picture give task="multilabel".'
        )
    return F.cross_entropy(
        logits, labels, class_weights, reduction=reduction, label_smoothing=label_smoothing
    )


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
        what = f"class numbers 0..{last}" if is_number else "0 or 1 for each class"
        raise CamtrainValueError(
            f"Labels of a multi-label network must be {what}, got {values.min():g} to "
            f"{values.max():g}."
        )
    return F.one_hot(labels.long(), num_classes).float() if is_number else values


class MeanAveragePrecision(Metric):
    """Mean over the classes of the average precision: how well each class is found, by rank.

    The average precision of a class is the mean, over its pictures, of the precision among all
    pictures whose logit is at least theirs: sum over thresholds of (R_n - R_n-1) P_n. Logits are
    counted in 602 bins, 0.05 wide from -15 to 15, so memory is constant, and neither batches nor
    processes matter; logits of one bin count as equal. NaN ranks last. Classes without a picture
    are left out.

    Example:
        >>> metric = MeanAveragePrecision(3)
        >>> logits = torch.tensor([[3.0, -2.0, 0.0], [-1.0, -1.0, 0.0], [1.0, 2.0, 0.0]])
        >>> metric.update(logits, torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0]]))
        >>> round(metric.compute().item(), 4)  # (1 + 2/3) / 2 and 1; nothing is of the third class
        0.9167
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        """Start with nothing counted.

        Args:
            num_classes: K.
        """
        super().__init__()
        counts = torch.zeros(num_classes, 2, len(_EDGES) + 1, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch.

        Args:
            logits: (B, K).
            targets: (B, K), 0 or 1.
        """
        logits = logits.detach().float().nan_to_num(nan=-torch.inf)
        bins = torch.bucketize(logits, _EDGES.to(logits.device), right=True)  # (B, K)
        classes = torch.arange(logits.shape[1], device=logits.device)
        places = (2 * classes + targets.long()) * self.counts.shape[2] + bins
        found = torch.bincount(places.flatten(), minlength=self.counts.numel())
        self.counts += found.reshape(self.counts.shape)

    def compute(self) -> Tensor:
        """The mean average precision, a float64 scalar in [0, 1]; NaN where no class was seen."""
        return self._by_class().nanmean()

    def by_class(self) -> Tensor:
        """The average precision of each class, (K,) float64, of all processes; NaN if not seen."""
        with self.sync_context():
            return self._by_class().cpu()

    def _by_class(self) -> Tensor:
        positives, every = self.counts[:, 1].flip(1), self.counts.sum(1).flip(1)  # best bin first
        precision = positives.cumsum(1) / every.cumsum(1).clamp_min(1).double()
        return (positives * precision).sum(1) / positives.sum(1)
