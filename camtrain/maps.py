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
    """Logits and class maps of a batch.

    Attributes:
        logits: (B, K), every class.
        maps: (B, k, h, w), the class maps of ``classes``: signed, unnormalized, without the bias.
        classes: (B, k), int64.
    """

    logits: Tensor
    maps: Tensor
    classes: Tensor


def project(features: Tensor, weight: Tensor) -> Tensor:
    """Class maps (B, K, h, w) of features (B, C, h, w) and the weight (K, C) of the linear head.

    M_k(y, x) = sum_c w_kc f_c(y, x), equation 2 of the paper.

    On a GPU this is a product of matrices, which torch computes in float32 unless
    ``torch.set_float32_matmul_precision`` says otherwise; its convolutions round to TF32 there,
    and the mean of a map would differ from the logit by a thousandth.

    Example:
        >>> features = torch.tensor([[[[1.0, 2.0, 3.0]], [[0.0, 1.0, 0.0]]]])  # (1, 2, 1, 3)
        >>> project(features, torch.tensor([[1.0, -2.0]])).tolist()
        [[[[1.0, 0.0, 3.0]]]]
    """
    if features.is_cuda:
        maps = weight @ features.flatten(2)
        return maps.reshape(*maps.shape[:2], *features.shape[2:])
    return F.conv2d(features, weight[:, :, None, None])


def project_classes(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """Class maps (B, k, h, w) of ``classes`` (B, k) only; costs k / K of ``project``."""
    maps = weight[classes] @ features.flatten(2)  # (B, k, C) @ (B, C, h * w)
    return maps.reshape(*classes.shape, *features.shape[2:])


def pool_maps(maps: Tensor, pool: PoolName) -> Tensor:
    """One number per map, (B, k); the logit is this plus the head's bias.

    Args:
        maps: (B, k, h, w), class maps; for ``gmp`` features, since the paper's GMP pools before the
            head.
        pool: ``avg``, the mean (the paper's GAP); ``max`` and ``gmp``, the maximum; ``lse``,
            log(mean(exp(r m))) / r with r = 4 (Pinheiro and Collobert, arXiv 1411.6228, equation
            6).

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


def pool_parts(maps: Tensor, parts: Tensor, pool: PoolName) -> Tensor:
    """As ``pool_maps``, over parts of the picture: (B, n, k).

    Args:
        maps: (B, k, h, w).
        parts: (B, n, h, w), weights of the places, not negative. Their scale does not matter.
        pool: ``avg``, sum(w m) / sum(w), or ``lse``, log(sum(w exp(r m)) / sum(w)) / r.

    Example:
        >>> parts = torch.tensor([[[[1.0, 1.0]], [[0.0, 1.0]]]])  # both places, and the second
        >>> pool_parts(torch.tensor([[[[0.0, 2.0]]]]), parts, "avg").tolist()
        [[[1.0], [2.0]]]
    """
    parts = parts.flatten(2).clamp_min(torch.finfo(torch.float32).tiny)  # of 0 no logarithm
    parts = parts / parts.sum(2, keepdim=True)
    if pool == "avg":
        return parts @ maps.flatten(2).mT
    assert pool == "lse"
    scaled = LSE_SHARPNESS * maps.flatten(2)[:, None]  # (B, 1, k, N)
    return torch.logsumexp(scaled + parts[:, :, None].log(), -1) / LSE_SHARPNESS


def heatmaps(maps: Tensor, *, size: tuple[int, int], method: HeatmapMethod = "minmax") -> Tensor:
    """Heatmaps of class maps: upsampled to the picture, then each normalized to [0, 1].

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
    # Rounding is monotone, so peak - floor is the maximum of heat - floor: one pass less.
    peak = heat.amax((-2, -1), keepdim=True)
    if method != "max":
        is_ivr = method == "ivr"
        floor = _percentile(heat, IVR_PERCENTILE) if is_ivr else heat.amin((-2, -1), keepdim=True)
        heat, peak = heat - floor, peak - floor
    if method != "minmax":
        heat = heat.clamp_min(0.0)
    return heat / torch.where(peak > _rounding(maps), peak, torch.inf)


def has_range(maps: Tensor) -> Tensor:
    """Whether maps (..., h, w) have a heatmap, (..., 1, 1) bool.

    False where a map is constant to rounding, which must not be stretched to a heatmap, and where
    it holds NaN or infinity.
    """
    lowest, highest = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return highest - lowest > _rounding(maps)


def _rounding(maps: Tensor) -> Tensor:
    return ROUNDING * maps.abs().amax((-2, -1), keepdim=True)


def _percentile(heat: Tensor, q: float) -> Tensor:
    """The q-quantile of each map, (B, k, 1, 1); ``torch.quantile`` takes no large tensors."""
    ordered = heat.flatten(2).sort(dim=2).values
    place = q * (ordered.shape[2] - 1)
    lower, upper = ordered[:, :, math.floor(place)], ordered[:, :, math.ceil(place)]
    return torch.lerp(lower, upper, place - math.floor(place))[:, :, None, None]


def whole_picture_maps(
    maps: Tensor, preprocessing: Preprocessing, image_hw: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """``maps_on_picture`` of class maps after their minimum is subtracted, float32.

    So a border that was cropped away, which gets 0, is as low as the lowest place.
    """
    from_zero = (maps - maps.amin((1, 2), keepdim=True)).float()
    return maps_on_picture(from_zero, preprocessing, image_hw, size)


def picture_heatmaps(
    maps: Tensor,
    preprocessing: Preprocessing,
    image_hw: tuple[int, int],
    *,
    size: tuple[int, int] | None = None,
    method: HeatmapMethod = "minmax",
) -> Tensor:
    """Heatmaps at the size of the original picture, (k, H, W), float32 in [0, 1].

    Each is normalized over the part of the picture that the network saw; a border that was cropped
    away is 0.

    Args:
        maps: (k, h, w), class maps that cover the network's input.
        preprocessing: How the picture became the input.
        image_hw: (H, W) of the original picture.
        size: Another (H, W) of the result.
        method: See ``camtrain.heatmaps``.
    """
    size = size or image_hw
    if preprocessing.resize_mode == "squash":
        heat = visible = torch.empty(len(maps), *size, dtype=torch.float32, device=maps.device)
    else:
        # A constant map must stay constant, without rounding, and NaN must not spread.
        maps = maps.float()
        maps = torch.where(has_range(maps), maps, 0.0)
        ones = torch.ones_like(maps[:1])
        is_visible = maps_on_picture(ones, preprocessing, image_hw, size)[0] > 0
        heat = maps_on_picture(maps, preprocessing, image_hw, size)
        maps = visible = heat[:, _span(is_visible.any(1)), _span(is_visible.any(0))]  # a view
    if visible.numel():  # of a very narrow picture less than a pixel may be visible
        for class_map, heatmap in zip(maps, visible, strict=True):  # one by one fits into the cache
            size = (visible.shape[1], visible.shape[2])
            heatmap.copy_(heatmaps(class_map[None, None], size=size, method=method)[0, 0])
    return heat


def _span(flags: Tensor) -> slice:
    """The one interval in which flags, (n,) bool, are true."""
    first = int(flags.int().argmax())
    return slice(first, first + int(flags.sum()))


def maps_on_picture(
    maps: Tensor, preprocessing: Preprocessing, image_hw: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Maps of the network's input, resampled (bilinear) to cover the whole picture, (k, *size).

    The part of the picture that ``crop`` cut away gets 0, since the network did not see it; the
    border that ``pad`` added is left out.

    Args:
        maps: (k, h, w) float.
        preprocessing: How the picture became the input.
        image_hw: (H, W) of the original picture, in pixels.
        size: (H, W) of the result; ``image_hw`` for one value per pixel of the picture.
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

    ``scale`` and ``offset`` are the length and the start of the result, in lengths of the input.
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
    """A class map as the WSOL benchmark scores it: resized (bicubic), min-max, (224, 224) float64.

    Zeros where the map is constant or not finite. It differs from Choe et al. (arXiv 2007.04178)
    for constant maps: they test for a constant after the resize, which leaves rounding noise, and
    then stretch the noise to [0, 1].

    Args:
        class_map: (h, w), of any numeric type, on any device; it covers the whole picture.
    """
    values = class_map.detach().cpu().double().numpy()
    if not np.isfinite(values).all() or values.min() == values.max():
        return np.zeros((SIDE, SIDE))
    resized = cv2.resize(values, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    scores: NDArray[np.float64] = resized - resized.min()
    peak = scores.max()
    return scores / peak if 0 < peak < np.inf else np.zeros((SIDE, SIDE))


def parts_of_range(values: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """(values - low) / (high - low); zeros where low and high are the same.

    Example:
        >>> parts_of_range(torch.tensor([-1.0, 0.0, 1.0]), -1.0, 1.0)
        tensor([0.0000, 0.5000, 1.0000])
    """
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def relative_difference(maps: Tensor, expected: Tensor) -> Tensor:
    """The largest difference of each map, (B, k), divided by the range of the expected map.

    Example:
        >>> expected = torch.tensor([[[[0.0, 4.0]]]])
        >>> relative_difference(expected + 1.0, expected)
        tensor([[0.2500]])
    """
    difference = (maps - expected).abs().amax((-2, -1))
    low, high = expected.amin((-2, -1)), expected.amax((-2, -1))
    # A constant map has no range; its absolute value takes the place of the range.
    scale = torch.where(high > low, high - low, expected.abs().amax((-2, -1)))
    return torch.where(difference == 0, 0.0, difference / scale)


def check_classes(classes: Tensor, batch: int, num_classes: int) -> None:
    """Raise CamtrainTypeError unless ``classes`` is a tensor of integers.

    Raise CamtrainValueError unless it is (B,) or (B, k) for a ``batch`` of B, in 0..K-1.
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
