"""The small built-in trunk for 64 x 64 pictures."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def digits_trunk(*, in_chans: int = 3, width: int = 32) -> nn.Sequential:
    """Four 3x3 convolutions, stride 4: (B, in_chans, H, W) to (B, 4 width, H/4, W/4).

    Each pixel of the map sees 26 x 26 pixels of the picture: about a digit of ``ClutteredDigits``,
    and more than its clutter. Max pooling, unlike strided convolutions, gives maps that cover the
    whole digit.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_chans
    for number, (factor, is_pooled) in enumerate(
        ((1, True), (2, True), (3, False), (4, False)), start=1
    ):
        layers[f"conv{number}"] = nn.Conv2d(channels, factor * width, 3, padding=1, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm2d(factor * width)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        if is_pooled:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        channels = factor * width
    return nn.Sequential(layers)
