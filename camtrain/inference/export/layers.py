"""Layers that exporters cannot express for images of any size, and equal layers that they can.

timm's "same" padding (TensorFlow's) depends on the size of the image: with sizes that are symbols
every layer adds a nested expression, and exporters take minutes over them. For strides 1 and 2 one
end of the padding is the same for every size, so that no size needs to be asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camtrain.errors import CamtrainValueError
from camtrain.model.probe import Intercepted
from camtrain.model.stride import pair

# By name, since inference does not import timm.
_CONVOLUTIONS = ("Conv2dSame", "StdConv2dSame", "ScaledStdConv2dSame")
_POOLS = {"MaxPool2dSame": -torch.inf, "AvgPool2dSame": 0.0}

Network = TypeVar("Network", bound=nn.Module)


class AxisPadding(NamedTuple):
    """Pixels added at both ends of an axis, which may have to be mirrored before and after."""

    near: int
    far: int
    is_mirrored: bool


def same_padding(kernel: int, stride: int, dilation: int = 1) -> AxisPadding | None:
    """The padding along one axis that gives for every size what "same" padding gives.

    "Same" adds max(e - 1 - (n - 1) mod s, 0) pixels to an axis of n pixels, where e = d (k - 1) + 1
    is the extent of the kernel, the smaller half of them at the near end. For s = 2 that is e - 1
    pixels where n is odd and e - 2 where it is even. Of an even e the near end then has e / 2 - 1
    pixels either way; of an odd e it is the far end that has (e - 1) / 2 either way, so that end is
    made the near one by mirroring. One more pixel at the far end adds no window.

    Args:
        kernel: k, in pixels.
        stride: s, in pixels.
        dilation: d, in pixels.

    Returns:
        The padding, or None for a larger stride, for which no end is the same for every size.

    Example:
        >>> same_padding(3, 2)
        AxisPadding(near=1, far=1, is_mirrored=True)
        >>> same_padding(2, 2)
        AxisPadding(near=0, far=1, is_mirrored=False)
    """
    extent = dilation * (kernel - 1) + 1
    if stride == 1:
        return AxisPadding((extent - 1) // 2, extent // 2, False)
    if stride != 2:
        return None
    if extent % 2:
        return AxisPadding(extent // 2, extent // 2, extent > 1)
    return AxisPadding(extent // 2 - 1, extent // 2, False)


class SamePadded(nn.Module):
    """A layer behind "same" padding, for images of any size."""

    def __init__(
        self, layer: nn.Module, rows: AxisPadding, columns: AxisPadding, *, fill: float = 0.0
    ) -> None:
        """Take a layer without padding whose weights are mirrored along the mirrored axes."""
        super().__init__()
        self.layer = layer
        self.sides = [columns.near, columns.far, rows.near, rows.far]
        self.mirrored = [axis for axis, padding in ((2, rows), (3, columns)) if padding.is_mirrored]
        self.fill = fill

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C', ceil(h / stride), ceil(w / stride))."""
        if self.mirrored:
            features = features.flip(self.mirrored)
        features = self.layer(F.pad(features, self.sides, value=self.fill))
        return features.flip(self.mirrored) if self.mirrored else features


def with_exportable_layers(network: Network) -> Network:
    """A copy of a network in evaluation mode that computes the same with exportable layers.

    Its layers pad by constants, except those of a stride above 2. No layer works in place: in-place
    activations can take the exporter minutes.
    """
    network = copy.deepcopy(network).eval()
    for name, layer in list(network.named_modules(remove_duplicate=False)):
        replacement = _exportable(layer)
        if replacement is not None:
            network.set_submodule(name, replacement)
        if hasattr(layer, "inplace"):
            layer.inplace = False
    return network


def _exportable(layer: nn.Module) -> nn.Module | None:
    """The equal layer for images of any size; None where the layer needs no other."""
    kind = type(layer).__name__
    if kind in _CONVOLUTIONS and getattr(layer, "same_pad", True):
        assert isinstance(layer, nn.Conv2d)
        padding = _same_paddings(layer.kernel_size, layer.stride, layer.dilation)
        if padding is None:
            return None
        padded = SamePadded(nn.Identity(), *padding)
        padded.layer = _plain_convolution(layer, padded.mirrored)
        return padded
    if kind not in _POOLS:
        return None
    assert isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d))
    kernel, stride = pair(layer.kernel_size), pair(layer.stride)
    pool: nn.Module = nn.AvgPool2d(kernel, stride)  # added pixels count: windows are symmetric
    dilation = (1, 1)
    if isinstance(layer, nn.MaxPool2d):
        dilation = pair(layer.dilation)
        pool = nn.MaxPool2d(kernel, stride, dilation=dilation)
    padding = _same_paddings(kernel, stride, dilation)
    return None if padding is None else SamePadded(pool, *padding, fill=_POOLS[kind])


def _same_paddings(
    kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[AxisPadding, AxisPadding] | None:
    rows, columns = (same_padding(*axis) for axis in zip(kernel, stride, dilation, strict=True))
    return None if rows is None or columns is None else (rows, columns)


def _plain_convolution(layer: nn.Conv2d, mirrored: list[int]) -> nn.Conv2d:
    """A convolution without padding, by the weights that a layer computes with, mirrored."""
    used: list[tuple[Tensor, Tensor | None]] = []

    def record(
        func: Callable[..., object], args: tuple[Any, ...], options: dict[str, Any]
    ) -> object:
        """The result; weight and bias are recorded, since timm standardizes some on the way."""
        if func is F.conv2d:
            weight, bias = args[1:3]
            used.append((weight.detach().clone(), None if bias is None else bias.detach().clone()))
        return func(*args, **options)

    with torch.no_grad(), Intercepted(record):
        layer(layer.weight.new_zeros(1, layer.in_channels, *layer.kernel_size))
    if not used:
        raise CamtrainValueError(
            f"A layer {type(layer).__name__} cannot be exported, since it computes no convolution; "
            "export to safetensors instead."
        )
    weight, bias = used[-1]
    plain = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        pair(layer.kernel_size),
        stride=pair(layer.stride),
        dilation=pair(layer.dilation),
        groups=layer.groups,
        bias=bias is not None,
        device="meta",
    )
    plain.weight = nn.Parameter(weight.flip(mirrored) if mirrored else weight)
    if bias is not None:
        plain.bias = nn.Parameter(bias)
    return plain.requires_grad_(False)
