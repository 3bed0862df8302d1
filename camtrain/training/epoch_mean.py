"""The mean of a value over an epoch, which goes on where an interrupted epoch stopped."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class EpochMean(Metric):
    """Mean of values weighted by their number of samples, summed in float64.

    Lightning's own mean of what is logged begins anew in the middle of a resumed epoch.

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

    def sums(self) -> Tensor:
        """What this process has added, (2,), to be given to ``restore``."""
        return torch.stack([self.total, self.count])

    def restore(self, sums: list[float]) -> None:
        """Go on from the sums of this process."""
        self.total.fill_(sums[0])
        self.count.fill_(sums[1])
        self._update_count = int(sums[1] > 0)
        self._computed = None
