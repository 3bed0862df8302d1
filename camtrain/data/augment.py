"""What training does to a picture before the network sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from camtrain.data.transforms import INTERPOLATIONS, CropGeometry, fill_colour, fit_channels
from camtrain.errors import CamtrainValueError, check_choice
from camtrain.preprocessing import Preprocessing

HIDDEN_GRID = 4  # cells per side that hide-and-seek divides the input into

AutoAugment = Literal["randaugment", "trivialaugment"]
_POLICIES = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}

_DrawGeometry = Callable[[tuple[int, int], Preprocessing], CropGeometry]  # of a picture's (H, W)


def _flip(image_hw: tuple[int, int], preprocessing: Preprocessing) -> CropGeometry:
    """The geometry of evaluation, mirrored half of the time."""
    return _mirror_at_random(CropGeometry.whole(image_hw, preprocessing))


def _random_resized_crop(
    image_hw: tuple[int, int], preprocessing: Preprocessing, *, scale: tuple[float, float]
) -> CropGeometry:
    """A random part of relative area ``scale``, warped to the size; mirrored half of the time."""
    crop = _crop_transform(preprocessing.size, scale).make_params([_empty_picture(image_hw)])
    part = (crop["top"], crop["left"], crop["height"], crop["width"])
    return _mirror_at_random(CropGeometry(*part, preprocessing.size, (0, 0), preprocessing.size))


@cache
def _crop_transform(size_hw: tuple[int, int], scale: tuple[float, float]) -> v2.Transform:
    return v2.RandomResizedCrop(size_hw, scale=scale)


def _paper(image_hw: tuple[int, int], preprocessing: Preprocessing) -> CropGeometry:
    """A random window of the picture at 8/7 of the size (256 for 224); mirrored as well."""
    height, width = (round(side * 8 / 7) for side in preprocessing.size)
    larger = CropGeometry.whole(image_hw, replace(preprocessing, size=(height, width)))
    window = v2.RandomCrop(preprocessing.size).make_params([_empty_picture((height, width))])
    return _mirror_at_random(larger.moved(window["top"], window["left"], preprocessing.size))


def _mirror_at_random(geometry: CropGeometry) -> CropGeometry:
    """The geometry, mirrored in half of the cases."""
    return replace(geometry, is_mirrored=bool(torch.rand(1) < 0.5))


def _empty_picture(image_hw: tuple[int, int]) -> Tensor:
    """A tensor of the picture's size without pixels, for torchvision to draw numbers for."""
    return torch.empty(1, *image_hw, device="meta")


AUGMENTATIONS: dict[str, _DrawGeometry] = {
    "none": CropGeometry.whole,
    "flip": _flip,
    "light": partial(_random_resized_crop, scale=(0.5, 1.0)),
    "imagenet": partial(_random_resized_crop, scale=(0.08, 1.0)),
    "paper": _paper,
    "wsol": _paper,
}


@dataclass(frozen=True)
class Augmentation:
    """A preset, then perhaps a policy and hide-and-seek; draws from torch's global random numbers.

    Call ``draw`` with the picture's size, which may be known before the picture is decoded, then
    ``apply``; or the augmentation with the picture.

    Attributes:
        name: A key of ``AUGMENTATIONS``.

            * ``none``: as in evaluation; ``flip``: the same, mirrored half of the time.
            * ``light``, ``imagenet``: a random part of 50 or 8 to 100 % of the area and an aspect
              of 3/4 to 4/3, warped to the size; mirrored.
            * ``paper``: the picture at 8/7 of the size (256 for 224), resized by ``resize_mode``, a
              random window of it; mirrored.
            * ``wsol``: the training of the WSOL benchmark (Choe et al., CVPR 2020, arXiv
              2001.07437): warped to 256, a random window of 224; mirrored. Its evaluation warps to
              224 without a crop, and so does ours, since only ``squash`` is taken with it.
        preprocessing: Size, channels, interpolation and resize mode of the input.
        auto_augment: ``randaugment`` (Cubuk et al., arXiv 1909.13719: two operations of magnitude
            9) or ``trivialaugment`` (Müller and Hutter, arXiv 2103.10158: one of random strength),
            as torchvision has them; None for neither.
        hide_and_seek: Probability that a cell of a 4 x 4 grid over the input is hidden under the
            mean colour (Singh and Lee, ICCV 2017, arXiv 1704.04232).
    """

    name: str
    preprocessing: Preprocessing
    auto_augment: AutoAugment | None = None
    hide_and_seek: float = 0.0

    def __post_init__(self) -> None:
        """Check every value."""
        check_choice("augment", self.name, AUGMENTATIONS)
        if self.name == "wsol" and self.preprocessing.resize_mode != "squash":
            raise CamtrainValueError(
                "augment wsol goes with resize_mode squash, as the benchmark warps in evaluation "
                f"too, got {self.preprocessing.resize_mode}; choose squash, or augment paper."
            )
        if self.auto_augment is not None and self.auto_augment not in get_args(AutoAugment):
            raise CamtrainValueError(
                f"auto_augment must be one of {', '.join(get_args(AutoAugment))}, or None, got "
                f"{self.auto_augment!r}."
            )
        if not 0 <= self.hide_and_seek < 1:
            raise CamtrainValueError(
                f"hide_and_seek is a probability in [0, 1), got {self.hide_and_seek}."
            )

    def draw(self, image_hw: tuple[int, int]) -> CropGeometry:
        """Draw the part of a picture of (H, W) that is seen."""
        return AUGMENTATIONS[self.name](image_hw, self.preprocessing)

    def apply(self, geometry: CropGeometry, image: Tensor, *, factor: int = 1) -> Tensor:
        """The augmented picture, (len(mean), *preprocessing.size) uint8.

        Args:
            geometry: From ``draw``, ``aligned`` to the factor.
            image: (C, H, W) uint8; decoded smaller, (C, ceil(H / factor), ceil(W / factor)).
            factor: By which it was decoded smaller.
        """
        image = fit_channels(image, len(self.preprocessing.mean))
        mode = INTERPOLATIONS[self.preprocessing.interpolation]
        image = geometry.image(image, mode, self._fill, factor=factor)
        if self.auto_augment is not None:
            policy = _POLICIES[self.auto_augment]
            image = policy(interpolation=InterpolationMode.BILINEAR, fill=self._fill)(image)
        return hide(image, self.hide_and_seek, self._fill) if self.hide_and_seek else image

    @cached_property
    def _fill(self) -> list[float]:
        return fill_colour(self.preprocessing, torch.uint8)

    def __call__(self, image: Tensor) -> Tensor:
        """Draw and apply: (C, H, W) uint8 -> (len(mean), *preprocessing.size) uint8."""
        return self.apply(self.draw((image.shape[-2], image.shape[-1])), image)


def hide(image: Tensor, probability: float, fill: list[float]) -> Tensor:
    """The image, (C, h, w), with cells of a 4 x 4 grid hidden under a colour of its units."""
    is_hidden = torch.rand(HIDDEN_GRID, HIDDEN_GRID) < probability
    rows, columns = (
        torch.arange(side) * HIDDEN_GRID // side for side in (image.shape[-2], image.shape[-1])
    )
    colour = torch.tensor(fill).to(image.dtype)[:, None, None]
    return torch.where(is_hidden[rows][:, columns], colour, image)
