"""A prediction of one picture: its classes and scores, and its heatmaps and boxes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from camtrain.data.transforms import prepare
from camtrain.errors import CamtrainError, CamtrainValueError
from camtrain.inference.pictures import Input, pixels_of
from camtrain.localization.boxes import boxes_from_heatmap
from camtrain.maps import HeatmapMethod, picture_heatmaps
from camtrain.preprocessing import Preprocessing


@dataclass(frozen=True, eq=False)
class Prediction:
    """The classes of one picture and where the network looks; all sequences are best class first.

    Attributes:
        names: Class names.
        scores: In [0, 1]: softmax over all K classes, or a sigmoid of each for multi-label.
        classes: Class numbers.
        heatmaps: (k, H, W), float32 in [0, 1], over the original picture.
        boxes: Per class (n, 4), int64, half-open xyxy in pixels of the original picture, largest
            first.
        threshold: Part of a heatmap's maximum that the pixels of a box exceed.
        size_hw: (H, W) of the original picture.
        image: (3, H, W) or (1, H, W), uint8, the original picture.
        path: Where the picture came from, or None.
        is_calibrated: Whether the threshold was calibrated on such maps of pictures with boxes.
    """

    names: tuple[str, ...]
    scores: tuple[float, ...]
    classes: tuple[int, ...]
    heatmaps: Tensor
    boxes: tuple[Tensor, ...]
    threshold: float
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
        threshold: Part of a heatmap's maximum that the pixels of a box exceed, in [0, 1).
        method: Normalization of the heatmaps, see ``camtrain.heatmaps``.
        is_calibrated: Whether the threshold was calibrated on such maps.
    """

    names: Sequence[str]
    preprocessing: Preprocessing
    threshold: float
    method: HeatmapMethod
    is_calibrated: bool

    def load(self, item: Input | CamtrainError) -> LoadedPicture:
        """Read and prepare a picture; raises what ``pixels_of`` raises."""
        image = pixels_of(item)
        path = str(item) if isinstance(item, (str, Path)) else None
        return LoadedPicture(path, image, prepare(image, self.preprocessing))

    def prediction(self, picture_and_output: tuple[LoadedPicture, PictureOutput]) -> Prediction:
        """The prediction of a picture, at its original size."""
        (path, image, _), (maps, scores, classes) = picture_and_output
        size_hw = (image.shape[1], image.shape[2])
        heat = picture_heatmaps(maps, self.preprocessing, size_hw, method=self.method).cpu()
        numbers = tuple(classes.tolist())
        return Prediction(
            names=tuple(self.names[number] for number in numbers),
            scores=tuple(scores.tolist()),
            classes=numbers,
            heatmaps=heat,
            boxes=tuple(boxes_from_heatmap(heatmap, self.threshold) for heatmap in heat),
            threshold=self.threshold,
            size_hw=size_hw,
            image=image if image.dtype == torch.uint8 else (image * 255).round().byte(),
            path=path,
            is_calibrated=self.is_calibrated,
        )


def class_numbers(classes: Sequence[int | str], names: Sequence[str]) -> Tensor:
    """The numbers of classes that are given by number or name, (k,) int64.

    Raises:
        CamtrainValueError: There are none, one is given twice, or one is unknown or the name of
            several classes.
    """
    if isinstance(classes, str) or not classes:
        raise CamtrainValueError(
            f"classes must be a list of at least one number or name, got {classes!r}."
        )
    numbers = [_class_number(key, names) for key in classes]
    if len(set(numbers)) < len(numbers):
        raise CamtrainValueError(f"classes must differ from one another, got {list(classes)}.")
    return torch.tensor(numbers)


def _class_number(key: int | str, names: Sequence[str]) -> int:
    if not isinstance(key, str):
        if not 0 <= key < len(names):
            raise CamtrainValueError(f"classes must lie in 0..{len(names) - 1}, got {key}.")
        return key
    numbers = [number for number, name in enumerate(names) if name == key]
    if len(numbers) == 1:
        return numbers[0]
    if numbers:
        raise CamtrainValueError(f"{key!r} is the name of the classes {numbers}; give a number.")
    near = ", ".join(difflib.get_close_matches(key, names)) or ", ".join(names[:5]) + ", ..."
    raise CamtrainValueError(f"There is no class {key!r}; the names next to it are {near}.")
