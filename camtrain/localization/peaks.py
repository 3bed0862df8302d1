"""One region of a heatmap as several, where several peaks stand out."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

PROMINENCE = 0.4  # part of the map's maximum by which each peak must rise above the saddle
_LEVELS = 50  # at which a saddle is looked for, from the threshold to the maximum

Region = NDArray[np.bool_]  # (H, W)


def split_components(
    foreground: NDArray[np.uint8], values: NDArray[np.float64], threshold: float
) -> NDArray[np.int64]:
    """x, y, width, height and number of pixels of each component or part of one, (n, 5).

    Components are 8-connected.

    Args:
        foreground: (H, W), 1 for the pixels above threshold x maximum, else 0.
        values: (H, W), the heatmap.
        threshold: Part of the maximum, in [0, 1).
    """
    top = float(values.max())
    _, labels, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    rows = []
    for label, (x, y, width, height, pixels) in enumerate(stats[1:].tolist(), start=1):
        place = slice(y, y + height), slice(x, x + width)
        region = labels[place] == label
        parts = [region]
        if pixels > 1:
            parts = split_at_saddles(region, values[place], threshold, top)
        for part in parts:
            left, above, *sides = cv2.boundingRect(part.astype(np.uint8))
            rows.append((x + left, y + above, *sides, np.count_nonzero(part)))
    return np.array(rows, np.int64).reshape(-1, 5)


def split_at_saddles(
    region: Region, values: NDArray[np.float64], threshold: float, top: float
) -> list[Region]:
    """The parts of a connected region around the peaks that stand out; the region if none do.

    The level rises from the threshold until what lies above it falls into several components of
    which at least two reach ``PROMINENCE`` x the map's maximum higher: that is the saddle. Every
    pixel of the region goes to the nearest of these components, so that the cut passes the saddle.
    Each part is then split in the same way.

    Args:
        region: (H, W) bool, a connected part of the pixels above threshold x maximum.
        values: (H, W), the heatmap.
        threshold: Part of the maximum, in [0, 1).
        top: The maximum of the whole map.

    Example:
        >>> row = np.array([[0.9, 0.9, 0.3, 0.3, 1.0]])
        >>> [part.astype(int).tolist() for part in split_at_saddles(row > 0.2, row, 0.2, 1.0)]
        [[[1, 1, 1, 0, 0]], [[0, 0, 0, 1, 1]]]
    """
    levels = top * np.linspace(threshold, 1, _LEVELS, endpoint=False)
    waiting, parts = [(region, 1)], []
    while waiting:
        part, step = waiting.pop()
        seeds: list[Region] = []
        for first in range(step, _LEVELS):
            seeds = _standing(part & (values > levels[first]), values, levels[first], top)
            if len(seeds) != 1:
                break
        if len(seeds) > 1:
            nearest = _nearest_seed(seeds)
            waiting += [(part & (nearest == n), first + 1) for n in range(len(seeds))][::-1]
        else:
            parts.append(part)
    return parts


def _standing(above: Region, values: NDArray[np.float64], level: float, top: float) -> list[Region]:
    """The 8-connected components of the pixels above a level whose peak stands out from it."""
    is_peak = above & (values >= level + PROMINENCE * top)
    if not is_peak.any():
        return []
    _, labels = cv2.connectedComponents(above.astype(np.uint8), connectivity=8)
    return [labels == label for label in np.unique(labels[is_peak])]


def _nearest_seed(seeds: list[Region]) -> NDArray[np.int64]:
    """The number of the nearest of n regions that do not touch, for every pixel, (H, W)."""
    is_seed = np.any(seeds, axis=0)
    _, nearest = cv2.distanceTransformWithLabels(
        (~is_seed).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP
    )
    seed_of_label = np.zeros(nearest.max() + 1, np.int64)
    for number, seed in enumerate(seeds):
        seed_of_label[nearest[seed]] = number
    return seed_of_label[nearest]
