"""PxAP, the score of the WSOL benchmark for pictures with masks: pixel average precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.localization.contours import THRESHOLDS
from camtrain.localization.metric import PictureMetric, check_batch
from camtrain.maps import SIDE, score_map

IGNORED = 255
# The bins begin at the 1,000 thresholds, at 1 (for scores of exactly 1) and at 2 (always empty, but
# the benchmark has it).
_EDGES: NDArray[np.float64] = np.concatenate((THRESHOLDS, [1.0, 2.0, 3.0]))
_NUM_BINS = len(_EDGES) - 1


def pixel_histograms(
    scores: NDArray[np.float64], mask: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of pixels of the object, and of the background, per bin of scores, (1002,) each.

    ``scores`` lie in [0, 1]; ``mask`` is 0 background, 1 object, 255 ignored.
    """
    # Where the product is rounded across an integer it is off by one, which the edges correct.
    bins = (scores * len(THRESHOLDS)).astype(np.int64)
    bins -= scores < _EDGES[bins]
    bins += scores >= _EDGES[bins + 1]
    # One histogram of both: the mask's value chooses the block of bins.
    bins += _NUM_BINS * mask.astype(np.int64)
    counts = np.bincount(bins.ravel(), minlength=2 * _NUM_BINS)
    return counts[_NUM_BINS : 2 * _NUM_BINS], counts[:_NUM_BINS]


class PxAP(PictureMetric):
    """Pixel average precision: the area under precision against recall of a set's pixels.

    A pixel's score is the class map, resized to 224 x 224 and min-max normalized. At each of 1,000
    thresholds the pixels of all pictures that reach it are compared with the masks. The value is
    the sum of precision x increase of recall (Choe et al., arXiv 2007.04178, section 3.2), in
    [0, 1]; the benchmark prints percent. Ignored pixels (255), and pictures without a mask, are not
    counted. Memory is constant.

    Example:
        >>> class_map = torch.zeros(1, 224, 224)
        >>> class_map[0, 50:100, 50:150] = 1.0
        >>> mask = torch.zeros(224, 224, dtype=torch.uint8)
        >>> mask[50:100, 50:200] = 1
        >>> metric = PxAP()
        >>> metric.update(class_map, [mask])
        >>> round(metric.compute().item(), 4)
        0.7165
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_sums("objects", "background", shape=(_NUM_BINS,), dtype=torch.int64)

    def update(self, maps: Tensor, masks: Sequence[Tensor | NDArray[Any] | None]) -> None:
        """Count a batch.

        Args:
            maps: (B, h, w), a class map per picture, signed and unnormalized; it covers the whole
                picture. A map of 224 x 224 is not resized.
            masks: Per picture (H, W) of any size, 0 background, 1 object, 255 ignored, resized to
                224 x 224 by the nearest neighbour; None or empty where there is none.

        Raises:
            CamtrainValueError: ``maps`` is not (B, h, w) for B entries of ``masks``, or a mask is
                not (H, W) or holds other values.
        """
        check_batch("maps", maps, "B h w", len(masks), like="masks")
        for index, (class_map, mask) in enumerate(zip(maps.detach().cpu(), masks, strict=True)):
            if mask is None or len(mask) == 0:
                continue
            objects, background = pixel_histograms(
                score_map(class_map), _mask_at_benchmark_size(f"masks[{index}]", mask)
            )
            self.objects += torch.from_numpy(objects).to(self.objects.device)
            self.background += torch.from_numpy(background).to(self.background.device)

    def compute(self) -> Tensor:
        """The average precision, a float64 scalar in [0, 1].

        Raises:
            CamtrainValueError: No pixel of an object was counted.
        """
        # Pixels whose score reaches the lower edge of each bin, the highest bin first.
        objects = self.objects.flip(0).cumsum(0).double()
        counted = objects + self.background.flip(0).cumsum(0)
        if objects[-1] == 0:
            raise CamtrainValueError(
                "PxAP needs at least one pixel of an object, and none was counted: check that the "
                "masks hold 1 where the object is."
            )
        recall = objects / objects[-1]
        # Where nothing is counted yet, recall does not increase either.
        precision = objects / counted.clamp(min=1)
        return (precision[1:] * recall.diff()).sum()


def _mask_at_benchmark_size(name: str, mask: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """A mask as (224, 224) uint8 of 0, 1, and 255."""
    values = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if values.ndim != 2:
        raise CamtrainValueError(f"{name} must be one mask of shape (H, W), got {values.shape}.")
    if not np.isin(values, (0, 1, IGNORED)).all():
        raise CamtrainValueError(
            f"{name} must hold 0 (background), 1 (object) and {IGNORED} (ignored), got "
            f"{np.setdiff1d(values, (0, 1, IGNORED))[:5].tolist()}."
        )
    resized = cv2.resize(values.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized, dtype=np.uint8)
