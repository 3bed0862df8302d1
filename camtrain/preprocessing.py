"""What happens to a picture on its way into the network, as plain values that travel with it."""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from camtrain.errors import CamtrainValueError, check_choice

ResizeMode = Literal["squash", "crop", "pad"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
ChannelOrder = Literal["rgb", "bgr"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the network's input: ``input = scale * picture + offset``, in pixels.

    Coordinates are continuous, with pixel i covering [i, i + 1). A negative offset means that a
    border of the picture was cropped away, a positive one that the input was padded.
    """

    scale_y: float
    scale_x: float
    offset_y: float
    offset_x: float


@dataclass(frozen=True)
class Preprocessing:
    """Resizing and normalization of pictures, the same in training, evaluation and inference.

    Attributes:
        size: (H, W) of the network's input, in pixels.
        mean: Per channel of the network's input, in units of [0, 1] pixels, subtracted.
        std: Per channel of the network's input, in units of [0, 1] pixels, divided by.
        interpolation: Filter of the resize; antialiased when shrinking.
        resize_mode: ``squash`` warps the whole picture to ``size``; ``crop`` keeps the aspect and
            cuts the centre; ``pad`` keeps the aspect and fills up with the mean colour.
        crop_pct: Only for ``crop``: the part of the resized short side that the cut keeps
            (0.875 is the usual 256 -> 224).
        channel_order: Of the network's input, and so of ``mean`` and ``std``. Pictures are always
            ``rgb``; for ``bgr`` their channels are turned around.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    resize_mode: ResizeMode = "squash"
    crop_pct: float = 1.0
    channel_order: ChannelOrder = "rgb"

    def __post_init__(self) -> None:
        """Check every value once, at the door; lists become tuples."""
        for name in ("size", "mean", "std"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        try:
            whole = [operator.index(side) for side in self.size]
            are_finite = all(map(math.isfinite, (*whole, *self.mean, *self.std, self.crop_pct)))
        except (TypeError, OverflowError):
            are_finite = False
        if not are_finite:
            raise CamtrainValueError(
                "size must be whole numbers, and mean, std and crop_pct finite numbers, got "
                f"size={self.size}, mean={self.mean}, std={self.std}, crop_pct={self.crop_pct!r}."
            )
        if len(self.size) != 2 or min(self.size) < 1:
            raise CamtrainValueError(f"size must be two positive numbers (H, W), got {self.size}.")
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise CamtrainValueError(
                "mean and std must have one number per channel, std above 0, "
                f"got mean={self.mean} and std={self.std}."
            )
        check_choice("interpolation", self.interpolation, get_args(Interpolation))
        check_choice("resize_mode", self.resize_mode, get_args(ResizeMode))
        check_choice("channel_order", self.channel_order, get_args(ChannelOrder))
        if not 0 < self.crop_pct <= 1:
            raise CamtrainValueError(f"crop_pct must lie in (0, 1], got {self.crop_pct}.")
        if self.channel_order == "bgr" and len(self.mean) != 3:
            raise CamtrainValueError(
                f"channel_order bgr needs a mean and std of 3 channels, got {len(self.mean)}; use "
                "rgb."
            )

    def resized_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of a picture after the resize, before the crop or the padding."""
        if self.resize_mode == "squash":
            return self.size
        ratios = (self.size[0] / image_hw[0], self.size[1] / image_hw[1])
        ratio = max(ratios) / self.crop_pct if self.resize_mode == "crop" else min(ratios)
        height, width = (max(1, round(side * ratio)) for side in image_hw)
        return height, width

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        """Where a picture of ``image_hw`` lies in the network's input."""
        height, width = self.resized_hw(image_hw)
        return Placement(
            scale_y=height / image_hw[0],
            scale_x=width / image_hw[1],
            offset_y=(self.size[0] - height) // 2,
            offset_x=(self.size[1] - width) // 2,
        )

    def to_dict(self) -> dict[str, Any]:
        """The plain values, for JSON and for checkpoints.

        The channel order ``rgb`` is left out: older versions of camtrain know no channel order, so
        they read such values and refuse those of ``bgr``.
        """
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
        if self.channel_order == "rgb":
            del values["channel_order"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``."""
        return cls(**values)
