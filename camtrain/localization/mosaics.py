"""Mosaics of four pictures of four classes: a score that a bias to the centre cannot earn."""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from camtrain.errors import CamtrainValueError
from camtrain.localization.metric import PictureMetric
from camtrain.localization.pointing import energy_share, peak_of
from camtrain.maps import upsampled

CELLS = 4
_SIZE_HW = (224, 224)


def mosaic_plan(labels: Tensor | NDArray[Any], *, seed: int = 0) -> Tensor:
    """Which pictures of a set make up its mosaics: four of four different classes each.

    Every picture is used at most once, and as many as can be: the classes with the most pictures
    left go first. Depends on nothing but the labels and the seed.

    Args:
        labels: (n,) int, the class of each picture.
        seed: Of the choice among equals.

    Returns:
        (m, 4) int64, indices into ``labels``: top left, top right, bottom left, bottom right.
        (0, 4) where the set has fewer than four classes: it has no such score, leave it out.

    Raises:
        CamtrainValueError: ``labels`` is not (n,).

    Example:
        >>> plan = mosaic_plan(torch.tensor([0, 0, 1, 2, 3, 3, 4, 5]))
        >>> plan.shape, plan.unique().tolist()
        (torch.Size([2, 4]), [0, 1, 2, 3, 4, 5, 6, 7])
    """
    labels = torch.as_tensor(labels)
    if labels.ndim != 1:
        raise CamtrainValueError(f"labels must be (n,), got {tuple(labels.shape)}.")
    generator = torch.Generator().manual_seed(seed)
    pictures: dict[int, list[int]] = defaultdict(list)  # by class
    for index in torch.randperm(len(labels), generator=generator).tolist():
        pictures[int(labels[index])].append(index)
    # The class with the most pictures left is on top; of equals, the first one that was met.
    heap = [(-len(indices), rank, label) for rank, (label, indices) in enumerate(pictures.items())]
    heapq.heapify(heap)
    plan = []
    while len(heap) >= CELLS:
        chosen = [heapq.heappop(heap) for _ in range(CELLS)]
        order = torch.randperm(CELLS, generator=generator).tolist()
        plan.append([pictures[chosen[place][2]].pop() for place in order])
        for less_left, rank, label in chosen:
            if pictures[label]:
                heapq.heappush(heap, (less_left + 1, rank, label))
    return torch.tensor(plan, dtype=torch.int64).reshape(-1, CELLS)


def mosaic(images: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
    """Four pictures as one, 2 x 2.

    Args:
        images: (4, C, H, W), as they enter the network, in the order of ``mosaic_plan``.
        size: (H, W) of the mosaic, at least 2 x 2, to which the pictures are shrunk (bilinear,
            antialiased): for networks of fixed input size. Of an odd side the right or lower half
            is the larger one. By default the pictures keep their size, so that the network meets
            objects of the scale that it knows.

    Returns:
        (C, 2H, 2W), or (C, *size), of the type of ``images``.

    Raises:
        CamtrainValueError: ``images`` are not (4, C, H, W), or ``size`` is too small.

    Example:
        >>> mosaic(torch.arange(4.0).reshape(4, 1, 1, 1)).tolist()
        [[[0.0, 1.0], [2.0, 3.0]]]
    """
    if images.ndim != 4 or len(images) != CELLS:
        raise CamtrainValueError(f"images must be (4, C, H, W), got {tuple(images.shape)}.")
    height, width = size or (2 * images.shape[2], 2 * images.shape[3])
    if min(height, width) < 2:
        raise CamtrainValueError(f"size must be at least (2, 2), got {(height, width)}.")
    heights, widths = (height // 2, height - height // 2), (width // 2, width - width // 2)
    rows = [
        torch.cat(
            [_resized(images[2 * row + column], heights[row], widths[column]) for column in (0, 1)],
            dim=2,
        )
        for row in (0, 1)
    ]
    return torch.cat(rows, dim=1)


class MosaicScore(PictureMetric):
    """Whether the map of each class of a mosaic keeps to that class's own quarter.

    ``peak``: part of the maps whose maximum lies in the quarter of their class. ``energy``: mean
    share of a map's positive part that does. A map that knows no more than the place earns 25 % of
    either. Maps are first upsampled bilinearly to 224 x 224, so that the middle of a map of odd
    sides falls between pixels.

    A map that is constant, or holds NaN or infinity, has no peak; one without positive values, or
    with such ones, has no energy: both count as 0. Sums are kept in float64.

    Example:
        >>> maps = torch.full((1, 4, 2, 4), -1.0)
        >>> maps[0, range(4), [0, 0, 1, 1], [0, 3, 1, 0]] = 2.0  # the last one in a wrong quarter
        >>> metric = MosaicScore()
        >>> metric.update(maps)
        >>> metric.compute()["peak"]
        tensor(0.7500, dtype=torch.float64)
    """

    peak: Tensor
    energy: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sums("peak", "count", dtype=torch.int64)
        self.add_sums("energy", dtype=torch.float64)

    def update(self, maps: Tensor) -> None:
        """Count a batch of mosaics.

        Args:
            maps: (B, 4, h, w), the class maps of the four classes of each mosaic, in the order of
                their quarters: top left, top right, bottom left, bottom right.
        """
        if maps.ndim != 4 or maps.shape[1] != CELLS:
            raise CamtrainValueError(f"maps must be (B, 4, h, w), got {tuple(maps.shape)}.")
        maps = maps.detach().cpu()
        for quarter in range(CELLS):
            mask = _quarter_mask(quarter)
            for class_map in maps[:, quarter]:
                peak = peak_of(class_map, _SIZE_HW)
                self.peak += peak is not None and bool(mask[peak])
                self.energy += energy_share(upsampled(class_map, _SIZE_HW), mask)
                self.count += 1

    def compute(self) -> dict[str, Tensor]:
        """The fraction of peaks and the mean share of energy, float64; NaN when none counted."""
        return {"peak": self.peak.double() / self.count, "energy": self.energy / self.count}


def _quarter_mask(number: int) -> Tensor:
    """The pixels of a quarter, bool."""
    row, column = divmod(number, 2)
    height, width = _SIZE_HW[0] // 2, _SIZE_HW[1] // 2
    mask = torch.zeros(_SIZE_HW, dtype=torch.bool)
    mask[row * height : (row + 1) * height, column * width : (column + 1) * width] = True
    return mask


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """An image (C, H, W) at the size of its quarter; itself where it has that size."""
    if image.shape[1:] == (height, width):
        return image
    return functional.interpolate(
        image[None], size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )[0]
