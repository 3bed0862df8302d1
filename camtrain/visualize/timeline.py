"""Pictures over time: a row for each picture, a column for each moment."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from camtrain.errors import CamtrainValueError
from camtrain.visualize.gallery import thumbnail
from camtrain.visualize.text import Color, font, shorten, text_width

_TEXT_SIZE, _GAP = 15, 6
_GRAY: Color = (125, 133, 144)  # can be read on white and on black


def timeline(
    rows: Sequence[Sequence[Image.Image]], headings: Sequence[str], *, tile: int = 128
) -> Image.Image:
    """Pictures in a grid under their headings, as RGBA with nothing behind them.

    Args:
        rows: Each with a picture for each heading.
        headings: Of the columns.
        tile: The square that a picture is shrunk or enlarged into, in pixels.

    Raises:
        CamtrainValueError: There is no picture, or a row has not one for each heading.
    """
    if not rows or not headings or any(len(row) != len(headings) for row in rows):
        raise CamtrainValueError(
            f"Every row needs a picture for each of the {len(headings)} headings, got "
            f"{[len(row) for row in rows]}."
        )
    scaled = [[thumbnail(one.convert("RGB"), tile) for one in row] for row in rows]
    heights = [max(one.height for one in row) + _GAP for row in scaled]
    size = (len(headings) * (tile + _GAP) - _GAP, 2 * _TEXT_SIZE + sum(heights) - _GAP)
    canvas = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for column, heading in enumerate(headings):
        text = shorten(heading, tile, _TEXT_SIZE)
        left = column * (tile + _GAP) + (tile - text_width(text, _TEXT_SIZE)) // 2
        draw.text((left, _TEXT_SIZE), text, (*_GRAY, 255), font(_TEXT_SIZE), anchor="ls")
        for row, pictures in enumerate(scaled):
            top = 2 * _TEXT_SIZE + sum(heights[:row])
            one = pictures[column]
            canvas.paste(one, (column * (tile + _GAP) + (tile - one.width) // 2, top))
    return canvas
