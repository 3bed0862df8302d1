"""A prediction of one picture: its classes and scores, and its heatmaps and boxes."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from camtrain.data.transforms import prepare
from camtrain.errors import CamtrainError, CamtrainValueError, one_line
from camtrain.inference.pictures import Input, StoredPicture, pixels_of
from camtrain.localization.boxes import boxes_from_heatmap
from camtrain.maps import HeatmapMethod, picture_heatmaps
from camtrain.preprocessing import Preprocessing
from camtrain.thresholds import Threshold


@dataclass(frozen=True, eq=False)
class Prediction:
    """The classes of one picture and where the network looks; all sequences are best class first.

    Attributes:
        names: Class names.
        scores: In [0, 1]: softmax over all K classes, or a sigmoid of each for multi-label.
        classes: Class numbers.
        heatmaps: (k, H, W), float32 in [0, 1], over ``image``.
        boxes: Per class (n, 4), int64, half-open xyxy in pixels of the original picture, largest
            first.
        threshold: Part of a heatmap's maximum that the pixels of a box exceed, or ``auto``.
        size_hw: (H, W) of the original picture.
        image: (3, H, W) or (1, H, W), uint8: the original picture, or one of at most the
            ``largest_side`` that was asked for.
        path: Where the picture came from, or None.
        is_calibrated: Whether the threshold was calibrated on such maps of pictures with boxes.
    """

    names: tuple[str, ...]
    scores: tuple[float, ...]
    classes: tuple[int, ...]
    heatmaps: Tensor
    boxes: tuple[Tensor, ...]
    threshold: Threshold
    size_hw: tuple[int, int]
    image: Tensor
    path: str | None
    is_calibrated: bool = False

    def overlay(self, rank: int = 0, *, colormap: str = "viridis") -> Image.Image:
        """The picture under the heatmap of the class at this rank, 0 being the best."""
        from camtrain.visualize import overlay  # late: predicting alone draws nothing

        return overlay(self.image, self.heatmaps[rank], colormap=colormap)


class LoadedPicture(NamedTuple):
    """A picture that was read, (C, H, W), and prepared for the network, (c, h, w)."""

    path: str | None
    size_hw: tuple[int, int]  # before it was perhaps made smaller
    image: Tensor
    prepared: Tensor


class PictureOutput(NamedTuple):
    """The network's output for a picture, best class first: (k, h, w), (k,), (k,)."""

    maps: Tensor
    scores: Tensor
    classes: Tensor


@dataclass(frozen=True)
class PredictionSettings:
    """How pictures go into the network, and how its maps become heatmaps and boxes.

    Attributes:
        names: K class names.
        preprocessing: From a picture to the network's input, which the maps cover.
        threshold: Part of a heatmap's maximum that the pixels of a box exceed, in [0, 1), or
            ``auto``.
        method: Normalization of the heatmaps, see ``camtrain.heatmaps``.
        is_calibrated: Whether the threshold was calibrated on such maps.
        largest_side: Larger pictures are made that large, in pixels, once the network's input is
            made of them; None leaves them.
        split_peaks: See ``split`` of ``boxes_from_heatmap``.
    """

    names: Sequence[str]
    preprocessing: Preprocessing
    threshold: Threshold
    method: HeatmapMethod
    is_calibrated: bool
    largest_side: int | None = None
    split_peaks: bool = False

    def load(self, item: Input | CamtrainError) -> LoadedPicture:
        """Read and prepare a picture; raises what ``pixels_of`` raises."""
        image = pixels_of(item)
        path = str(item) if isinstance(item, (str, Path, StoredPicture)) else None
        try:
            size_hw, prepared = (image.shape[1], image.shape[2]), prepare(image, self.preprocessing)
            longest = max(size_hw)
            if self.largest_side is not None and longest > self.largest_side:
                sides = [max(1, round(side * self.largest_side / longest)) for side in size_hw]
                image = TF.resize(image, sides)
        except Exception as error:  # such as too little memory
            raise _failure(path, error) from error
        return LoadedPicture(path, size_hw, image, prepared)

    def prediction(
        self, picture_and_output: tuple[LoadedPicture, PictureOutput]
    ) -> Prediction | CamtrainError:
        """The prediction of a picture, or why there is none."""
        try:
            return self._prediction(*picture_and_output)
        except Exception as error:  # such as too little memory
            return _failure(picture_and_output[0].path, error)

    def _prediction(self, picture: LoadedPicture, output: PictureOutput) -> Prediction:
        (path, size_hw, image, _), (maps, scores, classes) = picture, output
        size = (image.shape[1], image.shape[2])
        heat = picture_heatmaps(
            maps, self.preprocessing, size_hw, size=size, method=self.method
        ).cpu()
        boxes = (
            boxes_from_heatmap(heatmap, self.threshold, split=self.split_peaks) for heatmap in heat
        )
        numbers = tuple(classes.tolist())
        return Prediction(
            names=tuple(self.names[number] for number in numbers),
            scores=tuple(scores.tolist()),
            classes=numbers,
            heatmaps=heat,
            boxes=tuple(scaled_boxes(boxes_xyxy, size, size_hw) for boxes_xyxy in boxes),
            threshold=self.threshold,
            size_hw=size_hw,
            image=image if image.dtype == torch.uint8 else (image * 255).round().byte(),
            path=path,
            is_calibrated=self.is_calibrated,
        )


def scaled_boxes(boxes_xyxy: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Boxes (n, 4) of a picture of (H, W) on the same picture of another size, whole pixels."""
    if size == new_size:
        return boxes_xyxy
    (height, width), (new_height, new_width) = size, new_size
    scale = torch.tensor([new_width / width, new_height / height] * 2, dtype=torch.float64)
    return (boxes_xyxy * scale + 0.5).floor().long()  # a pixel stays one where it grows


def _failure(path: str | None, error: Exception) -> CamtrainError:
    """The error for a picture whose prediction fails."""
    if isinstance(error, CamtrainError):
        return error
    return CamtrainValueError(
        f"The picture {path or 'in memory'} cannot be predicted ({one_line(error)}); make it "
        "smaller or leave it out."
    )


def class_numbers(classes: Sequence[int | str] | Tensor, names: Sequence[str]) -> Tensor:
    """The numbers of classes that are given by number or name, (k,) int64.

    Args:
        classes: A list, a tensor or an array.
        names: Names of all classes.

    Raises:
        CamtrainValueError: There are none, one is given twice, or one is unknown or the name of
            several classes.
    """
    keys = classes.tolist() if isinstance(classes, (Tensor, np.ndarray)) else classes
    keys = list(keys) if isinstance(keys, Iterable) and not isinstance(keys, str) else []
    if not keys or not all(isinstance(key, (str, SupportsIndex)) for key in keys):
        raise CamtrainValueError(
            f"classes must be a list of at least one number or name, got {classes!r}."
        )
    numbers = [_class_number(key, names) for key in keys]
    if len(set(numbers)) < len(numbers):
        raise CamtrainValueError(f"classes must differ from one another, got {keys}.")
    return torch.tensor(numbers)


def _class_number(key: SupportsIndex | str, names: Sequence[str]) -> int:
    if not isinstance(key, str):
        number = operator.index(key)
        if not 0 <= number < len(names):
            raise CamtrainValueError(f"classes must lie in 0..{len(names) - 1}, got {key}.")
        return number
    numbers = [number for number, name in enumerate(names) if name == key]
    if len(numbers) == 1:
        return numbers[0]
    if numbers:
        raise CamtrainValueError(f"{key!r} is the name of the classes {numbers}; give a number.")
    near = ", ".join(difflib.get_close_matches(key, names)) or ", ".join(names[:5]) + ", ..."
    raise CamtrainValueError(f"There is no class {key!r}; the names next to it are {near}.")
