"""Whether scores are probabilities: the calibration error, and what its chart shows."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

_BINS = 15


class CalibrationError(Metric):
    """The expected calibration error (Guo et al., ICML 2017, arXiv 1706.04599, equation 3).

    The scores of the predicted classes fall into 15 equal bins; the error is the mean distance of
    a bin's accuracy from its mean score, weighted by its pictures. For multi-label networks each
    label counts, with its score and whether it is true. Torchmetrics' metric gives the same, but
    keeps every score. Counts and float64 sums need constant memory. NaN is not counted.

    Example:
        >>> metric = CalibrationError("multiclass")
        >>> logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.7, 0.3], [0.3, 0.7]]).log()
        >>> metric.update(logits, torch.tensor([0, 1, 0, 1]))
        >>> round(metric.compute().item(), 4)  # 0.4 for two pictures at 0.9, 0.3 for two at 0.7
        0.35
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    sums: Tensor

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task
        self.set_dtype(torch.float64)
        zeros = torch.zeros(3, _BINS, dtype=torch.float64)  # pictures, right ones, their scores
        self.add_state("sums", zeros, dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count logits (B, K) with classes (B,), of multi-label networks with labels (B, K)."""
        logits = logits.detach().double()
        if self.task == "multilabel":
            scores, right = logits.sigmoid().flatten(), targets.flatten()
        else:
            scores, guesses = logits.softmax(1).max(1)
            right = guesses == targets
        is_counted = ~scores.isnan()
        scores, right = scores[is_counted], right[is_counted].double()
        bins = (scores * _BINS).long().clamp(max=_BINS - 1)
        self.sums.index_add_(1, bins, torch.stack([torch.ones_like(scores), right, scores]))

    def compute(self) -> Tensor:
        """The error, a float64 scalar in [0, 1]; NaN if nothing was counted."""
        counts, right, scores = self.sums
        error: Tensor = (right - scores).abs().sum() / counts.sum()
        return error

    def reliability(self) -> list[list[float]]:
        """Mean score, accuracy and pictures of each bin that has any, over all processes."""
        with self.sync_context():
            counts, right, scores = self.sums[:, self.sums[0] > 0].cpu()
        rows: list[list[float]] = torch.stack([scores / counts, right / counts, counts], 1).tolist()
        return rows
