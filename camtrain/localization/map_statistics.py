"""How maps look as a whole: numbers that show a collapse before a picture does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from camtrain.header import DEFAULT_THRESHOLD, check_threshold
from camtrain.localization.pictures import check_batch
from camtrain.localization.pointing import box_mask, energy_share
from camtrain.maps import upsampled

STATISTICS = ("energy_in_box", "area", "entropy")
BINS = 20  # of the histograms, equally wide from 0 to 1


class MapStatistics(Metric):
    """Mean and histogram of three statistics of class maps, each in [0, 1].

    * ``energy_in_box``: the share of the map's positive energy inside the truth boxes, see
      ``EnergyInBox``; only where a picture has boxes.
    * ``area``: the part of the map's cells above threshold x maximum after min-max, around which
      boxes are drawn. 0 for a constant map.
    * ``entropy``: of the positive energy as a distribution over the cells, -sum p ln p / ln(h w). 0
      where one cell has it all, 1 where all have the same or there is none.

    A network that looks at nothing in particular drifts to entropy 1, one that has found a single
    telling corner to area and entropy 0; in a min-max heatmap both can look the same. Maps of one
    cell, and those with NaN or infinity, are not counted. Sums are kept in float64.

    Example:
        >>> maps = torch.tensor([[[0.0, 0.0, 4.0, 4.0]], [[-1.0, 0.0, 0.0, 8.0]]])  # (2, 1, 4)
        >>> metric = MapStatistics()
        >>> metric.update(maps, [torch.tensor([[0, 0, 4, 2]]), torch.zeros(0, 4)], size_hw=(2, 8))
        >>> {name: round(score.item(), 4) for name, score in metric.compute().items()}
        {'energy_in_box': 0.0625, 'area': 0.375, 'entropy': 0.25}
        >>> metric.histograms()["entropy"].nonzero().flatten().tolist()  # 0 and 0.5
        [0, 10]
    """

    is_differentiable = False
    full_state_update = False

    sums: Tensor
    counts: Tensor

    def __init__(self, threshold: float = DEFAULT_THRESHOLD) -> None:
        """Start with nothing counted.

        Args:
            threshold: Of ``area``, in [0, 1).
        """
        super().__init__()
        self.threshold = check_threshold(threshold)
        self.set_dtype(torch.float64)
        sums = torch.zeros(len(STATISTICS), dtype=torch.float64)
        self.add_state("sums", sums, dist_reduce_fx="sum")
        counts = torch.zeros(len(STATISTICS), BINS, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, maps: Tensor, boxes_xyxy: Sequence[Tensor], size_hw: tuple[int, int]) -> None:
        """Count a batch.

        Args:
            maps: (B, h, w), a class map per picture, signed, over the network's input.
            boxes_xyxy: Per picture (n, 4), half-open xyxy in pixels of the network's input; n = 0
                where there are none.
            size_hw: (H, W) of the network's input, in pixels.
        """
        check_batch("maps", maps, "B h w", len(boxes_xyxy))
        if maps.shape[1] * maps.shape[2] < 2:
            return
        maps = maps.detach().cpu()
        is_counted = maps.isfinite().all((1, 2))
        whole = maps[is_counted].double()
        self._count("area", _areas(whole, self.threshold))
        self._count("entropy", _entropies(whole))
        energies = [
            energy_share(upsampled(one, size_hw), box_mask(boxes.cpu(), size_hw))
            for one, boxes, is_finite in zip(maps, boxes_xyxy, is_counted.tolist(), strict=True)
            if is_finite and len(boxes)
        ]
        self._count("energy_in_box", torch.tensor(energies, dtype=torch.float64))

    def _count(self, name: str, values: Tensor) -> None:
        """Add values, (n,) float64 in [0, 1]."""
        row = STATISTICS.index(name)
        bins = (values * BINS).long().clamp(0, BINS - 1)  # rounding can leave [0, 1]
        self.sums[row] += values.sum().to(self.sums.device)
        self.counts[row] += torch.bincount(bins, minlength=BINS).to(self.counts.device)

    def compute(self) -> dict[str, Tensor]:
        """The means by name, float64 scalars; NaN where nothing was counted."""
        return dict(zip(STATISTICS, self.sums / self.counts.sum(1), strict=True))

    def histograms(self) -> dict[str, Tensor]:
        """Pictures per bin by name, (20,) int64, of all processes."""
        with self.sync_context():
            return dict(zip(STATISTICS, self.counts.cpu().clone(), strict=True))


def _areas(maps: Tensor, threshold: float) -> Tensor:
    """Part of the cells above threshold x maximum after min-max, (B,), of maps (B, h, w)."""
    heat = maps - maps.amin((1, 2), keepdim=True)
    return (heat > threshold * heat.amax((1, 2), keepdim=True)).double().mean((1, 2))


def _entropies(maps: Tensor) -> Tensor:
    """Entropy of the positive energy in units of its maximum, (B,), of maps (B, h, w)."""
    energy = maps.clamp_min(0).flatten(1)
    total = energy.sum(1, keepdim=True)
    p = torch.where(total > 0, energy / total.clamp_min(torch.finfo(total.dtype).tiny), 1.0)
    p = p / p.sum(1, keepdim=True)  # uniform where there was none
    entropies: Tensor = torch.special.entr(p).sum(1)
    return entropies / math.log(p.shape[1])
