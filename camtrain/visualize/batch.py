"""A batch as a person sees it: the pictures with their boxes and names, in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.visualize.overlay import TRUE_BOX, draw_boxes, rgb_pixels
from camtrain.visualize.text import INK, MUTED, PAPER, shorten, write

_COLUMNS, _GAP, _TEXT = 5, 12, 16
_WIDTH = 1480  # of the whole picture, in pixels


def batch_sheet(
    images: Tensor, boxes_xyxy: Sequence[Tensor], names: Sequence[str], *, title: str
) -> Image.Image:
    """The pictures of a batch in rows of five, each with its boxes and its name below.

    Args:
        images: (B, C, h, w) uint8, C = 1 or 3.
        boxes_xyxy: B tensors (n, 4), half-open, in pixels of ``images``.
        names: B names.
        title: One line.

    Returns:
        RGB, 1480 pixels wide.

    Raises:
        CamtrainValueError: No picture, or not one set of boxes and one name for each.
    """
    if not len(images) or not len(images) == len(boxes_xyxy) == len(names):
        raise CamtrainValueError(
            "A sheet needs at least 1 picture, and boxes and a name for each, got "
            f"{len(images)} pictures, {len(boxes_xyxy)} sets of boxes, {len(names)} names."
        )
    tile = (_WIDTH - (_COLUMNS + 1) * _GAP) // _COLUMNS
    scale = tile / max(images.shape[-2:])
    height, width = (max(1, round(side * scale)) for side in images.shape[-2:])
    resample = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    rows, row_height = -(-len(images) // _COLUMNS), height + 2 * _TEXT + _GAP
    sheet = Image.new("RGB", (_WIDTH, 3 * _TEXT + rows * row_height), PAPER)
    title = shorten(title, _WIDTH - 2 * _GAP, _TEXT)
    write(sheet, title, at=(_GAP, 2 * _TEXT - 4), size=_TEXT, color=MUTED)
    factors = torch.tensor([width / images.shape[-1], height / images.shape[-2]] * 2)
    for place, (image, boxes, name) in enumerate(zip(images, boxes_xyxy, names, strict=True)):
        left = _GAP + place % _COLUMNS * (tile + _GAP)
        top = 3 * _TEXT + place // _COLUMNS * row_height
        shown = Image.fromarray(rgb_pixels(image)).resize((width, height), resample)
        sheet.paste(draw_boxes(shown, boxes.cpu() * factors, color=TRUE_BOX, width=2), (left, top))
        name = shorten(name, tile, _TEXT)
        write(sheet, name, at=(left, top + height + _TEXT + 2), size=_TEXT, color=INK)
    return sheet
