"""Class maps over the original picture: what the predictor, the logger and the metrics share."""

from __future__ import annotations

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
    """Heatmaps at the size of the original picture, (k, H, W), in [0, 1].

    Args:
        maps: (k, h, w), class maps covering the network's input.
        preprocessing: How the picture became the input.
        image_hw: (H, W) of the original picture.
        method: See ``camtrain.heatmaps``.
    """
    if preprocessing.resize_mode == "squash":
        return heatmaps(maps[None], size=image_hw, method=method)[0]
    moved = whole_picture_maps(maps, preprocessing, image_hw, image_hw)
    return heatmaps(moved[None], size=image_hw, method=method)[0]
