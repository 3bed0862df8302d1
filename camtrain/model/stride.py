"""A smaller stride from the same weights: strides become dilation (the atrous algorithm)."""

from __future__ import annotations

import math
from collections import Counter

from torch import Tensor, nn
from torch.nn import functional as F

from camtrain.errors import CamtrainValueError, first_line
from camtrain.model.probe import Layer, probe, probe_or_none

# Large enough that unpadded layers do not disturb the ratio of sizes.
PROBE_HW = (512, 512)


class DilatedAvgPool2d(nn.Module):
    """The averages of an ``nn.AvgPool2d`` at every pixel, over pixels ``spread`` apart.

    The result has the size of the input: windows that reach over the far border, which the
    ``nn.AvgPool2d`` leaves out or cuts short, average the pixels inside.
    """

    def __init__(self, pool: nn.AvgPool2d, spread: int) -> None:
        super().__init__()
        self.kernel = pair(pool.kernel_size)
        self.padding = _scale_pair(pair(pool.padding), spread)
        self.spread = spread
        self.counts_padding = pool.count_include_pad

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h, w)."""
        near_y, near_x = self.padding
        far_y, far_x = (
            self.spread * (side - 1) - near
            for side, near in zip(self.kernel, self.padding, strict=True)
        )
        inside = features.new_ones(1, 1, *features.shape[2:])
        border = 1.0 if self.counts_padding else 0.0
        inside = F.pad(inside, (near_x, near_x, near_y, near_y), value=border)
        inside = F.pad(inside, (0, far_x - near_x, 0, far_y - near_y))
        features = F.pad(features, (near_x, far_x, near_y, far_y))
        return self._sums(features) / self._sums(inside)

    def _sums(self, maps: Tensor) -> Tensor:
        window = maps.new_ones(maps.shape[1], 1, *self.kernel)
        return F.conv2d(maps, window, dilation=self.spread, groups=maps.shape[1])


def stride_of(backbone: nn.Module, in_chans: int) -> int:
    """Pixels of the image per pixel of the feature map."""
    return _stride_at(probe(backbone, in_chans, PROBE_HW).shape[-1])


def set_stride(backbone: nn.Module, stride: int, in_chans: int) -> None:
    """Give a backbone a smaller stride, in place; each weight sees the pixels it was trained for.

    A layer that would step beyond ``stride`` steps by one instead; the windows of the layers after
    it are dilated by the steps left out (Chen et al., DeepLab, arXiv 1606.00915, section 3.1).

    Raises:
        CamtrainValueError: ``stride`` is not 1, 2, 4, ... up to the backbone's own, or a layer
            cannot be dilated.
    """
    record = probe_or_none(backbone, in_chans, PROBE_HW)
    if record is None:
        raise CamtrainValueError(
            f"stride {stride} cannot be had: the backbone takes images of one size, so that it has "
            "one stride; leave stride out, or choose another backbone (see `camtrain models`)."
        )
    own_stride = _stride_at(record.shape[-1])
    possible = [2**i for i in range(int(math.log2(own_stride)) + 1)]
    if stride not in possible:
        raise CamtrainValueError(
            f"stride must be one of {', '.join(map(str, possible))} (the backbone's own is "
            f"{own_stride}), got {stride}."
        )
    calls = Counter(layer.name for layer in record.layers)
    for layer in record.layers:
        steps, spread = _steps_and_spread(layer, stride)
        has_window = isinstance(layer.module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))
        if layer.out_hw != (1, 1) and (steps or (spread > 1 and has_window)):
            if calls[layer.name] > 1:
                raise _refusal(stride, layer, "is used more than once, at different strides")
            _remove_steps(backbone, layer, stride)
    try:
        new_stride = stride_of(backbone, in_chans)
    except RuntimeError as error:  # the sizes of branches that are added or joined differ
        raise CamtrainValueError(
            f"stride {stride} cannot be had: the branches of the backbone no longer fit together "
            f"({first_line(error)}); choose stride {own_stride} or an earlier cut."
        ) from error
    if new_stride != stride:
        raise CamtrainValueError(
            f"stride {stride} cannot be had: the backbone steps inside an operation that is not a "
            f"layer, so {new_stride} is what remains; choose stride {own_stride} or an earlier cut."
        )


def _remove_steps(backbone: nn.Module, layer: Layer, stride: int) -> None:
    """Change a layer in place: it steps by one, and looks at pixels that are further apart."""
    module, (steps, spread) = layer.module, _steps_and_spread(layer, stride)
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
        if steps:
            module.stride = (1, 1)
        module.dilation = _scale_pair(module.dilation, spread)
        if not isinstance(module.padding, str):
            module.padding = _scale_pair(module.padding, spread)
    elif type(module) is nn.MaxPool2d:  # timm's heirs pad by themselves
        backbone.set_submodule(layer.name, _dilated_max_pool(module, spread))
    elif type(module) is nn.AvgPool2d:
        backbone.set_submodule(layer.name, DilatedAvgPool2d(module, spread))
    else:
        raise _refusal(stride, layer, "can neither lose its stride nor be dilated")


def _dilated_max_pool(pool: nn.MaxPool2d, spread: int) -> nn.Sequential:
    """The same windows at every pixel, padded by a layer: a MaxPool2d pads half its kernel at most.

    Rounding the size up (``ceil_mode``) is what stride - 1 more pixels on the far side do, except
    that no window starts in them.
    """
    kernel, padding, steps = pair(pool.kernel_size), pair(pool.padding), pair(pool.stride)
    dilation = _scale_pair(pair(pool.dilation), spread)
    sides: list[int] = []  # left, right, top, bottom
    for axis in (1, 0):
        near = far = spread * padding[axis]
        if pool.ceil_mode:
            far = min(far + spread * (steps[axis] - 1), dilation[axis] * (kernel[axis] - 1))
        sides += [near, far]
    left, right, top, bottom = sides
    return nn.Sequential(
        nn.ConstantPad2d((left, right, top, bottom), -math.inf),
        nn.MaxPool2d(kernel, stride=1, dilation=dilation),
    )


def _steps_and_spread(layer: Layer, stride: int) -> tuple[bool, int]:
    """Whether a layer steps beyond ``stride``, and how far apart the pixels it sees then lie."""
    before, after = _stride_at(layer.in_hw[1]), _stride_at(layer.out_hw[1])
    # Where only the last axis changes, it holds channels.
    has_stepped = after > before and layer.out_hw[0] < layer.in_hw[0]
    return has_stepped and after > stride, max(1, before // stride)


def _refusal(stride: int, layer: Layer, reason: str) -> CamtrainValueError:
    return CamtrainValueError(
        f"stride {stride} cannot be had: layer {layer.name} ({type(layer.module).__name__}) "
        f"{reason}; choose a larger stride or an earlier cut."
    )


def _stride_at(width: int) -> int:
    """The power of two nearest to the stride of a map with this width, of images of PROBE_HW."""
    return int(2 ** round(math.log2(PROBE_HW[1] / width)))


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a layer's setting, which one number may stand for."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _scale_pair(value: tuple[int, ...], factor: int) -> tuple[int, int]:
    return factor * value[0], factor * value[1]
