"""Sums and means over an epoch, which go on where an interrupted epoch stopped.

Lightning's own of what is logged begin anew in the middle of a resumed epoch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class EpochSum(Metric):
    """Sum of numbers, of all processes.

    Example:
        >>> total = EpochSum()
        >>> total.update(2)
        >>> total.compute().item()
        2.0
    """

    full_state_update = False
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, value: int) -> None:
        """Add a number."""
        self.total += value

    def compute(self) -> Tensor:
        """The sum so far, (), float64."""
        return self.total


class EpochMean(Metric):
    """Mean of values weighted by their number of samples, summed in float64.

    Example:
        >>> mean = EpochMean()
        >>> mean.update(torch.tensor(1.0), 3)
        >>> mean.update(torch.tensor(5.0), 1)
        >>> mean.compute().item()
        2.0
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        for name in ("total", "count"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, zero, dist_reduce_fx="sum")

    def update(self, value: Tensor, count: int) -> None:
        """Add a batch.

        Args:
            value: (), the mean over the batch.
            count: Samples in the batch.
        """
        self.total += value.detach().double() * count
        self.count += count

    def compute(self) -> Tensor:
        """The mean so far, (), float64."""
        return self.total / self.count


def sums_of(mean: EpochMean, total: EpochSum) -> Tensor:
    """What this process has added to them, (3,), to be given to ``restore_sums``."""
    return torch.stack([mean.total, mean.count, total.total])


def restore_sums(mean: EpochMean, total: EpochSum, sums: list[float]) -> None:
    """Let them go on from the sums of this process."""
    for state, value in zip((mean.total, mean.count, total.total), sums, strict=True):
        state.fill_(value)
    for metric in (mean, total):
        metric._update_count, metric._computed = int(sums[1] > 0), None
