"""Views: which part of a picture the network sees, and the truth about the picture seen with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from camtrain.preprocessing import Preprocessing

# exact: a pixel covers [i, i + 1), as in Placement; torch's plain "nearest" is off by half a pixel
INTERPOLATIONS = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


@dataclass(frozen=True)
class View:
    """A part of a picture, resized, laid into the network's input, and perhaps mirrored.

    Attributes:
        top: First row of the part, in pixels of the picture.
        left: First column.
        height: Rows of the part.
        width: Columns.
        resized_hw: (H, W) of the part after the resize.
        offset_yx: Where the resized part begins in the input; negative where its border is cut
            away, positive where the input is padded.
        size_hw: (H, W) of the input.
        is_mirrored: Left and right are swapped at last.
    """

    top: int
    left: int
    height: int
    width: int
    resized_hw: tuple[int, int]
    offset_yx: tuple[int, int]
    size_hw: tuple[int, int]
    is_mirrored: bool = False

    @classmethod
    def whole(cls, image_hw: tuple[int, int], preprocessing: Preprocessing) -> View:
        """What evaluation and prediction see of a picture of ``image_hw``."""
        place = preprocessing.placement(image_hw)
        return cls(
            *(0, 0, *image_hw),
            resized_hw=preprocessing.resized_hw(image_hw),
            offset_yx=(int(place.offset_y), int(place.offset_x)),
            size_hw=preprocessing.size,
        )

    def moved(self, y: int, x: int, size_hw: tuple[int, int]) -> View:
        """The window of ``size_hw`` that begins at (y, x) of this view's input."""
        offset = (self.offset_yx[0] - y, self.offset_yx[1] - x)
        return replace(self, offset_yx=offset, size_hw=size_hw)

    @property
    def shrink(self) -> float:
        """By how much the picture may be reduced so that the part is still resized downwards."""
        return min(self.height / self.resized_hw[0], self.width / self.resized_hw[1])

    def aligned(self, factor: int) -> View:
        """The part moved up and left by less than ``factor``, to where reduced pixels begin."""
        if factor == 1:
            return self
        return replace(self, top=self.top - self.top % factor, left=self.left - self.left % factor)

    def of(
        self,
        pixels: Tensor,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
        fill: Sequence[float] = (0.0,),
    ) -> Tensor:
        """The view of a picture, or of torchvision's ``BoundingBoxes`` or ``Mask`` of it.

        Args:
            pixels: (C, H, W) uint8, or float in [0, 1]; or a tv_tensor, boxes as float.
            interpolation: Of a picture; a mask is always seen by its nearest pixels.
            fill: Per channel, what pictures are padded with, in their units.

        Returns:
            The same type at ``size_hw``; boxes are clipped to what is seen, those out of sight
            have no area.
        """
        if type(pixels) is Tensor:
            rows = slice(self.top, self.top + self.height)
            seen = _packed(pixels[:, rows, self.left : self.left + self.width])
        else:
            seen = TF.crop(pixels, self.top, self.left, self.height, self.width)
        seen = TF.resize(seen, list(self.resized_hw), interpolation=interpolation, antialias=True)
        return self._laid(seen, fill)

    def of_reduced(
        self,
        image: Tensor,
        factor: int,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
        fill: Sequence[float] = (0.0,),
    ) -> Tensor:
        """The view of a picture that was decoded ``factor`` times smaller.

        Args:
            image: (C, h, w) uint8, h = ceil(H / factor), w = ceil(W / factor).
            factor: ``top`` and ``left`` are its multiples, see ``aligned``.
            interpolation: ``BILINEAR`` or ``BICUBIC``.
            fill: As for ``of``.
        """
        top, left = self.top // factor, self.left // factor
        height, width = self.height / factor, self.width / factor  # perhaps not whole pixels
        part = image[:, top : top + math.ceil(height), left : left + math.ceil(width)]
        # a little more, so that rounding down gives the size and not one less
        scales = [(self.resized_hw[0] + 1e-4) / height, (self.resized_hw[1] + 1e-4) / width]
        seen = F.interpolate(
            _packed(part)[None],
            scale_factor=scales,
            mode=interpolation.value,
            antialias=True,
            recompute_scale_factor=False,  # the scale is exact where the last pixel is not whole
        )[0]
        return self._laid(seen, fill)

    def _laid(self, seen: Tensor, fill: Sequence[float]) -> Tensor:
        """The resized part in the input."""
        is_picture = type(seen) is Tensor
        if is_picture:
            seen = seen.contiguous()
        (y, x), (height, width) = self.offset_yx, self.size_hw
        rows, columns = self.resized_hw
        top, left = max(0, -y), max(0, -x)
        bottom, right = min(rows, height - y), min(columns, width - x)
        if (top, left, bottom, right) != (0, 0, rows, columns):
            seen = TF.crop(seen, top, left, bottom - top, right - left)
        if (bottom - top, right - left) != self.size_hw:
            border = [max(0, x), max(0, y), max(0, width - x - columns), max(0, height - y - rows)]
            seen = TF.pad(seen, border, fill=list(fill) if is_picture else 0)
        if not self.is_mirrored:
            return seen
        mirrored: Tensor = seen.flip(-1) if is_picture else TF.horizontal_flip(seen)
        return mirrored


def _packed(pixels: Tensor) -> Tensor:
    """The same pixels; those of a decoded picture, colours side by side, without gaps.

    torch would otherwise take them apart by colours and put them together again.
    """
    if pixels.shape[0] != 3 or pixels.stride(0) != 1:
        return pixels
    return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
