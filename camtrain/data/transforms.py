"""Pictures into the network's input, and boxes with them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from camtrain.data.views import INTERPOLATIONS, CropGeometry
from camtrain.errors import CamtrainValueError
from camtrain.preprocessing import Preprocessing


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
    geometry = CropGeometry.whole((image.shape[-2], image.shape[-1]), preprocessing)
    mode = INTERPOLATIONS[preprocessing.interpolation]
    return geometry.image(image, mode, fill_colour(preprocessing, image.dtype))


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
