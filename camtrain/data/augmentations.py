"""What training does to a picture before the network sees it: a table of named augmentations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor
from torchvision.transforms import v2

from camtrain.data.transforms import INTERPOLATIONS, fit_channels, resize
from camtrain.errors import CamtrainValueError
from camtrain.preprocessing import Preprocessing

Augmentation = Callable[[Tensor], Tensor]  # (C, H, W) uint8 -> (len(mean), *size) uint8


def _none(preprocessing: Preprocessing) -> Augmentation:
    """What evaluation does: the resize alone."""
    return partial(resize, preprocessing=preprocessing)


def _flip(preprocessing: Preprocessing) -> Augmentation:
    """The resize; mirrored left-right half of the time."""
    return _sequence(_none(preprocessing), v2.RandomHorizontalFlip())


def _random_resized_crop(
    preprocessing: Preprocessing, *, scale: tuple[float, float]
) -> Augmentation:
    """A random part of the picture, of relative area ``scale``, warped to the size; mirrored."""
    crop = v2.RandomResizedCrop(
        preprocessing.size,
        scale=scale,
        interpolation=INTERPOLATIONS[preprocessing.interpolation],
        antialias=True,
    )
    channels = partial(fit_channels, channels=len(preprocessing.mean))
    return _sequence(channels, crop, v2.RandomHorizontalFlip())


def _paper(preprocessing: Preprocessing) -> Augmentation:
    """A random cut of the picture at 8/7 of the size (256 for 224); mirrored."""
    height, width = (round(side * 8 / 7) for side in preprocessing.size)
    larger = partial(resize, preprocessing=replace(preprocessing, size=(height, width)))
    return _sequence(larger, v2.RandomCrop(preprocessing.size), v2.RandomHorizontalFlip())


def _sequence(*steps: Augmentation) -> Augmentation:
    composed: Augmentation = v2.Compose(list(steps))
    return composed


AUGMENTATIONS: dict[str, Callable[[Preprocessing], Augmentation]] = {
    "none": _none,
    "flip": _flip,
    "light": partial(_random_resized_crop, scale=(0.5, 1.0)),
    "imagenet": partial(_random_resized_crop, scale=(0.08, 1.0)),
    "paper": _paper,
}


def augmentation(name: str, preprocessing: Preprocessing) -> Augmentation:
    """The named augmentation; it draws from torch's global random numbers, which the caller seeds.

    Args:
        name: A key of ``AUGMENTATIONS``.
        preprocessing: Its size, channels and interpolation are kept.

    Returns:
        A function from (C, H, W) uint8 to (len(mean), h, w) uint8, h x w being
        ``preprocessing.size``.

    Raises:
        CamtrainValueError: There is no such augmentation.
    """
    if name not in AUGMENTATIONS:
        raise CamtrainValueError(
            f"augment must be one of {', '.join(AUGMENTATIONS)}, got {name!r}."
        )
    return AUGMENTATIONS[name](preprocessing)
