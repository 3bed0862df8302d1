"""From features to class maps, and from class maps to heatmaps of a picture.

No other module divides by the range of a map.

Source: Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016 (arXiv
    1512.04150), section 2.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from camtrain.errors import CamtrainTypeError, CamtrainValueError, check_choice
from camtrain.preprocessing import Preprocessing

PoolName = Literal["avg", "max", "lse", "gmp"]
HeatmapMethod = Literal["minmax", "max", "ivr"]

LSE_SHARPNESS = 4.0
IVR_PERCENTILE = 0.45
SIDE = 224  # of the score maps of the WSOL benchmark, in pixels
ROUNDING = 8 * torch.finfo(torch.float32).eps
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class CAMOutput(NamedTuple):
    """What a CAM network says and where it looks.

    Attributes:
        logits: (B, K), every class.
        maps: (B, k, h, w), the class maps of ``classes``: signed, unnormalized, without the bias.
        classes: (B, k), int64.
    """

    logits: Tensor
    maps: Tensor
    classes: Tensor


def project(features: Tensor, weight: Tensor) -> Tensor:
    """Class maps of every class: M_k(y, x) = sum_c w_kc f_c(y, x), equation 2 of the paper.

    Args:
        features: (B, C, h, w).
        weight: (K, C), of the linear head.

    Returns:
        (B, K, h, w).

    Example:
        >>> features = torch.tensor([[[[1.0, 2.0, 3.0]], [[0.0, 1.0, 0.0]]]])  # (1, 2, 1, 3)
        >>> project(features, torch.tensor([[1.0, -2.0]])).tolist()
        [[[[1.0, 0.0, 3.0]]]]
    """
    return F.conv2d(features, weight[:, :, None, None])


def project_classes(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """Class maps of chosen classes only, which costs k / K of ``project``.

    Args:
        features: (B, C, h, w).
        weight: (K, C), of the linear head.
        classes: (B, k), int64.

    Returns:
        (B, k, h, w).
    """
    maps = weight[classes] @ features.flatten(2)  # (B, k, C) @ (B, C, h * w)
    return maps.reshape(*classes.shape, *features.shape[2:])


def pool_maps(maps: Tensor, pool: PoolName) -> Tensor:
    """One number per map: what the head's bias is added to.

    Args:
        maps: (B, k, h, w), class maps; features for ``gmp``, whose maximum the paper's GMP takes
            before the head.
        pool: ``avg``, the mean (the paper's GAP); ``max`` and ``gmp``, the maximum; ``lse``,
            log(mean(exp(r m))) / r with r = 4 (Pinheiro and Collobert, arXiv 1411.6228, equation
            6).

    Returns:
        (B, k).

    Example:
        >>> maps = torch.tensor([[[[0.0, 1.0]]]])
        >>> [round(pool_maps(maps, pool).item(), 4) for pool in ("avg", "max", "lse")]
        [0.5, 1.0, 0.8313]
    """
    if pool == "avg":
        return maps.mean((-2, -1))
    if pool == "lse":
        if torch.compiler.is_exporting():  # math.log would fix the size of the map in the graph
            scaled = LSE_SHARPNESS * maps
            peak = scaled.amax((-2, -1), keepdim=True)
            mean = (scaled - peak).exp().mean((-2, -1))
            return (mean.log() + peak[:, :, 0, 0]) / LSE_SHARPNESS
        total = torch.logsumexp(LSE_SHARPNESS * maps, (-2, -1))
        return (total - math.log(maps.shape[-2] * maps.shape[-1])) / LSE_SHARPNESS
    return maps.amax((-2, -1))


def heatmaps(maps: Tensor, *, size: tuple[int, int], method: HeatmapMethod = "minmax") -> Tensor:
    """Class maps as people look at them: upsampled to the picture, normalized to [0, 1] one by one.

    Args:
        maps: (B, k, h, w), class maps.
        size: (H, W) of the picture, in pixels; bilinear with ``align_corners=False``.
        method: ``minmax``: (m - min) / (max - min). ``max``: max(m, 0) / max. ``ivr``: subtract the
            percentile 0.45, then as ``max`` (Kim et al., ICCV 2021, arXiv 2104.02888, section 3).

    Returns:
        (B, k, H, W), float32. A map that is constant, or holds NaN or infinity, becomes zeros.

    Raises:
        CamtrainValueError: ``maps`` is not 4-D, or ``method`` is unknown.

    Example:
        >>> heatmaps(torch.tensor([[[[-1.0, 0.0, 3.0]]]]), size=(1, 3)).tolist()
        [[[[0.0, 0.25, 1.0]]]]
    """
    if maps.ndim != 4:
        raise CamtrainValueError(
            f"maps must have the shape (B, k, h, w), got {tuple(maps.shape)}; add the missing axes "
            "with maps[None]."
        )
    check_choice("method", method, get_args(HeatmapMethod))
    maps = maps.float()
    heat = F.interpolate(
        torch.where(has_range(maps), maps, 0.0), size=size, mode="bilinear", align_corners=False
    )
    # Few passes over the pixels: rounding is monotone, so the maximum needs no second look.
    peak = heat.amax((-2, -1), keepdim=True)
    if method == "max":
        heat = heat.clamp_min(0.0)
    else:
        is_ivr = method == "ivr"
        floor = _percentile(heat, IVR_PERCENTILE) if is_ivr else heat.amin((-2, -1), keepdim=True)
        heat, peak = heat - floor, peak - floor
        heat = heat.clamp_min(0.0) if is_ivr else heat
    return heat / torch.where(peak > _rounding(maps), peak, torch.inf)


def has_range(maps: Tensor) -> Tensor:
    """Whether maps (..., h, w) have a heatmap, (..., 1, 1) bool.

    False where a map is constant to rounding, which must not be blown up to a heatmap, and where it
    holds NaN or infinity.
    """
    lowest, highest = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return highest - lowest > _rounding(maps)


def _rounding(maps: Tensor) -> Tensor:
    return ROUNDING * maps.abs().amax((-2, -1), keepdim=True)


def _percentile(heat: Tensor, q: float) -> Tensor:
    """The q-quantile of each map, (B, k, 1, 1); torch.quantile limits the size of its input."""
    ordered = heat.flatten(2).sort(dim=2).values
    place = q * (ordered.shape[2] - 1)
    lower, upper = ordered[:, :, math.floor(place)], ordered[:, :, math.ceil(place)]
    return torch.lerp(lower, upper, place - math.floor(place))[:, :, None, None]


def whole_picture_maps(
    maps: Tensor, preprocessing: Preprocessing, image_hw: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """``maps_on_picture`` of class maps whose smallest value is moved to 0, float32.

    So a border that was cropped away, which the network did not see, is as low as the lowest place.
    """
    lowest = maps.flatten(1).min(1).values[:, None, None]
    return maps_on_picture((maps - lowest).float(), preprocessing, image_hw, size)


def picture_heatmaps(
    maps: Tensor,
    preprocessing: Preprocessing,
    image_hw: tuple[int, int],
    *,
    method: HeatmapMethod = "minmax",
) -> Tensor:
    """Heatmaps at the size of the original picture, (k, H, W), float32 in [0, 1].

    Each is normalized over the part of the picture that the network saw; a border that was cropped
    away is 0.

    Args:
        maps: (k, h, w), class maps that cover the network's input.
        preprocessing: How the picture became the input.
        image_hw: (H, W) of the original picture.
        method: See ``camtrain.heatmaps``.
    """
    if preprocessing.resize_mode == "squash":
        heat = torch.empty(len(maps), *image_hw, device=maps.device)
        _normalize(maps, heat, method)
        return heat
    maps = maps.float()
    # A constant map has to stay constant, without the rounding of the move; NaN must not spread.
    maps = torch.where(has_range(maps), maps, 0.0)
    ones = torch.ones_like(maps[:1])
    is_inside = maps_on_picture(ones, preprocessing, image_hw, image_hw)[0] > 0
    moved = maps_on_picture(maps, preprocessing, image_hw, image_hw)
    inside = moved[:, _span(is_inside.any(1)), _span(is_inside.any(0))]  # a view
    if inside.numel():  # less than a pixel may be left of a sliver
        _normalize(inside, inside, method)
    return moved


def _normalize(maps: Tensor, heat: Tensor, method: HeatmapMethod) -> None:
    """Fill (k, H, W) with heatmaps of (k, h, w), one by one, for the processor's cache."""
    size = (heat.shape[1], heat.shape[2])
    for class_map, heatmap in zip(maps, heat, strict=True):
        heatmap.copy_(heatmaps(class_map[None, None], size=size, method=method)[0, 0])


def _span(flags: Tensor) -> slice:
    """The one interval in which a row of flags, (n,) bool, is true."""
    first = int(flags.int().argmax())
    return slice(first, first + int(flags.sum()))


def maps_on_picture(
    maps: Tensor, preprocessing: Preprocessing, image_hw: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Maps that cover the network's input, resampled (bilinear) to cover the whole picture.

    The part of the picture that ``crop`` cut away gets 0, since the network saw nothing of it; the
    border that ``pad`` added is left out.

    Args:
        maps: (k, h, w) float.
        preprocessing: How the picture came into the input.
        image_hw: (H, W) of the original picture, in pixels.
        size: (H, W) of the result; ``image_hw`` for one value per pixel of the picture.

    Returns:
        (k, *size) of the type of ``maps``.
    """
    if preprocessing.resize_mode == "squash":
        return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    place = preprocessing.placement(image_hw)
    height, width = preprocessing.size
    rows = _resampling_weights(
        size[0], maps.shape[1], image_hw[0] * place.scale_y / height, place.offset_y / height
    )
    columns = _resampling_weights(
        size[1], maps.shape[2], image_hw[1] * place.scale_x / width, place.offset_x / width
    )
    return rows.to(maps) @ maps @ columns.T.to(maps)  # bilinear: one axis after the other


def _resampling_weights(length: int, cells: int, scale: float, offset: float) -> Tensor:
    """The bilinear weight of each cell of a map in each pixel of the result, (length, cells).

    ``scale`` is the length of the result, and ``offset`` its begin, in lengths of the input.
    """
    centres = (torch.arange(length, dtype=torch.float64) + 0.5) / length * scale + offset
    places = (centres * cells - 0.5).clamp(0, cells - 1)[:, None]
    weights = (1 - (places - torch.arange(cells)).abs()).clamp_min(0)
    weights[(centres < 0) | (centres > 1)] = 0  # cropped away
    return weights


def upsampled(class_map: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """A class map (h, w) at the size (H, W) of its picture, bilinear, float32."""
    return F.interpolate(class_map.float()[None, None], size=size_hw, mode="bilinear")[0, 0]


def score_map(class_map: Tensor) -> NDArray[np.float64]:
    """A class map as the WSOL benchmark scores it: resized (bicubic), min-max, in float64.

    We differ from Choe et al. (arXiv 2007.04178) in one case: they judge whether a map is constant
    after the resize, which leaves rounding noise, and then stretch the noise to [0, 1].

    Args:
        class_map: (h, w), of any numeric type, on any device; it covers the whole picture.

    Returns:
        (224, 224) in [0, 1]; zeros where the map is constant or not finite.
    """
    values = class_map.detach().cpu().double().numpy()
    if not np.isfinite(values).all() or values.min() == values.max():
        return np.zeros((SIDE, SIDE))
    resized = cv2.resize(values, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    scores: NDArray[np.float64] = resized - resized.min()
    peak = scores.max()
    return scores / peak if 0 < peak < np.inf else np.zeros((SIDE, SIDE))


def parts_of_range(values: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Values as parts of the range from low to high; zeros where low and high are the same.

    Example:
        >>> parts_of_range(torch.tensor([-1.0, 0.0, 1.0]), -1.0, 1.0)
        tensor([0.0000, 0.5000, 1.0000])
    """
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def relative_difference(maps: Tensor, expected: Tensor) -> Tensor:
    """Largest difference of each map, (B, k), in parts of the expected map's range.

    Example:
        >>> expected = torch.tensor([[[[0.0, 4.0]]]])
        >>> relative_difference(expected + 1.0, expected)
        tensor([[0.2500]])
    """
    difference = (maps - expected).abs().amax((-2, -1))
    low, high = expected.amin((-2, -1)), expected.amax((-2, -1))
    # A constant map has no range; rounding is then small against its own size.
    scale = torch.where(high > low, high - low, expected.abs().amax((-2, -1)))
    return torch.where(difference == 0, 0.0, difference / scale)


def check_classes(classes: Tensor, batch: int, num_classes: int) -> None:
    """Refuse classes that are not (B,) or (B, k) integers in 0..K-1.

    Raises:
        CamtrainTypeError: ``classes`` is not a tensor of integers.
        CamtrainValueError: Its shape or its values do not fit.
    """
    kind = classes.dtype if isinstance(classes, Tensor) else type(classes).__name__
    if kind not in _INTEGERS:
        raise CamtrainTypeError(f"classes must be a tensor of integers, got {kind}.")
    if classes.ndim not in (1, 2) or classes.shape[0] != batch:
        raise CamtrainValueError(
            f"classes must have the shape (B,) or (B, k) with B = {batch}, got "
            f"{tuple(classes.shape)}."
        )
    if torch.compiler.is_compiling() or classes.is_meta or not classes.numel():
        return
    last = num_classes - 1
    if int(classes.min()) < 0 or int(classes.max()) > last:
        raise CamtrainValueError(
            f"classes must lie in 0..{last}, got {int(classes.min())}..{int(classes.max())}."
        )
