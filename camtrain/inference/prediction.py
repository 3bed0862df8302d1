"""What a network says about one picture and where it looks."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from camtrain.data import prepare
from camtrain.errors import CamtrainError, CamtrainValueError
from camtrain.inference.pictures import Input, pixels_of
from camtrain.localization.boxes import boxes_from_heatmap
from camtrain.maps import HeatmapMethod, picture_heatmaps
from camtrain.preprocessing import Preprocessing
from camtrain.visualize import overlay


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says about one picture and where it looks; every sequence is best class first.

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

    def overlay(self, rank: int = 0, *, colormap: str = "viridis") -> Image.Image:
        """The picture under the heatmap of the class at this rank, 0 being the best."""
        return overlay(self.image, self.heatmaps[rank], colormap=colormap)


class Picture(NamedTuple):
    """A picture that was read, (C, H, W), and prepared for the network, (c, h, w)."""

    path: str | None
    image: Tensor
    prepared: Tensor


class Seen(NamedTuple):
    """What the network says about a picture, best class first: (k, h, w), (k,), (k,)."""

    maps: Tensor
    scores: Tensor
    classes: Tensor


@dataclass(frozen=True)
class View:
    """How pictures go into the network, and how its maps come back as heatmaps and boxes.

    Attributes:
        names: K class names.
        preprocessing: From a picture to what the maps cover.
        threshold: Part of a heatmap's maximum that the pixels of a box exceed, in [0, 1).
        method: Normalization of the heatmaps, see ``camtrain.heatmaps``.
    """

    names: Sequence[str]
    preprocessing: Preprocessing
    threshold: float
    method: HeatmapMethod

    def read(self, item: Input | CamtrainError) -> Picture:
        """Read and prepare a picture; see ``pixels_of`` for what it raises."""
        image = pixels_of(item)
        path = str(item) if isinstance(item, (str, Path)) else None
        return Picture(path, image, prepare(image, self.preprocessing))

    def prediction(self, found: tuple[Picture, Seen]) -> Prediction:
        """What the network says about a picture, over the picture as it was given."""
        (path, image, _), (maps, scores, classes) = found
        size_hw = (image.shape[1], image.shape[2])
        heat = picture_heatmaps(maps, self.preprocessing, size_hw, method=self.method).cpu()
        numbers = tuple(classes.tolist())
        return Prediction(
            names=tuple(self.names[number] for number in numbers),
            scores=tuple(scores.tolist()),
            classes=numbers,
            heatmaps=heat,
            boxes=tuple(boxes_from_heatmap(one, self.threshold) for one in heat),
            threshold=self.threshold,
            size_hw=size_hw,
            image=image if image.dtype == torch.uint8 else (image * 255).round().byte(),
            path=path,
        )


def class_numbers(wanted: Sequence[int | str], names: Sequence[str]) -> Tensor:
    """The numbers of classes that are given by number or name, (k,) int64.

    Raises:
        CamtrainValueError: None is given, one twice, or one is unknown or the name of several.
    """
    if isinstance(wanted, str) or not wanted:
        raise CamtrainValueError(
            f"classes must be a list of at least one number or name, got {wanted!r}."
        )
    numbers = [_number(one, names) for one in wanted]
    if len(set(numbers)) < len(numbers):
        raise CamtrainValueError(f"classes must differ from one another, got {list(wanted)}.")
    return torch.tensor(numbers)


def _number(one: int | str, names: Sequence[str]) -> int:
    if not isinstance(one, str):
        if not 0 <= one < len(names):
            raise CamtrainValueError(f"classes must lie in 0..{len(names) - 1}, got {one}.")
        return one
    found = [number for number, name in enumerate(names) if name == one]
    if len(found) == 1:
        return found[0]
    if found:
        raise CamtrainValueError(f"{one!r} is the name of the classes {found}; give a number.")
    near = ", ".join(difflib.get_close_matches(one, names)) or ", ".join(names[:5]) + ", ..."
    raise CamtrainValueError(f"There is no class {one!r}; the names next to it are {near}.")
