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

_VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions of each block
# 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; projection after pooling: table 1 of arXiv 1409.4842.
_INCEPTIONS = {
    "inception_3a": (64, 96, 128, 16, 32, 32),
    "inception_3b": (128, 128, 192, 32, 96, 64),
    "inception_4a": (192, 96, 208, 16, 48, 64),
    "inception_4b": (160, 112, 224, 24, 64, 64),
    "inception_4c": (128, 128, 256, 24, 64, 64),
    "inception_4d": (112, 144, 288, 32, 64, 64),
    "inception_4e": (256, 160, 320, 32, 128, 128),
}
# number, channels, kernel, padding, groups, first bias
_ALEXNET = (
    (1, 96, 11, 0, 1, 0.0),
    (2, 256, 5, 2, 2, 1.0),
    (3, 384, 3, 1, 1, 0.0),
    (4, 384, 3, 1, 2, 1.0),
    (5, 384, 3, 1, 2, 1.0),
)
_BRANCHES = (
    ("1x1", "relu_1x1"),
    ("3x3_reduce", "relu_3x3_reduce", "3x3", "relu_3x3"),
    ("5x5_reduce", "relu_5x5_reduce", "5x5", "relu_5x5"),
    ("pool", "pool_proj", "relu_pool_proj"),
)


def scale_channels(channels: int, width: float) -> int:
    """``channels`` of a network ``width`` times as wide as the authors', a multiple of 1/8.

    Example:
        >>> scale_channels(24, 0.125)
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
    """Give a layer its first values as a Caffe file asks for them, in place: all biases are equal.

    Weights are gaussian with the standard deviation ``std``. None stands for Caffe's "xavier":
    uniform with the variance 1 / fan-in.
    """
    weights, biases = layer.parameters()
    nn.init.constant_(biases, bias)
    if std is None:
        nn.init.kaiming_uniform_(weights, nonlinearity="linear")
    else:
        nn.init.normal_(weights, std=std)


def vgg16_trunk(*, in_chans: int = 3, width: float = 1.0) -> nn.Sequential:
    """VGG16 up to relu5_3, without pool5: (B, in_chans, H, W) to (B, 512 width, H/16, W/16).

    The authors began with trained weights. Here the first weights are random, as in He et al.
    (arXiv 1502.01852, equation 14).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_chans
    for block, (full_width, count) in enumerate(_VGG16, start=1):
        out = scale_channels(full_width, width)
        convs = conv_stack(channels, [out] * count, kernel=3)
        for conv in convs:
            if isinstance(conv, nn.Conv2d):
                fill(conv, bias=0.0, std=math.sqrt(2 / (9 * out)))
        layers[f"block{block}"], channels = convs, out
        if block < len(_VGG16):
            layers[f"pool{block}"] = _max_pool(2, stride=2)
    return nn.Sequential(layers)


def alexnet_plus_trunk(*, in_chans: int = 3, width: float = 1.0) -> nn.Sequential:
    """AlexNet+ up to pool5: (B, in_chans, H, W) to (B, 384 width, h, w), 11 x 11 of 227 x 227.

    As in CaffeNet, normalization comes after pooling; conv5 has 384 outputs, pool5 stride 1.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_chans
    for number, full_width, kernel, padding, groups, bias in _ALEXNET:
        out = scale_channels(full_width, width)
        stride = 4 if number == 1 else 1
        conv = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups)
        fill(conv, bias=bias, std=0.01)
        layers[f"conv{number}"] = conv
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        if number in (1, 2):
            layers[f"pool{number}"] = _max_pool(3, stride=2)
            layers[f"norm{number}"] = _response_norm()
        channels = out
    layers["pool5"] = _max_pool(3, stride=1)
    return nn.Sequential(layers)


def googlenet_trunk(*, in_chans: int = 3, width: float = 1.0) -> nn.Sequential:
    """GoogLeNet up to inception_4e, without pool4: (B, in_chans, H, W) to (B, 832 width, h, w)."""
    first, channels = scale_channels(64, width), scale_channels(192, width)
    blocks: dict[str, dict[str, nn.Module]] = {
        "conv1": {"7x7_s2": _conv(in_chans, first, 7, stride=2), "relu_7x7": nn.ReLU(inplace=True)},
        "pool1": {"3x3_s2": _max_pool(3, stride=2), "norm1": _response_norm()},
        "conv2": {
            "3x3_reduce": _conv(first, first, 1),
            "relu_3x3_reduce": nn.ReLU(inplace=True),
            "3x3": _conv(first, channels, 3),
            "relu_3x3": nn.ReLU(inplace=True),
            "norm2": _response_norm(),
        },
        "pool2": {"3x3_s2": _max_pool(3, stride=2)},
    }
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, block in blocks.items():
        layers[name] = nn.Sequential(OrderedDict(block))
    for name, outs in _INCEPTIONS.items():
        inception = Inception(channels, [scale_channels(out, width) for out in outs])
        layers[name], channels = inception, inception.out_channels
        if name == "inception_3b":
            layers["pool3"] = nn.Sequential(OrderedDict({"3x3_s2": _max_pool(3, stride=2)}))
    return nn.Sequential(layers)


class Inception(nn.Module):
    """Four branches side by side (Szegedy et al., arXiv 1409.4842, figure 2b).

    ``outs`` are the outputs of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and the projection of the
    pooled branch.
    """

    def __init__(self, in_channels: int, outs: Sequence[int]) -> None:
        super().__init__()
        out_1x1, reduce_3x3, out_3x3, reduce_5x5, out_5x5, out_pool = outs
        self.out_channels = out_1x1 + out_3x3 + out_5x5 + out_pool
        layers: dict[str, nn.Module] = {
            "1x1": _conv(in_channels, out_1x1, 1),
            "3x3_reduce": _conv(in_channels, reduce_3x3, 1),
            "3x3": _conv(reduce_3x3, out_3x3, 3),
            "5x5_reduce": _conv(in_channels, reduce_5x5, 1),
            "5x5": _conv(reduce_5x5, out_5x5, 5),
            "pool": _max_pool(3, stride=1, padding=1),
            "pool_proj": _conv(in_channels, out_pool, 1),
        }
        for branch in _BRANCHES:
            for name in branch:
                self.add_module(name, layers.get(name) or nn.ReLU(inplace=True))

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, out_channels, h, w)."""
        outputs = []
        for branch in _BRANCHES:
            output = features
            for name in branch:
                output = getattr(self, name)(output)
            outputs.append(output)
        return torch.cat(outputs, dim=1)


def _conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    """A convolution of GoogLeNet with its first values."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
    fill(conv, bias=0.2)
    return conv


def _max_pool(kernel: int, *, stride: int, padding: int = 0) -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel, stride, padding, ceil_mode=True)


def _response_norm() -> nn.LocalResponseNorm:
    """Over 5 channels: x / (k + alpha / 5 * sum x^2)^beta, in Caffe as in torch."""
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)


def digits_trunk(*, in_chans: int = 3, width: int = 32) -> nn.Sequential:
    """Four 3x3 convolutions, stride 4: (B, in_chans, H, W) to (B, 4 width, H/4, W/4).

    Each pixel of the map sees 26 x 26 pixels of the picture: about a digit of ``ClutteredDigits``,
    and more than its clutter. Max pooling, unlike strided convolutions, gives maps that cover the
    whole digit.
    """
    outs = (width, 2 * width, 3 * width, 4 * width)
    return conv_stack(in_chans, outs, kernel=3, has_norms=True, pool_after=(1, 2))


def lenet_trunk(*, in_chans: int = 3, width: float = 1.0) -> nn.Sequential:
    """The convolutions of a LeNet, stride 4: (B, in_chans, H, W) to (B, 500 width, H/4, W/4).

    20, 50 and 500 outputs as in Caffe's LeNet, whose fully connected layer of 500 becomes a
    convolution here. Borders are padded, so that maps cover the picture.
    """
    outs = [round(count * width) for count in (20, 50, 500)]
    return conv_stack(in_chans, outs, kernel=5, pool_after=(1, 2))


def mnist_trunk(*, in_chans: int = 3, width: float = 1.0) -> nn.Sequential:
    """Five 3x3 convolutions, stride 4: (B, in_chans, H, W) to (B, 256 width, H/4, W/4)."""
    outs = [round(count * width) for count in (16, 16, 16, 16, 256)]
    return conv_stack(in_chans, outs, kernel=3, pool_after=(2, 4))


def conv_stack(
    channels: int,
    outs: Sequence[int],
    *,
    kernel: int,
    groups: int = 1,
    has_norms: bool = False,
    pool_after: Sequence[int] = (),
) -> nn.Sequential:
    """Convolutions that keep the size of the map, each with a ReLU.

    Args:
        channels: Of the input.
        outs: Output channels of each convolution.
        kernel: Their kernel size, odd.
        groups: Their groups.
        has_norms: Whether each has BatchNorm instead of a bias.
        pool_after: Numbers of the convolutions, counted from 1, that 2x2 max pooling follows.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, out in enumerate(outs, start=1):
        layers[f"conv{number}"] = nn.Conv2d(
            channels, out, kernel, padding=kernel // 2, groups=groups, bias=not has_norms
        )
        if has_norms:
            layers[f"norm{number}"] = nn.BatchNorm2d(out)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        if number in pool_after:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        channels = out
    return nn.Sequential(layers)
