"""Pictures into the network's input: which part is cut out, the resize, and the normalization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from camtrain.errors import CamtrainValueError
from camtrain.preprocessing import Placement, Preprocessing

# exact: a pixel covers [i, i + 1), as in Placement; torch's plain "nearest" is off by half a pixel
INTERPOLATIONS = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


@dataclass(frozen=True)
class CropGeometry:
    """Where a part of a picture, resized and perhaps mirrored, lies in the network's input."""

    top: int  # first row of the part, in pixels of the picture
    left: int  # first column
    height: int  # rows of the part
    width: int  # columns
    resized_hw: tuple[int, int]  # (H, W) of the part after the resize
    # Where the resized part begins in the input; negative where its border is cut away, positive
    # where the input is padded.
    offset_yx: tuple[int, int]
    size_hw: tuple[int, int]  # (H, W) of the input
    is_mirrored: bool = False  # left and right are swapped at the end

    @classmethod
    def whole(cls, image_hw: tuple[int, int], preprocessing: Preprocessing) -> CropGeometry:
        """The geometry of evaluation and prediction for a picture of (H, W)."""
        place = preprocessing.placement(image_hw)
        return cls(
            *(0, 0, *image_hw),
            resized_hw=preprocessing.resized_hw(image_hw),
            offset_yx=(int(place.offset_y), int(place.offset_x)),
            size_hw=preprocessing.size,
        )

    def moved(self, y: int, x: int, size_hw: tuple[int, int]) -> CropGeometry:
        """The geometry of the window of ``size_hw`` at (y, x) of this input."""
        offset = (self.offset_yx[0] - y, self.offset_yx[1] - x)
        return replace(self, offset_yx=offset, size_hw=size_hw)

    @property
    def shrink(self) -> float:
        """The largest factor to reduce the picture by, without enlarging the part afterwards."""
        return min(self.height / self.resized_hw[0], self.width / self.resized_hw[1])

    def aligned(self, factor: int) -> CropGeometry:
        """The part moved up and left to the nearest multiples of ``factor``."""
        if factor == 1:
            return self
        return replace(self, top=self.top - self.top % factor, left=self.left - self.left % factor)

    def image(
        self,
        image: Tensor,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
        fill: Sequence[float] = (0.0,),
        *,
        factor: int = 1,
    ) -> Tensor:
        """The network's input, (C, *size_hw), of a picture; of the same type.

        Args:
            image: (C, H, W) uint8, or float in [0, 1]. A picture that was decoded smaller:
                (C, ceil(H / factor), ceil(W / factor)) uint8.
            interpolation: Of the resize; ``NEAREST_EXACT`` only for the factor 1.
            fill: Per channel, what the picture is padded with, in its units.
            factor: ``top`` and ``left`` are its multiples, see ``aligned``.
        """
        top, left = self.top // factor, self.left // factor
        height, width = self.height / factor, self.width / factor  # perhaps not whole pixels
        part = image[:, top : top + math.ceil(height), left : left + math.ceil(width)]
        part = _contiguous(part)
        if factor == 1:
            size = list(self.resized_hw)
            return self._place_in_input(TF.resize(part, size, interpolation=interpolation), fill)
        # a little more, so that rounding down gives the size and not one less
        scales = [(self.resized_hw[0] + 1e-4) / height, (self.resized_hw[1] + 1e-4) / width]
        resized = F.interpolate(
            part[None],
            scale_factor=scales,
            mode=interpolation.value,
            antialias=True,
            recompute_scale_factor=False,  # the scale is exact where the last pixel is not whole
        )[0]
        return self._place_in_input(resized, fill)

    def boxes(self, boxes_xyxy: Tensor) -> Tensor:
        """Boxes of the picture in pixels of the input, (n, 4) -> (m, 4) float32, half-open.

        They are clipped to the input; those without a pixel in it are left out.
        """
        if not len(boxes_xyxy):  # most pictures of a training have none
            return torch.zeros(0, 4)
        corner = torch.tensor([self.left, self.top] * 2)
        part_size = torch.tensor([self.width, self.height] * 2)
        boxes_in_part = (boxes_xyxy.float() - corner).clamp(min=0).minimum(part_size)
        scale_y, scale_x = self.resized_hw[0] / self.height, self.resized_hw[1] / self.width
        boxes = boxes_to_input(boxes_in_part, Placement(scale_y, scale_x, *self.offset_yx))
        height, width = self.size_hw
        if self.is_mirrored:
            boxes = boxes[:, [2, 1, 0, 3]]
            boxes[:, ::2] = width - boxes[:, ::2]
        boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2))
        return boxes[((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)]

    def _place_in_input(self, resized: Tensor, fill: Sequence[float]) -> Tensor:
        """The input: the resized part, cropped or padded, and mirrored."""
        image = resized.contiguous()
        (y, x), (height, width) = self.offset_yx, self.size_hw
        rows, columns = self.resized_hw
        top, left = max(0, -y), max(0, -x)
        bottom, right = min(rows, height - y), min(columns, width - x)
        if (top, left, bottom, right) != (0, 0, rows, columns):
            image = TF.crop(image, top, left, bottom - top, right - left)
        if (bottom - top, right - left) != self.size_hw:
            border = [max(0, x), max(0, y), max(0, width - x - columns), max(0, height - y - rows)]
            image = TF.pad(image, border, fill=list(fill))
        return image.flip(-1) if self.is_mirrored else image


def boxes_to_input(boxes_xyxy: Tensor, placement: Placement) -> Tensor:
    """Boxes of a picture, (n, 4), in pixels of the network's input, (n, 4) float32; not clipped.

    Example:
        >>> boxes_to_input(torch.tensor([[2, 4, 6, 8]]), Placement(0.5, 2.0, 1, -3))
        tensor([[1., 3., 9., 5.]])
    """
    scale = torch.tensor([placement.scale_x, placement.scale_y] * 2).to(boxes_xyxy.device)
    offset = torch.tensor([placement.offset_x, placement.offset_y] * 2).to(boxes_xyxy.device)
    return boxes_xyxy * scale + offset


def _contiguous(image: Tensor) -> Tensor:
    """The same picture; a part of a channels-last picture is copied, so that torch keeps the order.

    torch would otherwise take it apart by colours and put it together again.
    """
    if image.shape[0] != 3 or image.stride(0) != 1:
        return image
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def fit_channels(image: Tensor, channels: int) -> Tensor:
    """A picture, (C, H, W), with the channels of the network: gray repeated, or colour made gray.

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

    (C, H, W), uint8 or float in [0, 1] -> (len(mean), *preprocessing.size) of the same type.
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
    image = _reorder_channels(image, preprocessing)
    mean, std = (_columns(v, image.device) for v in (preprocessing.mean, preprocessing.std))
    if image.dtype != torch.uint8:
        return image.to(torch.float32).sub(mean).div_(std)
    return image.to(torch.float32).mul_(1 / 255).sub_(mean).div_(std)  # of its own copy


def to_pixels(normalized: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The inverse of ``normalize``: (..., C, h, w) float -> uint8, colours in the order RGB."""
    mean, std = (_columns(v, normalized.device) for v in (preprocessing.mean, preprocessing.std))
    pixels = _reorder_channels(normalized * std + mean, preprocessing)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def prepare(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize, then normalize: (C, H, W) uint8 or float in [0, 1] -> input, float32 (C, h, w)."""
    return normalize(resize(image, preprocessing), preprocessing)


@cache
def _columns(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Values per channel as a tensor, (C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def _reorder_channels(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """A picture (..., C, h, w) from RGB to the network's order of channels, or back."""
    return image.flip(-3) if preprocessing.channel_order == "bgr" else image


def fill_colour(preprocessing: Preprocessing, dtype: torch.dtype) -> list[float]:
    """The mean of a picture, per channel, in units of ``dtype``; normalized it is nearly 0."""
    mean = _reorder_channels(
        torch.tensor(preprocessing.mean)[:, None, None], preprocessing
    ).flatten()
    colour = mean if dtype.is_floating_point else (mean * 255).round()
    return colour.tolist()
