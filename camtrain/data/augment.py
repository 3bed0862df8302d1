"""What training does to a picture before the network sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF
from torchvision.tv_tensors import BoundingBoxes, Mask

from camtrain.data.transforms import fill_colour, fit_channels
from camtrain.data.views import INTERPOLATIONS, View
from camtrain.errors import CamtrainValueError
from camtrain.preprocessing import Preprocessing

AutoAugment = Literal["randaugment", "trivialaugment"]

_POLICIES = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
_MOVING = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def auto_augment(
    name: AutoAugment, image: Tensor, truth: list[Tensor], fill: list[float]
) -> tuple[Tensor, list[Tensor]]:
    """Apply a policy of torchvision to a picture, and to its boxes and masks what moves pixels.

    torchvision's own refuse boxes and masks. But all their operations go through one method, and
    those that move pixels take every tv_tensor.

    Args:
        name: Of the policy.
        image: (C, h, w) uint8, C = 1 or 3.
        truth: ``BoundingBoxes`` and ``Mask``; boxes become those around the moved boxes.
        fill: Per channel, 0 to 255, where pixels come from outside the picture.

    Returns:
        The picture and its truth.
    """
    policy = _POLICIES[name](interpolation=InterpolationMode.BILINEAR, fill=fill)
    operate = policy._apply_image_or_video_transform

    def operate_on_all(
        image: Tensor, transform_id: str, magnitude: float, **settings: Any
    ) -> Tensor:
        if transform_id in _MOVING:
            plain = {"interpolation": InterpolationMode.NEAREST, "fill": {}}
            truth[:] = [operate(one, transform_id, magnitude, **plain) for one in truth]
        moved: Tensor = operate(image, transform_id, magnitude, **settings)
        return moved

    truth = list(truth)
    policy._apply_image_or_video_transform = operate_on_all
    return policy(image), truth


HIDDEN_GRID = 4  # cells per side that hide-and-seek divides the input into

_DrawView = Callable[[tuple[int, int], Preprocessing], View]  # of a picture's (H, W)


class Augmented(NamedTuple):
    """A picture as training sees it.

    Attributes:
        image: (len(mean), h, w) uint8, h x w being the size of the network's input.
        boxes_xyxy: (n, 4) float32, half-open, in pixels of ``image``: clipped to it, those without
            a pixel in it left out.
        mask: (h, w) uint8, values as in ``Picture``; (0, 0) without one.
    """

    image: Tensor
    boxes_xyxy: Tensor
    mask: Tensor


def _whole(image_hw: tuple[int, int], preprocessing: Preprocessing) -> View:
    """What evaluation sees: the picture placed as ``resize_mode`` says."""
    return View.whole(image_hw, preprocessing)


def _flip(image_hw: tuple[int, int], preprocessing: Preprocessing) -> View:
    """The same, mirrored left-right half of the time."""
    return _mirrored(View.whole(image_hw, preprocessing))


def _random_resized_crop(
    image_hw: tuple[int, int], preprocessing: Preprocessing, *, scale: tuple[float, float]
) -> View:
    """A random part of the picture, of relative area ``scale``, warped to the size; mirrored."""
    crop = _random_part(preprocessing.size, scale).make_params([_like(image_hw)])
    part = (crop["top"], crop["left"], crop["height"], crop["width"])
    return _mirrored(View(*part, preprocessing.size, (0, 0), preprocessing.size))


@cache
def _random_part(size_hw: tuple[int, int], scale: tuple[float, float]) -> v2.Transform:
    return v2.RandomResizedCrop(size_hw, scale=scale)


def _paper(image_hw: tuple[int, int], preprocessing: Preprocessing) -> View:
    """A random window of the picture at 8/7 of the size (256 for 224); mirrored."""
    height, width = (round(side * 8 / 7) for side in preprocessing.size)
    larger = View.whole(image_hw, replace(preprocessing, size=(height, width)))
    window = v2.RandomCrop(preprocessing.size).make_params([_like((height, width))])
    return _mirrored(larger.moved(window["top"], window["left"], preprocessing.size))


def _mirrored(view: View) -> View:
    return replace(view, is_mirrored=bool(torch.rand(1) < 0.5))


def _like(image_hw: tuple[int, int]) -> Tensor:
    """Something of the picture's size, for torchvision to draw numbers for."""
    return torch.empty(1, *image_hw, device="meta")


AUGMENTATIONS: dict[str, _DrawView] = {
    "none": _whole,
    "flip": _flip,
    "light": partial(_random_resized_crop, scale=(0.5, 1.0)),
    "imagenet": partial(_random_resized_crop, scale=(0.08, 1.0)),
    "paper": _paper,
    "wsol": _paper,
}


@dataclass(frozen=True)
class Augmentation:
    """A preset, and what may follow it; it draws from torch's global random numbers.

    Call ``draw`` with the picture's size, which may be known before the picture is decoded, then
    ``apply``; or the augmentation with the picture.

    Attributes:
        name: A key of ``AUGMENTATIONS``.

            * ``none``: what evaluation sees; ``flip``: the same, mirrored half of the time.
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
            mean colour (Singh and Lee, ICCV 2017, arXiv 1704.04232); boxes and masks stay.
    """

    name: str
    preprocessing: Preprocessing
    auto_augment: AutoAugment | None = None
    hide_and_seek: float = 0.0

    def __post_init__(self) -> None:
        """Check every value once, at the door."""
        if self.name not in AUGMENTATIONS:
            raise CamtrainValueError(
                f"augment must be one of {', '.join(AUGMENTATIONS)}, got {self.name!r}."
            )
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

    def draw(self, image_hw: tuple[int, int]) -> View:
        """A random view of a picture of ``image_hw``."""
        return AUGMENTATIONS[self.name](image_hw, self.preprocessing)

    def apply(
        self,
        view: View,
        image: Tensor,
        boxes_xyxy: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        size_hw: tuple[int, int] | None = None,
        factor: int = 1,
    ) -> Augmented:
        """The view of a picture with its truth, and what follows the preset.

        Args:
            view: What ``draw`` gave, ``aligned`` to the factor.
            image: (C, H, W) uint8; decoded smaller, (C, ceil(H / factor), ceil(W / factor)).
            boxes_xyxy: (n, 4), half-open, in pixels of the whole picture.
            mask: (H, W) uint8, in pixels of the whole picture.
            size_hw: (H, W) of the whole picture; needed where it was decoded smaller.
            factor: By which it was.
        """
        settings = self.preprocessing
        size_hw = size_hw or (image.shape[-2], image.shape[-1])
        image = fit_channels(image, len(settings.mean))
        mode = INTERPOLATIONS[settings.interpolation]
        if factor == 1:
            image = view.of(image, mode, self._fill)
        else:
            image = view.of_reduced(image, factor, mode, self._fill)
        truth: list[Tensor] = []
        if boxes_xyxy is not None and len(boxes_xyxy):
            boxes = BoundingBoxes(boxes_xyxy.float(), format="XYXY", canvas_size=size_hw)
            truth.append(view.of(boxes))
        if mask is not None and mask.numel():
            truth.append(view.of(Mask(mask[None])))
        if self.auto_augment is not None:
            image, truth = auto_augment(self.auto_augment, image, truth, self._fill)
        if self.hide_and_seek:
            image = hide(image, self.hide_and_seek, self._fill)
        return Augmented(image, *_plain(truth))

    @cached_property
    def _fill(self) -> list[float]:
        return fill_colour(self.preprocessing, torch.uint8)

    def __call__(self, image: Tensor) -> Tensor:
        """(C, H, W) uint8 -> (len(mean), h, w) uint8, h x w being ``preprocessing.size``."""
        return self.apply(self.draw((image.shape[-2], image.shape[-1])), image).image


def hide(image: Tensor, probability: float, fill: list[float]) -> Tensor:
    """Hide each cell of a grid over the picture with a probability.

    Args:
        image: (C, h, w).
        probability: Of each of the ``HIDDEN_GRID`` x ``HIDDEN_GRID`` cells.
        fill: Per channel, in units of the image.
    """
    hidden = torch.rand(HIDDEN_GRID, HIDDEN_GRID) < probability
    rows, columns = (
        torch.arange(side) * HIDDEN_GRID // side for side in (image.shape[-2], image.shape[-1])
    )
    colour = torch.tensor(fill).to(image.dtype)[:, None, None]
    return torch.where(hidden[rows][:, columns], colour, image)


def _plain(truth: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes and mask as plain tensors, empty where there are none."""
    boxes_xyxy, mask = torch.empty(0, 4), torch.empty(0, 0, dtype=torch.uint8)
    for one in truth:
        if isinstance(one, BoundingBoxes):
            clipped = TF.clamp_bounding_boxes(one)  # rounding may have put them just outside
            boxes_xyxy = TF.sanitize_bounding_boxes(clipped, min_size=1.0)[0].as_subclass(Tensor)
        else:
            mask = one[0].as_subclass(Tensor)
    return boxes_xyxy, mask
