"""RandAugment and TrivialAugment of torchvision, with the truth carried along."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

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
