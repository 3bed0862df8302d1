"""Contact sheets: pictures under the heatmaps of their true and their predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.visualize.grid import grid, resize_longer_side
from camtrain.visualize.overlay import (
    INK,
    MUTED,
    PAPER,
    PREDICTED_BOX,
    TRUE_BOX,
    Color,
    blend,
    draw_boxes,
    heatmap_levels,
    palette,
    rgb_pixels,
    shorten,
    text_width,
    write,
)

_PADDING, _RIGHT, _WRONG, _SWATCH = (241, 243, 246), (21, 128, 61), (185, 28, 28), (120, 126, 136)


@dataclass(frozen=True, eq=False)
class SheetRow:
    """A picture, its classes and their heatmaps. Each of its tiles is drawn once, when first used.

    Errors of ``overlay`` and ``draw_boxes`` are raised when the tiles are drawn. Boxes are
    half-open, in pixels of the image.

    Raises:
        CamtrainValueError: ``tile`` is out of range.
    """

    image: Image.Image | Tensor  # PIL image, or uint8 (C, H, W) with C = 1 or 3
    true_heatmap: Tensor  # of the true class, (H, W) in [0, 1]
    predicted_heatmap: Tensor  # of the predicted class, (H, W) in [0, 1]
    true_boxes_xyxy: Tensor  # (n, 4); (0, 4) where the truth is unknown
    predicted_boxes_xyxy: Tensor  # (n, 4), of `true_heatmap`
    true_name: str
    predicted_name: str
    true_score: float  # score of the true class, in [0, 1]
    predicted_score: float  # score of the predicted class, in [0, 1]
    is_right: bool  # whether the prediction is right; names cannot tell: ImageNet has two cranes
    colormap: str = "viridis"  # see `overlay`
    opacity: float = 0.5  # see `overlay`
    tile: int = 256  # longer side of a tile, 224 to 512; text and spaces of sheets grow with it

    def __post_init__(self) -> None:
        """Check the size at once."""
        check_tile(self.tile)

    @property
    def scale(self) -> float:
        """Pixels of a tile for a pixel of the picture."""
        return self._picture_and_scale[1]

    @property
    def picture_tile(self) -> Image.Image:
        """The picture alone, enlarged or shrunk to the size of a tile; RGB without boxes."""
        return self._picture_and_scale[0]

    @cached_property
    def true_tile(self) -> Image.Image:
        """The picture under the heatmap of its true class, RGB without boxes."""
        return self._blend(self.true_heatmap)

    @cached_property
    def predicted_tile(self) -> Image.Image:
        """The picture under the heatmap of its predicted class, RGB without boxes."""
        return self._blend(self.predicted_heatmap)

    @cached_property
    def _pixels(self) -> np.ndarray:
        return rgb_pixels(self.image)

    @cached_property
    def _picture_and_scale(self) -> tuple[Image.Image, float]:
        return resize_longer_side(Image.fromarray(self._pixels), self.tile)

    def tile_of(self, heatmap: Tensor) -> np.ndarray:
        """A heatmap as large as ``picture_tile``, (h, w) float32 in [0, 1]."""
        levels = Image.fromarray(heatmap_levels(heatmap, self._pixels.shape[:2]))
        return np.asarray(levels.resize(self.picture_tile.size, Image.Resampling.BILINEAR))

    def _blend(self, heatmap: Tensor) -> Image.Image:
        """The picture under a heatmap, as large as ``picture_tile``."""
        smooth = self.tile_of(heatmap)
        return blend(np.asarray(self.picture_tile), smooth, self.colormap, self.opacity)


def check_tile(tile: int) -> None:
    """Raise CamtrainValueError unless a tile's size lies between 224 and 512 pixels."""
    if not 224 <= tile <= 512:
        raise CamtrainValueError(f"tile must lie between 224 and 512 pixels, got {tile}.")


def panel(row: SheetRow) -> Image.Image:
    """A picture of three tiles side by side, and below them the names and scores.

    The tiles show the picture with its true boxes, the true class's heatmap with true and predicted
    boxes, and the predicted class's heatmap.
    """

    def boxed(image: Image.Image, boxes_xyxy: Tensor, color: Color) -> Image.Image:
        return draw_boxes(image, boxes_xyxy * row.scale, color=color, width=row.tile // 128)

    true = boxed(row.true_tile, row.true_boxes_xyxy, TRUE_BOX)
    tiles = (
        boxed(row.picture_tile, row.true_boxes_xyxy, TRUE_BOX),
        boxed(true, row.predicted_boxes_xyxy, PREDICTED_BOX),
        row.predicted_tile,
    )
    unit, height = row.tile // 32, row.picture_tile.height
    canvas = Image.new("RGB", (3 * row.tile + 2 * unit, height + 7 * unit), PAPER)
    for number, image in enumerate(tiles):
        left = number * (row.tile + unit)
        canvas.paste(_PADDING, (left, 0, left + row.tile, height))
        canvas.paste(image, (left + (row.tile - image.width) // 2, 0))
    _draw_caption(canvas, row, top=height, unit=unit)
    return canvas


def contact_sheet(
    rows: Sequence[SheetRow],
    *,
    title: str,
    columns: int = 2,
    box_name: str = "predicted box",
) -> Image.Image:
    """All panels in a grid, read line by line, under a title and a legend.

    Args:
        rows: One picture or more, of one colour map and tile.
        title: One line, such as "epoch 3".
        columns: Panels side by side, at most as many as there are rows.
        box_name: What the legend calls the predicted boxes, such as "predicted box at 0.2".

    Raises:
        CamtrainValueError: There is no row or no column.
    """
    if not rows or columns < 1:
        raise CamtrainValueError(
            f"A contact sheet needs at least 1 row and 1 column, got {len(rows)} and {columns}."
        )
    panels, tile = [panel(row) for row in rows], rows[0].tile
    unit, columns = tile // 32, min(columns, len(rows))
    margin = 4 * unit
    margins = (margin, 15 * unit, margin, margin)
    sheet, corners = grid(panels, columns, gaps=(margin, 3 * unit), margins=margins)
    short_title = shorten(title, sheet.width - 2 * margin, 3 * unit)
    write(sheet, short_title, at=(margin, 5 * unit), size=3 * unit)
    _draw_legend(sheet, rows[0].colormap, box_name, at=(margin, 9 * unit), unit=unit)
    for left, _ in corners[:columns]:
        headings = ("picture", "heatmap of true class", "heatmap of predicted class")
        for number, heading in enumerate(headings):
            at = (left + number * (tile + unit), 14 * unit)
            write(sheet, heading, at=at, size=2 * unit, color=MUTED)
    return sheet


def _draw_caption(canvas: Image.Image, row: SheetRow, *, top: int, unit: int) -> None:
    """Write names and scores in two lines, and whether the prediction is right."""
    size, indent = 2 * unit, text_width("predicted", 2 * unit) + 2 * unit
    verdict, color = ("right", _RIGHT) if row.is_right else ("wrong", _WRONG)
    badge = text_width(verdict, size) + 2 * unit
    lines = (
        ("true", row.true_name, f"{row.true_score:.2f}", INK),
        ("predicted", row.predicted_name, f"{row.predicted_score:.2f}", color),
    )
    x, y = 0, top
    for label, name, score, ink in lines:
        y += 3 * unit
        room = canvas.width - indent - text_width(score, size) - badge - 4 * unit
        write(canvas, label, at=(0, y), size=size, color=MUTED)
        x = write(canvas, shorten(name, room, size), at=(indent, y), size=size, color=ink)
        x = write(canvas, score, at=(x + 2 * unit, y), size=size, color=MUTED) + 2 * unit
    corners = (x, y - 2 * unit, x + badge - 1, y + 3 * unit // 4)
    ImageDraw.Draw(canvas).rounded_rectangle(corners, radius=unit, fill=color)
    write(canvas, verdict, at=(x + unit, y), size=size, color=PAPER)


def _draw_legend(
    sheet: Image.Image, colormap: str, box_name: str, *, at: tuple[int, int], unit: int
) -> None:
    """Write what the colours mean, in one line on the baseline ``at``."""
    (x, y), size, top = at, 2 * unit, at[1] - 7 * unit // 4
    x = write(sheet, "heatmap 0", at=at, size=size) + unit
    bar = Image.fromarray(palette(colormap)[None]).resize((16 * unit, 2 * unit))
    sheet.paste(bar, (x, top))
    x = write(sheet, "1", at=(x + bar.width + unit, y), size=size)
    for name, color in (("true box", TRUE_BOX), (box_name, PREDICTED_BOX)):
        swatch = Image.new("RGB", (3 * unit, 2 * unit), _SWATCH)
        box = torch.tensor([[2, 2, swatch.width - 2, swatch.height - 2]])
        sheet.paste(draw_boxes(swatch, box, color=color, width=unit // 4), (x + 4 * unit, top))
        x = write(sheet, name, at=(x + 8 * unit, y), size=size)
