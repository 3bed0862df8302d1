"""The pointing game, the energy inside the boxes, and what class maps look like as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.localization.metric import ClassMapMetric, PictureMetric, SizeHW, check_batch
from camtrain.maps import has_range, upsampled
from camtrain.thresholds import DEFAULT_THRESHOLD, check_threshold

STATISTICS = ("energy_in_box", "area", "entropy")
BINS = 20  # of the histograms, equally wide from 0 to 1


def peak_of(class_map: Tensor, size_hw: SizeHW) -> tuple[int, int] | None:
    """Row and column of the maximum of a class map (h, w), upsampled bilinearly to its picture.

    The first maximum in row-major order; None where the map is constant or holds NaN or infinity.

    Example:
        >>> peak_of(torch.tensor([[0.0, 1.0, 0.0]]), size_hw=(2, 9))
        (0, 4)
    """
    if not has_range(class_map.float()):
        return None
    # NumPy finds it in a tenth of torch's time.
    peak = upsampled(class_map, size_hw).detach().cpu().numpy().argmax()
    row, column = divmod(int(peak), size_hw[1])
    return row, column


def box_mask(boxes_xyxy: Tensor, size_hw: SizeHW) -> Tensor:
    """The pixels of a picture whose centre lies in any box (n, 4), half-open xyxy: (H, W) bool.

    Example:
        >>> box_mask(torch.tensor([[1, 0, 3, 1]]), size_hw=(2, 4)).int().tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    y, x = (torch.arange(side) + 0.5 for side in size_hw)
    x0, y0, x1, y1 = boxes_xyxy[:, :, None].unbind(1)  # each (n, 1)
    in_columns, in_rows = (x0 <= x) & (x < x1), (y0 <= y) & (y < y1)
    return (in_rows[:, :, None] & in_columns[:, None, :]).any(dim=0)


def energy_share(class_map: Tensor, inside: Tensor) -> float:
    """The share of a signed map's positive part (H, W) inside a mask (H, W), summed in float64.

    0 where the map has no positive value, or holds NaN or infinity.

    Example:
        >>> energy_share(torch.tensor([[-5.0, 1.0, 3.0]]), torch.tensor([[True, True, False]]))
        0.25
    """
    energy = class_map.clamp_min(0)
    total = energy.sum(dtype=torch.float64).item()
    if not 0 < total < float("inf"):  # NaN compares as False
        return 0.0
    return (energy * inside).sum(dtype=torch.float64).item() / total


class PointingGame(ClassMapMetric):
    """Part of the pictures whose class map has its maximum inside a truth box.

    This is the game of Zhang et al. (arXiv 1608.00507, section 4.2). They also count a point up to
    15 pixels outside of the object, ``tolerance=15``; the default counts no such point. The result
    ``centre`` is the baseline: the centre of each picture as the point, with the same tolerance.

    ``update(maps, boxes_xyxy, sizes_hw)`` takes (B, h, w) or B maps (h, w), per picture boxes
    (n, 4), half-open xyxy in its pixels, and (B, 2) of (H, W). A map that is constant or holds NaN
    or infinity is a miss. Pictures without boxes are not counted.

    Args:
        tolerance: The largest Euclidean distance, in pixels of the picture, between the point's
            pixel and the nearest pixel of a box; with 0 the point must be inside.

    Example:
        >>> maps = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
        >>> metric = PointingGame()
        >>> metric.update(maps, [torch.tensor([[40, 0, 60, 20]])], torch.tensor([[40, 60]]))
        >>> {name: score.item() for name, score in metric.compute().items()}
        {'pointing': 1.0, 'centre': 0.0}
    """

    def __init__(self, tolerance: float = 0.0) -> None:
        super().__init__()
        if not 0 <= tolerance < float("inf"):
            raise CamtrainValueError(f"tolerance must be 0 pixels or more, got {tolerance}.")
        self.tolerance = tolerance
        self.add_sums("hits", "centre_hits", "count", dtype=torch.int64)

    def _count(self, pictures: list[tuple[Tensor, Tensor, SizeHW]]) -> None:
        for class_map, boxes, (height, width) in pictures:
            peak = peak_of(class_map, (height, width))
            self.hits += peak is not None and self._is_hit(peak, boxes)
            self.centre_hits += self._is_hit((height // 2, width // 2), boxes)
            self.count += 1

    def _is_hit(self, point: tuple[int, int], boxes_xyxy: Tensor) -> bool:
        """Whether the pixel (row, column) is near enough to any box (n, 4)."""
        pixel = torch.tensor([point[1], point[0]], dtype=torch.float64)
        mins, last = boxes_xyxy[:, :2].double(), boxes_xyxy[:, 2:].double() - 1
        outside = (mins - pixel).clamp_min(0) + (pixel - last).clamp_min(0)  # (n, 2)
        return bool((outside.square().sum(dim=1) <= self.tolerance**2).any())

    def compute(self) -> dict[str, Tensor]:
        """The fractions of hits by name, float64 scalars; NaN when nothing was counted."""
        hits = {"pointing": self.hits, "centre": self.centre_hits}
        return {name: number.double() / self.count for name, number in hits.items()}


class EnergyInBox(ClassMapMetric):
    """Mean share of a class map's positive energy that lies inside the truth boxes.

    sum over the pixels of the boxes' union of max(m, 0) / sum over all pixels of max(m, 0), m being
    the class map upsampled bilinearly to the picture: the energy-based pointing game of Wang et al.
    (Score-CAM, arXiv 1910.01279, section 4.3). The result ``area`` is the baseline: the boxes'
    share of the area, which is the score of a constant positive map.

    ``update(maps, boxes_xyxy, sizes_hw)`` takes (B, h, w) or B maps (h, w), per picture boxes
    (n, 4), half-open xyxy in its pixels, and (B, 2) of (H, W). A map without positive energy, or
    with NaN or infinity, scores 0. Pictures without boxes are not counted.

    Example:
        >>> metric = EnergyInBox()
        >>> boxes_xyxy, sizes_hw = [torch.tensor([[0, 0, 20, 40]])], torch.tensor([[40, 80]])
        >>> metric.update(torch.tensor([[[3.0, 1.0], [3.0, 1.0]]]), boxes_xyxy, sizes_hw)
        >>> {name: round(score.item(), 4) for name, score in metric.compute().items()}
        {'energy': 0.375, 'area': 0.25}
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_sums("energy", "area", dtype=torch.float64)
        self.add_sums("count", dtype=torch.int64)

    def _count(self, pictures: list[tuple[Tensor, Tensor, SizeHW]]) -> None:
        for class_map, boxes, size_hw in pictures:
            inside = box_mask(boxes, size_hw)
            self.energy += energy_share(upsampled(class_map, size_hw), inside)
            self.area += inside.sum().item() / inside.numel()
            self.count += 1

    def compute(self) -> dict[str, Tensor]:
        """The mean shares of energy and of area, float64 scalars; NaN when nothing was counted."""
        return {"energy": self.energy / self.count, "area": self.area / self.count}


class MapStatistics(PictureMetric):
    """Mean and histogram of three statistics of class maps, each in [0, 1].

    * ``energy_in_box``: the share of the map's positive energy inside the truth boxes, see
      ``EnergyInBox``; only where a picture has boxes.
    * ``area``: the part of the map's cells above threshold x maximum after min-max, around which
      boxes are drawn. 0 for a constant map.
    * ``entropy``: of the positive energy as a distribution over the cells, -sum p ln p / ln(h w):
      0 where one cell has all of it, 1 where all cells have the same or there is none.

    They show what a min-max heatmap hides: entropy near 1 means that the network looks at nothing
    in particular, area and entropy near 0 that it looks at a single corner. Maps of one cell, and
    those with NaN or infinity, are not counted.

    Args:
        threshold: Of ``area``, in [0, 1).

    Example:
        >>> maps = torch.tensor([[[0.0, 0.0, 4.0, 4.0]], [[-1.0, 0.0, 0.0, 8.0]]])  # (2, 1, 4)
        >>> metric = MapStatistics()
        >>> metric.update(maps, [torch.tensor([[0, 0, 4, 2]]), torch.zeros(0, 4)], size_hw=(2, 8))
        >>> {name: round(score.item(), 4) for name, score in metric.compute().items()}
        {'energy_in_box': 0.0625, 'area': 0.375, 'entropy': 0.25}
        >>> metric.histograms()["entropy"].nonzero().flatten().tolist()  # 0 and 0.5
        [0, 10]
    """

    higher_is_better = None

    def __init__(self, threshold: float = DEFAULT_THRESHOLD) -> None:
        super().__init__()
        self.threshold = check_threshold(threshold)
        self.set_dtype(torch.float64)
        self.add_sums("sums", shape=(len(STATISTICS),), dtype=torch.float64)
        self.add_sums("counts", shape=(len(STATISTICS), BINS), dtype=torch.int64)

    def update(self, maps: Tensor, boxes_xyxy: Sequence[Tensor], size_hw: SizeHW) -> None:
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
        is_counted = maps.isfinite().all(2).all(1)
        energies = [
            energy_share(upsampled(class_map, size_hw), box_mask(boxes.cpu(), size_hw))
            for class_map, boxes, counted in zip(maps, boxes_xyxy, is_counted, strict=True)
            if len(boxes) and counted
        ]
        maps = maps[is_counted].double()
        values_of_statistics = (
            torch.tensor(energies, dtype=torch.float64),
            _areas(maps, self.threshold),
            _entropies(maps),
        )
        for row, values in enumerate(values_of_statistics):  # (n,), in the order of STATISTICS
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
    energy[energy.sum(1) <= 0] = 1.0  # no energy counts as evenly distributed
    p = energy / energy.sum(1, keepdim=True)
    entropies: Tensor = torch.special.entr(p).sum(1)
    return entropies / math.log(p.shape[1])
