"""The built-in trunks: the paper's networks, layer for layer, and small ones for digits.

Max pools of the paper's networks round their size up, as all of Caffe's do.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from camtrain.errors import CamtrainValueError

# 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; projection of the pooled: table 1 of arXiv 1409.4842.
_INCEPTIONS = {
    "inception_3a": (64, 96, 128, 16, 32, 32),
    "inception_3b": (128, 128, 192, 32, 96, 64),
    "inception_4a": (192, 96, 208, 16, 48, 64),
    "inception_4b": (160, 112, 224, 24, 64, 64),
    "inception_4c": (128, 128, 256, 24, 64, 64),
    "inception_4d": (112, 144, 288, 32, 64, 64),
    "inception_4e": (256, 160, 320, 32, 128, 128),
}
# name, channels, kernel, padding, groups, first bias
_ALEXNET = (
    ("1", 96, 11, 0, 1, 0.0),
    ("2", 256, 5, 2, 2, 1.0),
    ("3", 384, 3, 1, 1, 0.0),
    ("4", 384, 3, 1, 2, 1.0),
    ("5", 384, 3, 1, 2, 1.0),
)
_BRANCHES = (
    ("1x1", "relu_1x1"),
    ("3x3_reduce", "relu_3x3_reduce", "3x3", "relu_3x3"),
    ("5x5_reduce", "relu_5x5_reduce", "5x5", "relu_5x5"),
    ("pool", "pool_proj", "relu_pool_proj"),
)


def scaled(channels: int, width: float) -> int:
    """``channels`` of a network ``width`` times as wide as the authors'.

    Raises:
        CamtrainValueError: ``width`` is no positive multiple of 1/8: the counts would not be whole.

    Example:
        >>> scaled(24, 0.125)
        3
    """
    is_number = isinstance(width, (int, float)) and not isinstance(width, bool)
    if not is_number or not 0 < width < math.inf or (8 * width) % 1:
        raise CamtrainValueError(
            f"width must be a multiple of 0.125 above 0, such as 0.25 or 1, got {width!r}."
        )
    return int(channels * width)


def caffe_name(path: str) -> str:
    """The name that the authors gave to a layer of a trunk.

    Example:
        >>> caffe_name("conv2.3x3_reduce"), caffe_name("block4.conv3"), caffe_name("pool5")
        ('conv2/3x3_reduce', 'conv4_3', 'pool5')
    """
    # Not conv4_3 itself: torchvision's tracer takes a number after "_" for its own and counts anew.
    return re.sub(r"block(\d)\.(\w+)(\d)", r"\2\1_\3", path).replace(".", "/")


def fill(layer: nn.Conv2d | nn.Linear, *, bias: float, std: float | None = None) -> None:
    """First values as a Caffe file asks for them: one bias, gaussian or "xavier" weights.

    Args:
        layer: With a bias; changed in place.
        bias: Of every output.
        std: Of the gaussian; None for Caffe's "xavier", uniform with the variance 1 / fan-in.
    """
    weights, biases = layer.parameters()
    nn.init.constant_(biases, bias)
    if std is None:
        nn.init.kaiming_uniform_(weights, nonlinearity="linear")
    else:
        nn.init.normal_(weights, std=std)


def vgg16_trunk(*, in_chans: int = 3, width: float = 1.0) -> nn.Sequential:
    """VGG16 up to relu5_3, without pool5: (B, in_chans, H, W) to (B, 512 width, H/16, W/16).

    The authors began from trained weights; without any, those of He et al. (arXiv 1502.01852,
    equation 14) begin.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    blocks = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    channels = in_chans
    for block, (channels_at_full_width, count) in enumerate(blocks, start=1):
        out = scaled(channels_at_full_width, width)
        inside: dict[str, nn.Module] = {}
        for number in range(1, count + 1):
            conv = nn.Conv2d(channels, out, 3, padding=1)
            fill(conv, bias=0.0, std=math.sqrt(2 / (9 * out)))
            inside[f"conv{number}"] = conv
            inside[f"relu{number}"] = nn.ReLU(inplace=True)
            channels = out
        layers[f"block{block}"] = _named(inside)
        if block < len(blocks):
            layers[f"pool{block}"] = _max_pool(2, stride=2)
    return nn.Sequential(layers)


def alexnet_plus_trunk(*, in_chans: int = 3, width: float = 1.0) -> nn.Sequential:
    """AlexNet+ up to pool5: (B, in_chans, H, W) to (B, 384 width, h, w), 11 x 11 of 227 x 227.

    CaffeNet's order (normalization after pooling), 384 outputs of conv5, pool5 at every pixel.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_chans
    for number, channels_at_full_width, kernel, padding, groups, bias in _ALEXNET:
        out = scaled(channels_at_full_width, width)
        stride = 4 if number == "1" else 1
        conv = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups)
        fill(conv, bias=bias, std=0.01)
        layers[f"conv{number}"] = conv
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        if number in ("1", "2"):
            layers[f"pool{number}"] = _max_pool(3, stride=2)
            layers[f"norm{number}"] = _response_norm()
        channels = out
    layers["pool5"] = _max_pool(3, stride=1)
    return nn.Sequential(layers)


def googlenet_trunk(*, in_chans: int = 3, width: float = 1.0) -> nn.Sequential:
    """GoogLeNet up to inception_4e, without pool4: (B, in_chans, H, W) to (B, 832 width, h, w)."""
    first, second = scaled(64, width), scaled(192, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = _named(
        {"7x7_s2": _conv(in_chans, first, 7, stride=2), "relu_7x7": nn.ReLU(inplace=True)}
    )
    layers["pool1"] = _named({"3x3_s2": _max_pool(3, stride=2), "norm1": _response_norm()})
    layers["conv2"] = _named(
        {
            "3x3_reduce": _conv(first, first, 1),
            "relu_3x3_reduce": nn.ReLU(inplace=True),
            "3x3": _conv(first, second, 3),
            "relu_3x3": nn.ReLU(inplace=True),
            "norm2": _response_norm(),
        }
    )
    layers["pool2"] = _named({"3x3_s2": _max_pool(3, stride=2)})
    channels = second
    for name, outs in _INCEPTIONS.items():
        block = Inception(channels, [scaled(out, width) for out in outs])
        layers[name], channels = block, block.out_channels
        if name == "inception_3b":
            layers["pool3"] = _named({"3x3_s2": _max_pool(3, stride=2)})
    return nn.Sequential(layers)


class Inception(nn.Module):
    """Four branches side by side (Szegedy et al., arXiv 1409.4842, figure 2b).

    Args:
        in_channels: Of the features that every branch begins with.
        outs: Outputs of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and the pooled branch's projection.
    """

    def __init__(self, in_channels: int, outs: Sequence[int]) -> None:
        super().__init__()
        out_1x1, reduce_3x3, out_3x3, reduce_5x5, out_5x5, projected = outs
        self.out_channels = out_1x1 + out_3x3 + out_5x5 + projected
        layers: dict[str, nn.Module] = {
            "1x1": _conv(in_channels, out_1x1, 1),
            "3x3_reduce": _conv(in_channels, reduce_3x3, 1),
            "3x3": _conv(reduce_3x3, out_3x3, 3),
            "5x5_reduce": _conv(in_channels, reduce_5x5, 1),
            "5x5": _conv(reduce_5x5, out_5x5, 5),
            "pool": _max_pool(3, stride=1, padding=1),
            "pool_proj": _conv(in_channels, projected, 1),
        }
        for branch in _BRANCHES:
            for name in branch:
                self.add_module(name, layers.get(name) or nn.ReLU(inplace=True))

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, out_channels, h, w)."""
        joined = []
        for branch in _BRANCHES:
            branched = features
            for name in branch:
                branched = getattr(self, name)(branched)
            joined.append(branched)
        return torch.cat(joined, dim=1)


def _conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    """A convolution of GoogLeNet."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
    fill(conv, bias=0.2)
    return conv


def _max_pool(kernel: int, *, stride: int, padding: int = 0) -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel, stride, padding, ceil_mode=True)


def _response_norm() -> nn.LocalResponseNorm:
    """Over 5 channels: x / (k + alpha / 5 * sum x^2)^beta, in Caffe as in torch."""
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)


def _named(layers: dict[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def digits_trunk(*, in_chans: int = 3, width: int = 32) -> nn.Sequential:
    """Four 3x3 convolutions, stride 4: (B, in_chans, H, W) to (B, 4 width, H/4, W/4).

    Each pixel of the map sees 26 x 26 pixels of the picture: about a digit of ``ClutteredDigits``,
    and more than its clutter. Max pooling, unlike strided convolutions, gives maps that cover the
    whole digit.
    """
    outs = (width, 2 * width, 3 * width, 4 * width)
    return _stack(in_chans, outs, kernel=3, pooled=(1, 2), has_norms=True)


def lenet_trunk(*, in_chans: int = 3, width: float = 1.0) -> nn.Sequential:
    """The convolutions of a LeNet, stride 4: (B, in_chans, H, W) to (B, 500 width, H/4, W/4).

    20, 50 and 500 outputs as in Caffe's LeNet, whose fully connected layer of 500 becomes a
    convolution here. Borders are padded, so that maps cover the picture.
    """
    outs = [round(count * width) for count in (20, 50, 500)]
    return _stack(in_chans, outs, kernel=5, pooled=(1, 2))


def mnist_trunk(*, in_chans: int = 3, width: float = 1.0) -> nn.Sequential:
    """Five 3x3 convolutions, stride 4: (B, in_chans, H, W) to (B, 256 width, H/4, W/4)."""
    outs = [round(count * width) for count in (16, 16, 16, 16, 256)]
    return _stack(in_chans, outs, kernel=3, pooled=(2, 4))


def _stack(
    in_chans: int,
    outs: Sequence[int],
    *,
    kernel: int,
    pooled: Sequence[int],
    has_norms: bool = False,
) -> nn.Sequential:
    """Convolutions with ReLU, with BatchNorm instead of a bias if asked.

    2x2 max pooling comes after the convolutions whose numbers, counted from 1, are in ``pooled``.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_chans
    for number, out in enumerate(outs, start=1):
        layers[f"conv{number}"] = nn.Conv2d(
            channels, out, kernel, padding=kernel // 2, bias=not has_norms
        )
        if has_norms:
            layers[f"norm{number}"] = nn.BatchNorm2d(out)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        if number in pooled:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        channels = out
    return nn.Sequential(layers)
