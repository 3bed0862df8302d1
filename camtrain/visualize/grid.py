"""Pictures in a grid: galleries, batches, and pictures over time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.visualize.overlay import (
    INK,
    MUTED,
    PAPER,
    TRUE_BOX,
    Color,
    draw_boxes,
    font,
    rgb_pixels,
    shorten,
    text_width,
    write,
)

_GRAY: Color = (125, 133, 144)  # can be read on white and on black
_BATCH_COLUMNS, _BATCH_WIDTH = 5, 1480  # pictures side by side, and pixels of the sheet


def grid(
    cells: Sequence[Image.Image],
    columns: int,
    *,
    gaps: tuple[int, int],
    margins: tuple[int, int, int, int],
) -> tuple[Image.Image, list[tuple[int, int]]]:
    """Place pictures in rows on a white canvas; it is transparent if they are RGBA.

    Args:
        cells: The pictures, row by row: one or more, all of one width and mode. A row is as high as
            its highest cell.
        columns: Cells side by side.
        gaps: Pixels between columns and between rows.
        margins: Pixels at the left, at the top, at the right and at the bottom.

    Returns:
        The canvas, and the upper left corner of each cell on it.
    """
    left, top, right, bottom = margins
    step, corners = cells[0].width + gaps[0], []
    for first in range(0, len(cells), columns):
        line = cells[first : first + columns]
        corners += [(left + column * step, top) for column in range(len(line))]
        top += max(cell.height for cell in line) + gaps[1]
    size = (left + columns * step - gaps[0] + right, top - gaps[1] + bottom)
    background = PAPER if cells[0].mode == "RGB" else (0, 0, 0, 0)
    canvas = Image.new(cells[0].mode, size, background)
    for cell, corner in zip(cells, corners, strict=True):
        canvas.paste(cell, corner)
    return canvas, corners


def gallery(
    pictures: Sequence[tuple[Image.Image, str, str]],
    *,
    title: str,
    columns: int = 5,
    tile: int = 224,
) -> Image.Image:
    """Pictures in a grid with two lines of text below each, as RGB.

    Args:
        pictures: One or more: the picture, what it shows, and where it comes from.
        title: One line of text.
        columns: Pictures side by side, at least 1; fewer if there are fewer pictures.
        tile: Side of the square that each picture is shrunk or enlarged to fit, in pixels.

    Raises:
        CamtrainValueError: There is no picture or no column.
    """
    if not pictures or columns < 1:
        raise CamtrainValueError(
            f"A gallery needs at least 1 picture and 1 column, got {len(pictures)} and {columns}."
        )
    size, gap = 14, 16
    line = size + 6
    cells = []
    for picture, _, _ in pictures:
        cell, small = Image.new("RGB", (tile, tile), PAPER), thumbnail(picture, tile)
        cell.paste(small, ((tile - small.width) // 2, tile - small.height))
        cells.append(cell)
    below = 2 * line + gap
    margins = (gap, 3 * line, gap, below)
    sheet, corners = grid(cells, min(columns, len(cells)), gaps=(gap, below), margins=margins)
    write(sheet, shorten(title, sheet.width - 2 * gap, 20), at=(gap, 2 * line), size=20)
    for (_, *texts), (left, top) in zip(pictures, corners, strict=True):
        for depth, (text, color) in enumerate(zip(texts, (INK, MUTED), strict=True), 1):
            at = (left, top + tile + depth * line - 2)
            write(sheet, shorten(text, tile, size), at=at, size=size, color=color)
    return sheet


def thumbnail(picture: Image.Image, tile: int) -> Image.Image:
    """The picture shrunk or enlarged to ``tile`` pixels along its longer side."""
    scale = tile / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def resize_longer_side(picture: Image.Image, longer_side: int) -> tuple[Image.Image, float]:
    """The picture at another size, and its scale; from a scale of 2 on, pixels become squares."""
    scale = longer_side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    resample = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return picture.resize(size, resample), scale


def batch_sheet(
    images: Tensor, boxes_xyxy: Sequence[Tensor], names: Sequence[str], *, title: str
) -> Image.Image:
    """The pictures of a batch in rows of five, each with its boxes and its name below.

    Args:
        images: (B, C, h, w) uint8, C = 1 or 3.
        boxes_xyxy: B tensors (n, 4), half-open, in pixels of ``images``.
        names: B names.
        title: One line of text.

    Returns:
        RGB, 1480 pixels wide.

    Raises:
        CamtrainValueError: There is no picture, or not one set of boxes and one name for each.
    """
    if not len(images) or not len(images) == len(boxes_xyxy) == len(names):
        raise CamtrainValueError(
            "A sheet needs at least 1 picture, and boxes and a name for each, got "
            f"{len(images)} pictures, {len(boxes_xyxy)} sets of boxes, {len(names)} names."
        )
    size, gap = 16, 12
    tile, spare = divmod(_BATCH_WIDTH - (_BATCH_COLUMNS + 1) * gap, _BATCH_COLUMNS)
    cells = []
    for image, boxes in zip(images, boxes_xyxy, strict=True):
        resized, _ = resize_longer_side(Image.fromarray(rgb_pixels(image)), tile)
        factors = torch.tensor(
            [resized.width / image.shape[-1], resized.height / image.shape[-2]] * 2
        )
        boxed = draw_boxes(resized, boxes.cpu() * factors, color=TRUE_BOX, width=2)
        cell = Image.new("RGB", (tile, resized.height), PAPER)
        cell.paste(boxed, (0, 0))
        cells.append(cell)
    below = 2 * size + gap
    margins = (gap, 3 * size, gap + spare, below)
    sheet, corners = grid(cells, _BATCH_COLUMNS, gaps=(gap, below), margins=margins)
    title = shorten(title, _BATCH_WIDTH - 2 * gap, size)
    write(sheet, title, at=(gap, 2 * size - 4), size=size, color=MUTED)
    for cell, (left, top), name in zip(cells, corners, names, strict=True):
        at = (left, top + cell.height + size + 2)
        write(sheet, shorten(name, tile, size), at=at, size=size, color=INK)
    return sheet


def timeline(
    rows: Sequence[Sequence[Image.Image]], headings: Sequence[str], *, tile: int = 128
) -> Image.Image:
    """A row for each picture and a column for each moment, as RGBA with a transparent background.

    Args:
        rows: Each row has a picture for each heading.
        headings: Texts above the columns, of a line or more.
        tile: Side of the square that each picture is shrunk or enlarged to fit, in pixels.

    Raises:
        CamtrainValueError: There is no picture, or a row has not one for each heading.
    """
    if not rows or not headings or any(len(row) != len(headings) for row in rows):
        raise CamtrainValueError(
            f"Every row needs a picture for each of the {len(headings)} headings, got "
            f"{[len(row) for row in rows]}."
        )
    size, gap, lines = 15, 6, max(heading.count("\n") + 1 for heading in headings)
    cells = []
    for picture in (picture for row in rows for picture in row):
        small = thumbnail(picture.convert("RGB"), tile)
        cell = Image.new("RGBA", (tile, small.height), (0, 0, 0, 0))
        cell.paste(small, ((tile - small.width) // 2, 0))
        cells.append(cell)
    canvas, corners = grid(
        cells, len(headings), gaps=(gap, gap), margins=(0, lines * 2 * size, 0, 0)
    )
    draw = ImageDraw.Draw(canvas)
    for heading, (left, _) in zip(headings, corners, strict=False):
        for number, line in enumerate(heading.split("\n")):
            text = shorten(line, tile, size)
            at = (left + (tile - text_width(text, size)) // 2, (2 * number + 1) * size)
            draw.text(at, text, (*_GRAY, 255), font(size), anchor="ls")
    return canvas
