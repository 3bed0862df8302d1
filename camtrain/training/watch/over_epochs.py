"""Some watched pictures over the epochs of a training, in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from camtrain.maps import picture_heatmaps
from camtrain.training.watch.choice import Watched
from camtrain.visualize import PREDICTED_BOX, TRUE_BOX, draw_boxes, overlay, timeline
from camtrain.visualize.report import unpacked_map

MOST_PICTURES = 5
MOST_EPOCHS = 6


def over_epochs(
    pictures: Sequence[Watched],
    looks: Mapping[int, Sequence[Mapping[str, Any] | None]],
    colormap: str,
) -> Image.Image:
    """The heatmaps of the true classes, with boxes, a column for each epoch.

    Args:
        pictures: The watched pictures; the first five with a class are shown.
        looks: By epoch, what was seen in each, see ``Report.looks``.
        colormap: See ``camtrain.visualize.overlay``.
    """
    shown = [place for place, one in enumerate(pictures) if one.labels][:MOST_PICTURES]
    rows = [
        [
            _picture(pictures[place]),
            *(_seen(pictures[place], seen[place], colormap) for seen in looks.values()),
        ]
        for place in shown
    ]
    return timeline(rows, ["picture", *(f"epoch {epoch}" for epoch in looks)])


def _picture(one: Watched) -> Image.Image:
    height, width = one.size_hw
    pixels = one.shown.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels)
    factor = max(1, 128 // max(height, width))  # small pictures keep their pixels
    return image.resize((width * factor, height * factor), Image.Resampling.NEAREST)


def _seen(one: Watched, look: Mapping[str, Any] | None, colormap: str) -> Image.Image:
    picture = _picture(one)
    if look is None:  # it was not watched yet
        return picture
    true = look["true"]
    size_hw = (picture.height, picture.width)
    heat = picture_heatmaps(unpacked_map(true["map"])[None], one.preprocessing, size_hw)[0]
    scale = torch.tensor([picture.width, picture.height] * 2)
    drawn = overlay(picture, heat, colormap=colormap)
    found: Tensor = torch.tensor(true["boxes"]).reshape(-1, 4) * scale
    truth = one.boxes_xyxy * (picture.height / one.size_hw[0])
    for boxes, color in ((truth, TRUE_BOX), (found, PREDICTED_BOX)):
        drawn = draw_boxes(drawn, boxes, color=color)
    return drawn
