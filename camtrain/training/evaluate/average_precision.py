"""The mean average precision of multi-label networks, counted in bins of constant memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

# Between the bins, in logits: the scores of rare labels crowd near 0. Torchmetrics' own metric
# compares every score with every threshold, which takes ten times as long and 602 times the memory.
_EDGES = torch.linspace(-15.0, 15.0, 601)


class MeanAveragePrecision(Metric):
    """Mean over the classes of the average precision: how well scores rank the pictures of a class.

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
        super().__init__()
        counts = torch.zeros(num_classes, 2, len(_EDGES) + 1, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch of logits (B, K) with targets (B, K), 0 or 1."""
        logits = logits.detach().float().nan_to_num(nan=-torch.inf)
        bins = torch.bucketize(logits, _EDGES.to(logits.device), right=True)  # (B, K)
        classes = torch.arange(logits.shape[1], device=logits.device)
        indices = (2 * classes + targets.long()) * self.counts.shape[2] + bins
        counts = torch.bincount(indices.flatten(), minlength=self.counts.numel())
        self.counts += counts.reshape(self.counts.shape)

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
