"""The foreground head: where a picture shows a thing, whatever its class.

It is learned from image labels alone: the classifier must recognize the class in the foreground and
must not find it in the rest, as in ORNet (Xie et al., ICCV 2021, arXiv 2110.05741) and BAS (Wu et
al., CVPR 2022, arXiv 2112.00580). Both decode the features; here one linear layer reads the few
hundred numbers by which affinity refinement compares places, so that little can be overfitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camtrain.errors import CamtrainValueError
from camtrain.maps import PoolName, pool_parts, project
from camtrain.model.refine import hashed_channels

if TYPE_CHECKING:
    from camtrain.model.camnet import CAMNet


class ForegroundHead(nn.Module):
    """A 1x1 convolution to one channel, BatchNorm and a sigmoid.

    Args:
        channels: Of the stages whose ``stage_vectors`` it reads.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(sum(map(hashed_channels, channels)), 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def of_other(self, channels: Sequence[int]) -> ForegroundHead:
        """A new head for other stages.

        Raises:
            CamtrainValueError: This one has been trained already.
        """
        weight, count = self.conv.weight, self.norm.num_batches_tracked
        if count is not None and not count.is_meta and int(count) > 0:
            raise CamtrainValueError(
                "refine_layers comes too late: the foreground head was trained on other layers; "
                "leave it out, or train a new head."
            )
        return ForegroundHead(channels).train(self.training).to(weight.device, weight.dtype)

    def __call__(self, vectors: Tensor) -> Tensor:
        """See ``forward``."""
        foreground: Tensor = super().__call__(vectors)
        return foreground

    def forward(self, vectors: Tensor) -> Tensor:
        """Foreground m (B, 1, h, w), in (0, 1), float32, of vectors (B, S, h, w)."""
        vectors = vectors.to(self.conv.weight.dtype)  # of a network that was cast as a whole
        foreground: Tensor = self.norm(self.conv(vectors))
        return foreground.float().sigmoid()


class PartLogits(NamedTuple):
    """What a classifier says of a picture and of its parts: logits (B, K) each."""

    whole: Tensor
    foreground: Tensor
    background: Tensor  # without a gradient for the classifier's weights


def part_logits(net: CAMNet, features: Tensor, foreground: Tensor) -> PartLogits:
    """The logits of all places, of the foreground and of the background; float32, autocast off.

    Args:
        net: Its pool is ``avg`` or ``lse``.
        features: (B, C, h, w), of the neck.
        foreground: m, (B, 1, h, w): the weights of places in it; 1 - m in the background.
    """
    features, weight, bias = features.float(), net.head.weight.float(), net.head.bias.float()
    parts = torch.cat((torch.ones_like(foreground), foreground, 1 - foreground), 1)
    if net.pool == "avg":  # the mean commutes with the head
        pooled = net.dropout(pool_parts(features, parts, "avg"))  # (B, 3, C)
        logits = F.linear(pooled[:, :2], weight, bias)
        background = F.linear(pooled[:, 2], weight.detach(), bias.detach())
    else:
        features = net.dropout(features)
        logits = pool_parts(project(features, weight), parts[:, :2], net.pool) + bias
        maps = project(features, weight.detach())
        background = pool_parts(maps, parts[:, 2:], net.pool)[:, 0] + bias.detach()
    return PartLogits(logits[:, 0], logits[:, 1], background)


def check_pool(pool: PoolName) -> None:
    """Raise CamtrainValueError unless the pool is an average, which parts of a picture have too."""
    if pool not in ("avg", "lse"):
        raise CamtrainValueError(
            f"foreground is learned from averages of places, which pool={pool} has not; choose avg "
            "or lse, or leave foreground out."
        )
