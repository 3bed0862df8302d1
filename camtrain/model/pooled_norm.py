"""A norm between the average and the linear layer, moved before the average."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

NormKind = Literal["layer", "rms"]


def normalized(vectors: Tensor, by: Tensor, kind: NormKind, eps: float) -> Tensor:
    """``vectors`` as the norm of ``by`` scales and shifts them, before gain and bias.

    Args:
        vectors: (B, C, ...).
        by: (B, C); mean and variance, or the mean square, are taken over its channels.
        kind: ``layer``: (v - mean) / sqrt(var + eps), Ba et al., arXiv 1607.06450, equation 4.
            ``rms``: v / sqrt(mean square + eps), Zhang and Sennrich, arXiv 1910.07467, equation 4.
        eps: Added to the square before the root.

    Returns:
        The shape of ``vectors``.

    Example:
        >>> vector = torch.tensor([[1.0, 3.0]])
        >>> normalized(vector, vector, "layer", 0.0).tolist()
        [[-1.0, 1.0]]
    """
    mean = by.mean(1) if kind == "layer" else by.new_zeros(len(by))
    square = (by - mean[:, None]).square().mean(1)
    shape = (-1, *[1] * (vectors.ndim - 1))
    return (vectors - mean.view(shape)) * torch.rsqrt(square + eps).view(shape)


class PooledNorm(nn.Module):
    """Features normalized by the mean and the variance of their own average over space.

    Heads with a norm after the pooling (ConvNeXt and Swin in timm) normalize the pooled vector over
    its channels. For one image that is an affine map with constants, so it may be applied to every
    pixel before the average: the class maps of what comes out average to the logits exactly. Gain
    and bias of the norm are folded into the head.
    """

    def __init__(self, kind: NormKind, eps: float) -> None:
        """Remember which norm; see ``normalized``."""
        super().__init__()
        self.kind: NormKind = kind
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h, w), float32."""
        features = features.float()
        return normalized(features, features.mean((-2, -1)), self.kind, self.eps)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.kind}, eps={self.eps}"
