"""Pictures into the network's input, boxes with them, and class maps back onto the picture."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from camtrain.data.views import INTERPOLATIONS, View
from camtrain.errors import CamtrainValueError
from camtrain.preprocessing import Placement, Preprocessing


def fit_channels(image: Tensor, channels: int) -> Tensor:
    """A gray picture repeated to ``channels``, or a colour picture reduced to its luma.

    Args:
        image: (C, H, W), uint8 or float.
        channels: What the network expects.

    Returns:
        (channels, H, W) of the same type.

    Raises:
        CamtrainValueError: The numbers of channels cannot be reconciled.
    """
    if image.shape[0] == channels:
        return image
    if image.shape[0] == 1:
        return image.expand(channels, -1, -1)
    if image.shape[0] == 3 and channels == 1:
        gray: Tensor = TF.rgb_to_grayscale(image)
        return gray
    raise CamtrainValueError(
        f"image must be (C, H, W) with 1, 3 or {channels} channels for a network of {channels}, "
        f"got shape {tuple(image.shape)}; pass another image, or a mean and std of its channels."
    )


def resize(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The picture at the size of the network's input, placed as ``preprocessing.placement`` says.

    Args:
        image: (C, H, W), uint8, or float in [0, 1].
        preprocessing: Size, resize mode and interpolation.

    Returns:
        (len(mean), h, w) of the same type, h x w being ``preprocessing.size``.
    """
    image = fit_channels(image, len(preprocessing.mean))
    view = View.whole((image.shape[-2], image.shape[-1]), preprocessing)
    mode = INTERPOLATIONS[preprocessing.interpolation]
    return view.of(image, mode, fill_colour(preprocessing, image.dtype))


def normalize(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """``(image - mean) / std``, per channel, in the order of channels that the network takes.

    Args:
        image: (..., C, h, w), uint8, or float in [0, 1]; colours in the order RGB.
        preprocessing: Its mean and std are in units of [0, 1].

    Returns:
        The same shape, float32.
    """
    image = _reordered(image, preprocessing)
    mean, std = (_columns(v, image.device) for v in (preprocessing.mean, preprocessing.std))
    if image.dtype != torch.uint8:
        return image.to(torch.float32).sub(mean).div_(std)
    return image.to(torch.float32).mul_(1 / 255).sub_(mean).div_(std)  # of its own copy


def to_pixels(normalized: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The inverse of ``normalize``, to the rounding of a pixel.

    Args:
        normalized: (..., C, h, w), float.
        preprocessing: What ``normalize`` was given.

    Returns:
        The same shape, uint8; colours in the order RGB.
    """
    mean, std = (_columns(v, normalized.device) for v in (preprocessing.mean, preprocessing.std))
    pixels = _reordered(normalized * std + mean, preprocessing)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def prepare(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize, then normalize: (C, H, W) uint8 or float in [0, 1] -> input, float32 (C, h, w)."""
    return normalize(resize(image, preprocessing), preprocessing)


def boxes_to_input(boxes_xyxy: Tensor, placement: Placement) -> Tensor:
    """Boxes of a picture in pixels of the network's input; they may reach over its border.

    Args:
        boxes_xyxy: (n, 4), half-open, in pixels of the picture.
        placement: Where the picture lies in the input.

    Returns:
        (n, 4) float32, half-open, in pixels of the input.

    Example:
        >>> boxes_to_input(torch.tensor([[2, 4, 6, 8]]), Placement(0.5, 2.0, 1, -3))
        tensor([[1., 3., 9., 5.]])
    """
    scale = boxes_xyxy.new_tensor([placement.scale_x, placement.scale_y] * 2, dtype=torch.float32)
    offset = boxes_xyxy.new_tensor(
        [placement.offset_x, placement.offset_y] * 2, dtype=torch.float32
    )
    return boxes_xyxy * scale + offset


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
    rows = _weights(
        size[0], maps.shape[1], image_hw[0] * place.scale_y / height, place.offset_y / height
    )
    columns = _weights(
        size[1], maps.shape[2], image_hw[1] * place.scale_x / width, place.offset_x / width
    )
    return rows.to(maps) @ maps @ columns.T.to(maps)  # bilinear: one axis after the other


def _weights(length: int, cells: int, scale: float, offset: float) -> Tensor:
    """(length, cells): what each pixel of the result takes of each cell of a map, along one side.

    Args:
        length: Pixels of the result.
        cells: Of the map, which covers the input.
        scale: Of the whole result, in lengths of the input.
        offset: Where the result begins, in lengths of the input.
    """
    centres = (torch.arange(length, dtype=torch.float64) + 0.5) / length * scale + offset
    places = (centres * cells - 0.5).clamp(0, cells - 1)[:, None]
    weights = (1 - (places - torch.arange(cells)).abs()).clamp_min(0)
    weights[(centres < 0) | (centres > 1)] = 0  # cropped away
    return weights


@cache
def _columns(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1)."""
    return torch.tensor(values, device=device)[:, None, None]


def _reordered(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The channels (..., C, h, w) of a picture in the network's order, or the other way round."""
    return image.flip(-3) if preprocessing.channel_order == "bgr" else image


def fill_colour(preprocessing: Preprocessing, dtype: torch.dtype) -> list[float]:
    """The mean of a picture, per channel, in units of ``dtype``; normalized it is nearly 0."""
    mean = _reordered(torch.tensor(preprocessing.mean)[:, None, None], preprocessing).flatten()
    colour = mean if dtype.is_floating_point else (mean * 255).round()
    return colour.tolist()
