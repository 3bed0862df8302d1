"""Contact sheets of pictures of which nobody knows the truth: each with one line below it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from camtrain.errors import CamtrainValueError
from camtrain.visualize.text import INK, MUTED, PAPER, shorten, write

_TEXT_SIZE, _GAP = 14, 16


def gallery(
    pictures: Sequence[tuple[Image.Image, str, str]],
    *,
    title: str,
    columns: int = 5,
    tile: int = 224,
) -> Image.Image:
    """Pictures in a grid, read line by line, with two lines of text below each, as RGB.

    Args:
        pictures: One or more: the picture, what it shows, and where it comes from.
        title: One line.
        columns: Pictures side by side, at most as many as there are.
        tile: The square that a picture is shrunk or enlarged into, in pixels.

    Raises:
        CamtrainValueError: There is no picture or no column.
    """
    if not pictures or columns < 1:
        raise CamtrainValueError(
            f"A gallery needs at least 1 picture and 1 column, got {len(pictures)} and {columns}."
        )
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    line = _TEXT_SIZE + 6
    step_x, step_y, top = tile + _GAP, tile + 2 * line + _GAP, 3 * line
    sheet = Image.new("RGB", (columns * step_x + _GAP, top + rows * step_y), PAPER)
    room = sheet.width - 2 * _GAP
    write(sheet, shorten(title, room, 20), at=(_GAP, 2 * line), size=20)
    for number, (picture, text, source) in enumerate(pictures):
        left, upper = _GAP + number % columns * step_x, top + number // columns * step_y
        shown = thumbnail(picture, tile)
        sheet.paste(shown, (left + (tile - shown.width) // 2, upper + tile - shown.height))
        for depth, (words, color) in enumerate(((text, INK), (source, MUTED)), 1):
            at = (left, upper + tile + depth * line - 2)
            write(sheet, shorten(words, tile, _TEXT_SIZE), at=at, size=_TEXT_SIZE, color=color)
    return sheet


def thumbnail(picture: Image.Image, tile: int) -> Image.Image:
    """The picture with its longer side at ``tile`` pixels, its aspect kept."""
    scale = tile / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
