"""The WSOL benchmark's way from a class map to boxes, number for number.

Choe et al., arXiv 2007.04178; held box for box against the evaluator of its authors
(github.com/clovaai/wsolevaluation, evaluation.py). Everything happens at 224 x 224. The score map
is quantized to 8 bit and cut strictly above integer levels, so that a map has at most 256
foregrounds, whatever the number of thresholds. Boxes of this file are *inclusive* xyxy.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtrain.maps import SIDE

NUM_LEVELS = 256
THRESHOLDS: NDArray[np.float64] = np.arange(0, 1, 0.001)  # (1000,), parts of a map's maximum


def quantized(scores: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A score map in [0, 1] as 8-bit levels, truncated."""
    return (scores * 255).astype(np.uint8)


def levels_of_thresholds(peak: int) -> NDArray[np.int64]:
    """The integer level that each of the ``THRESHOLDS`` means for a map of this highest level.

    Returns:
        (1000,) int64. The foreground is strictly above the level.
    """
    return (THRESHOLDS * peak).astype(np.int64)


def inclusive_boxes(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """A picture's half-open boxes as the benchmark's inclusive ones at 224 x 224, truncated.

    Args:
        boxes_xyxy: (n, 4) half-open xyxy in pixels of the picture.
        size_hw: The picture's (H, W), in pixels.

    Returns:
        (n, 4) int64, inclusive xyxy.

    Example:
        >>> inclusive_boxes(torch.tensor([[50, 0, 100, 80]]), size_hw=(80, 100)).tolist()
        [[112, 0, 221, 221]]
    """
    height, width = size_hw
    inclusive = boxes_xyxy.double() - torch.tensor([0, 0, 1, 1])
    return (inclusive * SIDE / torch.tensor([width, height, width, height])).long()
