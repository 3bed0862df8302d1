"""The small built-in trunks: for drawn digits, for MNIST, and LeNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn


class _Stage(NamedTuple):
    channels: int
    kernel: int = 3
    is_pooled: bool = False


def digits_trunk(*, in_chans: int = 3, width: int = 32) -> nn.Sequential:
    """Four 3x3 convolutions, stride 4: (B, in_chans, H, W) to (B, 4 width, H/4, W/4).

    Each pixel of the map sees 26 x 26 pixels of the picture: about a digit of ``ClutteredDigits``,
    and more than its clutter. Max pooling, unlike strided convolutions, gives maps that cover the
    whole digit.
    """
    stages = (
        _Stage(width, is_pooled=True),
        _Stage(2 * width, is_pooled=True),
        _Stage(3 * width),
        _Stage(4 * width),
    )
    return _stack(stages, in_chans, has_norms=True)


def lenet_trunk(*, in_chans: int = 3, width: float = 1.0) -> nn.Sequential:
    """The convolutions of a LeNet, stride 4: (B, in_chans, H, W) to (B, 500 width, H/4, W/4).

    20, 50 and 500 outputs as in Caffe's LeNet, whose fully connected layer of 500 becomes a
    convolution here. Borders are padded, so that maps cover the picture.
    """
    channels = (round(count * width) for count in (20, 50, 500))
    first, second, third = channels
    stages = (_Stage(first, 5, is_pooled=True), _Stage(second, 5, is_pooled=True), _Stage(third, 5))
    return _stack(stages, in_chans, has_norms=False)


def mnist_trunk(*, in_chans: int = 3, width: float = 1.0) -> nn.Sequential:
    """Five 3x3 convolutions, stride 4: (B, in_chans, H, W) to (B, 256 width, H/4, W/4)."""
    small, large = round(16 * width), round(256 * width)
    stages = (
        _Stage(small),
        _Stage(small, is_pooled=True),
        _Stage(small),
        _Stage(small, is_pooled=True),
        _Stage(large),
    )
    return _stack(stages, in_chans, has_norms=False)


def _stack(stages: Sequence[_Stage], in_chans: int, *, has_norms: bool) -> nn.Sequential:
    """Convolutions with ReLU, with BatchNorm (instead of a bias) and 2x2 max pooling if asked."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_chans
    for number, stage in enumerate(stages, start=1):
        layers[f"conv{number}"] = nn.Conv2d(
            channels, stage.channels, stage.kernel, padding=stage.kernel // 2, bias=not has_norms
        )
        if has_norms:
            layers[f"norm{number}"] = nn.BatchNorm2d(stage.channels)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        if stage.is_pooled:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        channels = stage.channels
    return nn.Sequential(layers)
