"""The small built-in trunk for 64 x 64 pictures."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def digits_trunk(*, in_chans: int = 3, width: int = 32) -> nn.Sequential:
    """Four 3x3 convolutions, stride 4: (B, in_chans, H, W) to (B, 4 width, H/4, W/4).

    Each map pixel sees 30 x 30 pixels of the picture: as much as a digit of ``ClutteredDigits``, so
    that a pixel can tell a digit from the clutter, which is smaller.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_chans
    for number, (out, stride) in enumerate(((1, 1), (2, 2), (4, 2), (4, 1)), start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, out * width, 3, stride, padding=1, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm2d(out * width)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        channels = out * width
    return nn.Sequential(layers)
