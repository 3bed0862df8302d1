"""Larger maps from the same weights: strides become dilation (the atrous algorithm)."""

from __future__ import annotations

import math

from torch import nn

from camtrain.errors import CamtrainValueError
from camtrain.model.cut import Layer, probe

# Large enough that unpadded layers do not disturb the ratio of sizes; the meta device computes
# nothing.
PROBE_HW = (512, 512)


def stride_of(backbone: nn.Module, in_chans: int) -> int:
    """Pixels of the image per pixel of the feature map."""
    shape = probe(backbone, in_chans, PROBE_HW).shape
    return _ratio(shape[-1])


def set_stride(backbone: nn.Module, stride: int, in_chans: int) -> None:
    """Give a backbone a smaller stride, in place; each weight keeps the pixels it was trained for.

    A layer that would step beyond ``stride`` steps by one instead; the layers after it look as many
    pixels apart as were skipped before (Chen et al., DeepLab, arXiv 1606.00915, section 3.1).

    Raises:
        CamtrainValueError: ``stride`` is not 1, 2, 4, ... up to the backbone's own, or a layer
            cannot be dilated.
    """
    found = probe(backbone, in_chans, PROBE_HW)
    own = _ratio(found.shape[-1])
    possible = [2**i for i in range(int(math.log2(own)) + 1)]
    if stride not in possible:
        raise CamtrainValueError(
            f"stride must be one of {', '.join(map(str, possible))} (the backbone's own is {own}), "
            f"got {stride}."
        )
    for layer in found.layers:
        _slow_down(layer, stride)
    reached = stride_of(backbone, in_chans)
    if reached != stride:
        raise CamtrainValueError(
            f"stride {stride} cannot be had: the backbone steps inside an operation that is not a "
            "layer, "
            f"so {reached} is what remains; choose stride {own} or an earlier cut."
        )


def _slow_down(layer: Layer, stride: int) -> None:
    module = layer.module
    before, after = _ratio(layer.in_hw[1]), _ratio(layer.out_hw[1])
    spread = max(1, before // stride)
    steps = after > before and after > stride
    if layer.out_hw == (1, 1) or not (steps or spread > 1):
        return
    if not isinstance(module, (nn.Conv2d, nn.MaxPool2d)) and not (
        isinstance(module, nn.AvgPool2d) and spread == 1
    ):
        if steps or isinstance(module, nn.AvgPool2d):
            raise CamtrainValueError(
                f"stride {stride} cannot be had: layer {layer.name} ({type(module).__name__}) can "
                "neither lose "
                "its stride nor be dilated; choose a larger stride or an earlier cut."
            )
        return
    if steps:
        module.stride = _like(module.stride, 1)
    if spread > 1 and not isinstance(module, nn.AvgPool2d):
        module.dilation = _times(module.dilation, spread)
        if not isinstance(module.padding, str):
            module.padding = _times(module.padding, spread)


def _ratio(side: int) -> int:
    return int(2 ** round(math.log2(PROBE_HW[1] / side)))


def _like(value: int | tuple[int, ...], number: int) -> int | tuple[int, ...]:
    return (number,) * len(value) if isinstance(value, tuple) else number


def _times(value: int | tuple[int, ...], factor: int) -> int | tuple[int, ...]:
    return tuple(factor * v for v in value) if isinstance(value, tuple) else factor * value
