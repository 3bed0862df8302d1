"""Class maps over the original picture: what the predictor, the logger and the metrics share."""

from __future__ import annotations

import torch
from torch import Tensor

from camtrain.data import maps_on_picture
from camtrain.model.cam import HeatmapMethod, heatmaps
from camtrain.preprocessing import Preprocessing


def whole_picture_maps(
    maps: Tensor, preprocessing: Preprocessing, image_hw: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Class maps moved from the network's input to the whole original picture.

    Args:
        maps: (k, h, w), covering the network's input.
        preprocessing: How the picture became the input.
        image_hw: (H, W) of the original picture.
        size: (H, W) of the result, which covers the original picture.

    Returns:
        (k, *size), float32. The smallest value of each map is moved to 0, so that a border that was
        cropped away, which nobody looked at, is as low as the lowest place.
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
        maps: (k, h, w), class maps covering the network's input.
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
    reach = maps.flatten(1).amax(1) - maps.flatten(1).amin(1)
    shows = ((reach > 0) & reach.isfinite())[:, None, None]
    maps = torch.where(shows, maps, 0.0)
    seen = maps_on_picture(torch.ones_like(maps[:1]), preprocessing, image_hw, image_hw)[0] > 0
    moved = maps_on_picture(maps, preprocessing, image_hw, image_hw)
    inside = moved[:, _span(seen.any(1)), _span(seen.any(0))]  # a view
    if inside.numel():  # less than a pixel may be left of a sliver
        _normalize(inside, inside, method)
    return moved


def _normalize(maps: Tensor, heat: Tensor, method: HeatmapMethod) -> None:
    """Fill (k, H, W) with heatmaps of (k, h, w), one by one: so much stays in the caches."""
    size = (heat.shape[1], heat.shape[2])
    for one, filled in zip(maps, heat, strict=True):
        filled.copy_(heatmaps(one[None, None], size=size, method=method)[0, 0])


def _span(seen: Tensor) -> slice:
    """Where a row of flags, (n,) bool, is true: one piece."""
    first = int(seen.int().argmax())
    return slice(first, first + int(seen.sum()))
