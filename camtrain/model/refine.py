"""Affinity refinement: class maps spread to what looks alike in the same picture.

A random walk with restart on the places of a feature map, as in Ahn and Kwak, Learning
Pixel-level Semantic Affinity (CVPR 2018, arXiv 1803.10464, section 3.4). They learn the affinities
in a second network. Here they are the similarities of the features of earlier stages of the same
network, from the same forward pass, and nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from camtrain.errors import check_choice
from camtrain.model.images import to_device

Refine = Literal["none", "affinity"]

# Chosen once for two networks on three sets of photographs; other values near these do as well.
STEPS = 4
RESTART = 0.02
FLOOR = 0.75
_SMALLEST = 1e-12
_MOST_PAIRS = 2**25  # pairs of places compared at once: 128 MB for each tensor of similarities
MOST_CHANNELS = 160  # of a stage; a stage with more is hashed


class BackboneOutput(NamedTuple):
    """Features and, where the network refines its maps, vectors by which places are compared."""

    features: Tensor  # (B, C, h, w), of the backbone or of the neck
    vectors: Tensor  # (B, S, h, w), of `stage_vectors`; S is 0 where nothing is refined

    def packed(self) -> Tensor:
        """Both in one tensor, (B, C + S, h, w), float32 where there are vectors."""
        if not self.vectors.shape[1]:
            return self.features
        return torch.cat((self.features.float(), self.vectors), dim=1)

    @classmethod
    def unpacked(cls, packed: Tensor, channels: int) -> BackboneOutput:
        """The inverse of ``packed``, where the last ``channels`` (S) are those of the vectors."""
        split = packed.shape[1] - channels
        return cls(packed[:, :split], packed[:, split:])


class RefinedOutput(NamedTuple):
    """Logits, class maps and refined maps of a batch, see ``CAMOutput``.

    The refined maps are (B, k, h, w), not negative, without a unit, for boxes and heatmaps. Their
    mean says nothing about the logit.
    """

    logits: Tensor
    maps: Tensor
    classes: Tensor
    refined_maps: Tensor


def stage_vectors(stages: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Feature maps of several stages as one unit vector per place of the class maps.

    Args:
        stages: Feature maps (B, C_i, h_i, w_i) of the same pictures. More than 160 channels are
            summed in groups with fixed random signs, which keeps dot products in expectation
            (Weinberger et al., Feature Hashing, arXiv 0902.2206, section 2).
        size: (h, w) of the class maps; stages of another size are resized bilinearly.

    Returns:
        (B, S, h, w), float32. Apart from resizing and hashing, the dot product of two places is the
        mean of the stages' cosine similarities.

    Example:
        >>> stages = [torch.tensor([[[[3.0, 0.0]], [[4.0, 2.0]]]]), torch.ones(1, 1, 1, 2)]
        >>> vectors = stage_vectors(stages, (1, 2)).flatten(2)  # (1, 3, 2)
        >>> round((vectors.mT @ vectors)[0, 0, 1].item(), 4)  # (0.8 + 1) / 2
        0.9
    """
    parts, root = [], len(stages) ** 0.5
    for stage in stages:
        features = _hash_channels(stage.float())
        # In an exported graph sizes are symbols; to resize to the same size changes nothing.
        if torch.compiler.is_compiling() or tuple(features.shape[2:]) != size:
            features = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(_SMALLEST)
        parts.append(features / (root * length))
    return torch.cat(parts, dim=1)


def hashed_channels(channels: int) -> int:
    """The number of channels of a stage after hashing.

    Example:
        >>> [hashed_channels(channels) for channels in (96, 160, 161, 512)]
        [96, 160, 81, 128]
    """
    return math.ceil(channels / math.ceil(channels / MOST_CHANNELS))


def _hash_channels(stage: Tensor) -> Tensor:
    """A stage (B, C, h, w) whose channels ``count`` apart are summed, with random signs."""
    channels = stage.shape[1]
    count = hashed_channels(channels)
    if count == channels:
        return stage
    signs = to_device(torch.from_numpy(_signs(channels)), stage.device)[:, None, None]
    # Slices are added as they lie in memory; a sum over an axis of groups takes six times as long.
    total, *slices = torch.split(stage * signs, count, dim=1)
    for part in slices:
        missing = count - part.shape[1]
        total = total + (F.pad(part, (0, 0, 0, 0, 0, missing)) if missing else part)
    return total


@cache
def _signs(channels: int) -> NDArray[np.float32]:
    """1 or -1 for each channel. They must never change: trained thresholds depend on them."""
    # An array, since a cached tensor might have been made while a graph was exported.
    signs = [1 - 2 * (sha256(b"%d" % c).digest()[0] & 1) for c in range(channels)]
    return np.array(signs, dtype=np.float32)


def refine_maps(maps: Tensor, vectors: Tensor) -> Tensor:
    """Class maps spread along the affinities of their places.

    Let s_ij be the similarity of two places, a_ij = max(s_ij, 0)^3, A_ij = a_ij / sum_j a_ij, and
    m_0 the positive part of a class map, or what lies above its mean if that is negative. Four
    times, beginning with m_0, m becomes 0.98 A m + 0.02 m_0. What every place has is background and
    is taken away: the result is max(m - min - 0.75 (mean - min), 0).

    Args:
        maps: (B, k, h, w), class maps.
        vectors: (B, S, h, w), of ``stage_vectors``.

    Returns:
        (B, k, h, w), float32, not negative. To float32 rounding, a constant map becomes zeros, and
        twice a map becomes twice the result.

    Example:
        >>> vectors = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]])  # two alike, one not
        >>> refined = refine_maps(torch.tensor([[[[4.0, 0.0, 0.0]]]]), vectors)
        >>> [round(value, 2) for value in refined.flatten().tolist()]
        [1.04, 0.96, 0.0]
    """
    at_once = max(1, _MOST_PAIRS // vectors.shape[2:].numel() ** 2)  # pictures
    if not torch.compiler.is_compiling() and len(maps) > at_once:
        parts = zip(torch.split(maps, at_once), torch.split(vectors, at_once), strict=True)
        return torch.cat([refine_maps(*part) for part in parts])
    flat = vectors.float().flatten(2)
    similarity = (flat.mT @ flat).clamp_min(0.0)  # (B, N, N) with N = h * w, symmetric
    affinity = similarity * similarity * similarity
    # Affinity is symmetric, so its columns have the sums of its rows.
    walk = affinity * ((1 - RESTART) / affinity.sum(1, keepdim=True).clamp_min(_SMALLEST))
    start = positive_maps(maps).flatten(2)  # (B, k, N)
    spread, again = start, RESTART * start
    for _ in range(STEPS):
        spread = torch.baddbmm(again, spread, walk)
    lowest = spread.amin(2, keepdim=True)
    background = torch.lerp(lowest, spread.mean(2, keepdim=True), FLOOR)
    return (spread - background).clamp_min(0.0).reshape(maps.shape)


def positive_maps(maps: Tensor) -> Tensor:
    """The positive part of class maps (B, k, h, w), float32; what is above a negative mean."""
    flat = maps.float().flatten(2)
    floor = flat.mean(2, keepdim=True).clamp_max(0.0)
    return (flat - floor).clamp_min(0.0).reshape(maps.shape)


def check_refine(refine: str) -> Refine:
    """The refinement itself; raise CamtrainValueError unless it is ``none`` or ``affinity``."""
    check_choice("refine", refine, get_args(Refine))
    return cast("Refine", refine)
