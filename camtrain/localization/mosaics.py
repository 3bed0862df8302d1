"""Mosaics of four pictures of several classes: a score that a bias to the centre cannot raise."""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from camtrain.errors import CamtrainValueError
from camtrain.localization.metric import PictureMetric
from camtrain.localization.pointing import energy_share, peak_of
from camtrain.maps import SIDE, upsampled

CELLS = 4


def mosaic_plan(labels: Tensor | NDArray[Any], *, seed: int = 0) -> Tensor:
    """Which pictures of a set make up its mosaics: four of four different classes each.

    In a set of two or three classes, a mosaic holds two pictures of each of two classes.

    Every picture is used at most once, and as many as possible are used: the classes with the most
    pictures left go first. The plan depends only on the labels and the seed.

    Args:
        labels: (n,) int, the class of each picture.
        seed: Of the random choice among pictures of a class.

    Returns:
        (m, 4) int64, indices into ``labels``: top left, top right, bottom left, bottom right.
        (0, 4) where the set has only one class; such a set has no mosaic score.

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
    # The class with the most pictures left is on top; of equal classes, the first that was met.
    heap = [(-len(indices), rank, label) for rank, (label, indices) in enumerate(pictures.items())]
    heapq.heapify(heap)
    plan = []
    count = CELLS if len(heap) >= CELLS else 2  # of the classes of a mosaic
    each = CELLS // count
    heap = [entry for entry in heap if -entry[0] >= each]
    heapq.heapify(heap)
    while len(heap) >= count:
        classes = [heapq.heappop(heap) for _ in range(count)]
        order = torch.randperm(CELLS, generator=generator).tolist()
        plan.append([pictures[classes[place % count][2]].pop() for place in order])
        for less_left, rank, label in classes:
            if len(pictures[label]) >= each:
                heapq.heappush(heap, (less_left + each, rank, label))
    return torch.tensor(plan, dtype=torch.int64).reshape(-1, CELLS)


def mosaic(images: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
    """Four pictures as one, 2 x 2.

    Args:
        images: (4, C, H, W), as they enter the network, in the order of ``mosaic_plan``.
        size: (H, W) of the mosaic, at least 2 x 2, for networks of fixed input size: the pictures
            are resized to fit (bilinear, antialiased). Of an odd side the right or lower half is
            the larger one. By default the pictures keep their size, so that the network meets
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
    top, left = height // 2, width // 2
    sizes = [[rows, columns] for rows in (top, height - top) for columns in (left, width - left)]
    # ``resize`` does not resample an image that has the size already.
    quarters = [TF.resize(image, hw) for image, hw in zip(images, sizes, strict=True)]
    return torch.cat([torch.cat(quarters[:2], dim=2), torch.cat(quarters[2:], dim=2)], dim=1)


class MosaicScore(PictureMetric):
    """Whether the map of each class of a mosaic keeps to that class's own quarter or quarters.

    ``peak``: part of the maps whose maximum lies in a quarter of their class. ``energy``: mean
    share of a map's positive part that lies there. ``chance``: what a map that depends on the place
    alone gets of either, 25 % with four classes and 50 % with two. Maps are first upsampled
    bilinearly to 224 x 224, so that the middle of a map with odd sides falls between pixels.

    A map that is constant, or holds NaN or infinity, scores 0 for ``peak``; a map without positive
    values, or with NaN or infinity, scores 0 for ``energy``.

    Example:
        >>> maps = torch.full((1, 4, 2, 4), -1.0)
        >>> maps[0, range(4), [0, 0, 1, 1], [0, 3, 1, 0]] = 2.0  # the last one in a wrong quarter
        >>> metric = MosaicScore()
        >>> metric.update(maps)
        >>> metric.compute()["peak"]
        tensor(0.7500, dtype=torch.float64)
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_sums("peak", "count", dtype=torch.int64)
        self.add_sums("energy", "chance", dtype=torch.float64)

    def update(self, maps: Tensor, classes: Tensor | None = None) -> None:
        """Count a batch of mosaics.

        Args:
            maps: (B, 4, h, w), the class maps of the four classes of each mosaic, in the order of
                their quarters: top left, top right, bottom left, bottom right.
            classes: (B, 4), the classes; None means that the four classes differ.

        Raises:
            CamtrainValueError: ``maps`` is not (B, 4, h, w).
        """
        if maps.ndim != 4 or maps.shape[1] != CELLS:
            raise CamtrainValueError(f"maps must be (B, 4, h, w), got {tuple(maps.shape)}.")
        if classes is None:
            classes = torch.arange(CELLS).expand(len(maps), CELLS)
        is_same = classes[:, :, None] == classes[:, None]  # (B, 4, 4): map, quarter
        for class_map, quarters in zip(
            maps.detach().cpu().flatten(0, 1), is_same.cpu().flatten(0, 1), strict=True
        ):
            region = quarters.reshape(2, 2).repeat_interleave(SIDE // 2, 0)
            region = region.repeat_interleave(SIDE // 2, 1)
            peak = peak_of(class_map, (SIDE, SIDE))
            self.peak += peak is not None and bool(region[peak])
            self.energy += energy_share(upsampled(class_map, (SIDE, SIDE)), region)
            self.chance += quarters.double().mean()
            self.count += 1

    def compute(self) -> dict[str, Tensor]:
        """The scores by name, float64 scalars; NaN when nothing was counted."""
        sums = {"peak": self.peak.double(), "energy": self.energy, "chance": self.chance}
        return {name: value / self.count for name, value in sums.items()}
