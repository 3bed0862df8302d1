"""Heatmaps, boxes and names drawn on pictures, and contact sheets of them, as PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from unicodedata import combining, normalize

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from camtrain.errors import CamtrainTypeError, CamtrainValueError

Color = tuple[int, int, int]

COLORMAPS = {  # the first two are perceptually uniform
    "viridis": cv2.COLORMAP_VIRIDIS,
    "inferno": cv2.COLORMAP_INFERNO,
    "turbo": cv2.COLORMAP_TURBO,
    "jet": cv2.COLORMAP_JET,
}
TRUE_BOX: Color = (255, 255, 255)
PREDICTED_BOX: Color = (255, 92, 225)  # a pink that no colour map comes near

_PAPER, _PADDING, _INK, _MUTED = (255, 255, 255), (241, 243, 246), (17, 24, 39), (100, 108, 122)
_RIGHT, _WRONG, _OUTLINE, _SWATCH = (21, 128, 61), (185, 28, 28), (20, 20, 20), (120, 126, 136)


@dataclass(frozen=True, eq=False)
class WatchedPicture:
    """One picture with what the network sees in it.

    Attributes:
        image: PIL image, or uint8 (C, H, W) with C = 1 or 3.
        true_heatmap: (H, W) in [0, 1], of the true class.
        predicted_heatmap: (H, W) in [0, 1], of the predicted class.
        true_boxes_xyxy: (n, 4) half-open pixels of the image; (0, 4) where the truth is unknown.
        predicted_boxes_xyxy: (n, 4) half-open pixels of the image, found in ``true_heatmap``.
        true_name: Name of the true class.
        predicted_name: Name of the predicted class.
        true_score: Score of the true class, in [0, 1].
        predicted_score: Score of the predicted class, in [0, 1].
        is_right: Whether the prediction is right. Names cannot tell: ImageNet has two cranes.
    """

    image: Image.Image | Tensor
    true_heatmap: Tensor
    predicted_heatmap: Tensor
    true_boxes_xyxy: Tensor
    predicted_boxes_xyxy: Tensor
    true_name: str
    predicted_name: str
    true_score: float
    predicted_score: float
    is_right: bool


def overlay(
    image: Image.Image | Tensor,
    heatmap: Tensor,
    *,
    colormap: str = "viridis",
    opacity: float = 0.5,
) -> Image.Image:
    """Blend the colours of a heatmap over its picture, as RGB of the picture's size.

    Args:
        image: PIL image, or uint8 (C, H, W) with C = 1 or 3.
        heatmap: (H, W) in [0, 1], of the image's size.
        colormap: viridis, inferno, turbo or jet.
        opacity: 0 shows the image alone, 1 the heatmap alone.

    Raises:
        CamtrainTypeError: The image is neither a PIL image nor a uint8 tensor.
        CamtrainValueError: A shape, a range, the opacity or the name of the colour map is wrong.
    """
    pixels = _pixels(image)
    return _blend(pixels, _levels(heatmap, pixels.shape[:2]), colormap, opacity)


def draw_boxes(
    image: Image.Image, boxes_xyxy: Tensor, *, color: Color, width: int | None = None
) -> Image.Image:
    """Draw boxes on an RGB copy of the picture, in a colour between two dark outlines.

    The coloured line covers the outermost pixels inside the box, so x1 and x2 - 1 are coloured.
    What lies outside the picture is cut off; a box without area there is not drawn.

    Args:
        image: PIL image, H x W.
        boxes_xyxy: (n, 4) half-open pixels of the image; fractions are rounded.
        color: RGB, 0 to 255.
        width: Of the coloured line, in pixels; by default 1/128 of the longer side.

    Raises:
        CamtrainValueError: The boxes are not (n, 4) finite numbers.
    """
    if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4 or not boxes_xyxy.isfinite().all():
        raise CamtrainValueError(
            "boxes_xyxy must be (n, 4) finite pixels, torch.zeros(0, 4) for none, "
            f"got shape {tuple(boxes_xyxy.shape)}: {boxes_xyxy.tolist()!s:.80}."
        )
    width = width or max(1, round(max(image.size) / 128))
    limit = torch.tensor(image.size * 2)
    boxes = boxes_xyxy.detach().cpu().double().clamp(min=0).minimum(limit)
    boxes = boxes[(boxes[:, :2] < boxes[:, 2:]).all(dim=1)]
    low = boxes[:, :2].round().minimum(limit[:2] - 1)
    high = boxes[:, 2:].round().maximum(low + 1)
    drawn, margin = image.convert("RGB").copy(), (width + 1) // 2
    draw = ImageDraw.Draw(drawn)
    for grow, paint in ((margin, _OUTLINE), (0, color)):  # no outline hides another box's colour
        for x1, y1, x2, y2 in torch.cat([low - grow, high + grow - 1], dim=1).int().tolist():
            thickness = width + 2 * grow
            if 2 * thickness > min(x2 - x1, y2 - y1):  # the outline would leave a small box
                draw.rectangle((x1, y1, x2, y2), fill=paint)
            else:
                draw.rectangle((x1, y1, x2, y2), outline=paint, width=thickness)
    return drawn


def panel(
    row: WatchedPicture, *, colormap: str = "viridis", opacity: float = 0.5, tile: int = 256
) -> Image.Image:
    """Three tiles side by side, and below them the names and scores.

    The tiles show the picture with its true boxes, the true class's heatmap with true and predicted
    boxes, and the predicted class's heatmap. Small pictures are enlarged, big ones shrunk.

    Args:
        row: The picture.
        colormap: As for ``overlay``.
        opacity: As for ``overlay``.
        tile: Longer side of a picture, 224 to 512 pixels; text and spaces grow with it.

    Raises:
        CamtrainTypeError: As for ``overlay``.
        CamtrainValueError: As for ``overlay`` and ``draw_boxes``, or ``tile`` is out of range.
    """
    tiles = _tiles(row, colormap, opacity, tile)
    unit, height = tile // 32, tiles[0].height
    canvas = Image.new("RGB", (3 * tile + 2 * unit, height + 7 * unit), _PAPER)
    for number, image in enumerate(tiles):
        left = number * (tile + unit)
        canvas.paste(_PADDING, (left, 0, left + tile, height))
        canvas.paste(image, (left + (tile - image.width) // 2, 0))
    _draw_caption(canvas, row, top=height, unit=unit)
    return canvas


def contact_sheet(
    rows: Sequence[WatchedPicture],
    *,
    title: str,
    columns: int = 2,
    colormap: str = "viridis",
    opacity: float = 0.5,
    tile: int = 256,
) -> Image.Image:
    """All panels in a grid, read line by line, under a title and a legend.

    Args:
        rows: One picture or more.
        title: One line, such as "epoch 3".
        columns: Panels side by side, at most as many as there are rows.
        colormap: As for ``overlay``.
        opacity: As for ``overlay``.
        tile: As for ``panel``.

    Raises:
        CamtrainTypeError: As for ``panel``.
        CamtrainValueError: As for ``panel``, or there is no row or no column.
    """
    if not rows or columns < 1:
        raise CamtrainValueError(
            f"A contact sheet needs at least 1 row and 1 column, got {len(rows)} and {columns}."
        )
    panels = [panel(row, colormap=colormap, opacity=opacity, tile=tile) for row in rows]
    unit, columns = tile // 32, min(columns, len(rows))
    margin, step = 4 * unit, panels[0].width + 4 * unit
    lines = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    heights = [max(shown.height for shown in line) + 3 * unit for line in lines]
    sheet = Image.new("RGB", (margin + columns * step, 16 * unit + sum(heights)), _PAPER)
    title = _shorten(title, sheet.width - 2 * margin, 3 * unit)
    _write(sheet, title, at=(margin, 5 * unit), size=3 * unit)
    _draw_legend(sheet, colormap, at=(margin, 9 * unit), unit=unit)
    for index, shown in enumerate(panels):
        left, top = margin + index % columns * step, 15 * unit + sum(heights[: index // columns])
        sheet.paste(shown, (left, top))
        headings = ("picture", "heatmap of true class", "heatmap of predicted class")
        for number, heading in enumerate(headings if index < columns else ()):
            at = (left + number * (tile + unit), 14 * unit)
            _write(sheet, heading, at=at, size=2 * unit, color=_MUTED)
    return sheet


def _pixels(image: Image.Image | Tensor) -> NDArray[np.uint8]:
    """The picture as RGB, (H, W, 3)."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        found = getattr(image, "dtype", type(image).__name__)
        raise CamtrainTypeError(f"image must be a PIL image or a uint8 tensor, got {found}.")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise CamtrainValueError(
            f"image must be (C, H, W) with C = 1 or 3, got {tuple(image.shape)}."
        )
    return np.ascontiguousarray(image.cpu().expand(3, -1, -1).permute(1, 2, 0).numpy())


def _levels(heatmap: Tensor, image_hw: tuple[int, ...]) -> NDArray[np.float32]:
    """The heatmap as an array, (H, W), checked against its picture."""
    if tuple(heatmap.shape) != image_hw:
        raise CamtrainValueError(
            f"heatmap must be of its image's size (H, W) = {image_hw}, got {tuple(heatmap.shape)}."
        )
    levels: NDArray[np.float32] = heatmap.detach().float().cpu().numpy()
    if not (levels.min() >= 0 and levels.max() <= 1):  # NaN fails too
        raise CamtrainValueError(
            f"heatmap must lie in [0, 1], got {levels.min():.4g} to {levels.max():.4g}; "
            "camtrain.heatmaps normalizes class maps."
        )
    return levels


@cache
def _palette(colormap: str) -> NDArray[np.uint8]:
    """The 256 colours of a colour map as RGB, (256, 3)."""
    if colormap not in COLORMAPS:
        raise CamtrainValueError(
            f"colormap must be one of {', '.join(COLORMAPS)}, got {colormap!r}."
        )
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8), COLORMAPS[colormap])
    return np.ascontiguousarray(bgr.reshape(256, 3)[:, ::-1], dtype=np.uint8)


def _blend(
    pixels: NDArray[np.uint8], levels: NDArray[np.float32], colormap: str, opacity: float
) -> Image.Image:
    if not 0 <= opacity <= 1:
        raise CamtrainValueError(f"opacity must lie in [0, 1], got {opacity}.")
    colors = _palette(colormap)[np.rint(levels * 255).astype(np.uint8)]  # (H, W, 3)
    return Image.fromarray(np.asarray(cv2.addWeighted(pixels, 1 - opacity, colors, opacity, 0)))


def _tiles(
    row: WatchedPicture, colormap: str, opacity: float, tile: int
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Picture, heatmap of the true class and of the predicted class, all of one size."""
    if not 224 <= tile <= 512:
        raise CamtrainValueError(f"tile must lie between 224 and 512 pixels, got {tile}.")
    original = _pixels(row.image)
    height, width, _ = original.shape
    scale = tile / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resample = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    picture = Image.fromarray(original).resize(size, resample)

    def colored(heatmap: Tensor) -> Image.Image:
        levels = Image.fromarray(_levels(heatmap, (height, width)))
        smooth = np.asarray(levels.resize(size, Image.Resampling.BILINEAR))
        return _blend(np.asarray(picture), smooth, colormap, opacity)

    def boxed(image: Image.Image, boxes_xyxy: Tensor, color: Color) -> Image.Image:
        return draw_boxes(image, boxes_xyxy * scale, color=color, width=tile // 128)

    true_tile = boxed(colored(row.true_heatmap), row.true_boxes_xyxy, TRUE_BOX)
    return (
        boxed(picture, row.true_boxes_xyxy, TRUE_BOX),
        boxed(true_tile, row.predicted_boxes_xyxy, PREDICTED_BOX),
        colored(row.predicted_heatmap),
    )


def _draw_caption(canvas: Image.Image, row: WatchedPicture, *, top: int, unit: int) -> None:
    """Names and scores in two lines as wide as the canvas, and whether the prediction is right."""
    size, indent = 2 * unit, _text_width("predicted", 2 * unit) + 2 * unit
    verdict, color = ("right", _RIGHT) if row.is_right else ("wrong", _WRONG)
    badge = _text_width(verdict, size) + 2 * unit
    lines = (
        ("true", row.true_name, f"{row.true_score:.2f}", _INK),
        ("predicted", row.predicted_name, f"{row.predicted_score:.2f}", color),
    )
    x, y = 0, top
    for label, name, score, ink in lines:
        y += 3 * unit
        room = canvas.width - indent - _text_width(score, size) - badge - 4 * unit
        _write(canvas, label, at=(0, y), size=size, color=_MUTED)
        x = _write(canvas, _shorten(name, room, size), at=(indent, y), size=size, color=ink)
        x = _write(canvas, score, at=(x + 2 * unit, y), size=size, color=_MUTED) + 2 * unit
    corners = (x, y - 2 * unit, x + badge - 1, y + 3 * unit // 4)
    ImageDraw.Draw(canvas).rounded_rectangle(corners, radius=unit, fill=color)
    _write(canvas, verdict, at=(x + unit, y), size=size, color=_PAPER)


def _draw_legend(sheet: Image.Image, colormap: str, *, at: tuple[int, int], unit: int) -> None:
    """What the colours mean, in one line on the baseline ``at``."""
    (x, y), size, top = at, 2 * unit, at[1] - 7 * unit // 4
    x = _write(sheet, "heatmap 0", at=at, size=size) + unit
    bar = Image.fromarray(_palette(colormap)[None]).resize((16 * unit, 2 * unit))
    sheet.paste(bar, (x, top))
    x = _write(sheet, "1", at=(x + bar.width + unit, y), size=size)
    for name, color in (("true box", TRUE_BOX), ("predicted box", PREDICTED_BOX)):
        swatch = Image.new("RGB", (3 * unit, 2 * unit), _SWATCH)
        box = torch.tensor([[2, 2, swatch.width - 2, swatch.height - 2]])
        sheet.paste(draw_boxes(swatch, box, color=color, width=unit // 4), (x + 4 * unit, top))
        x = _write(sheet, name, at=(x + 8 * unit, y), size=size)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text_width(text: str, size: int) -> int:
    """Pixels from a text's origin to the right end of its ink."""
    return int(_font(size).getbbox(text)[2])


def _shorten(text: str, width: int, size: int) -> str:
    """The text in one line; wider than ``width`` pixels, it loses its middle to an ellipsis.

    Accents are dropped: Pillow's own font, the same on every machine, draws little beyond ASCII.
    """
    bare = (letter for letter in normalize("NFD", text) if not combining(letter))
    text = shown = " ".join("".join(bare).split())
    kept = len(text)
    while kept and _text_width(shown, size) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
    return shown


def _write(
    image: Image.Image, text: str, *, at: tuple[int, int], size: int, color: Color = _INK
) -> int:
    """Write one line, its baseline starting ``at`` (x, y), and return where its ink ends."""
    ImageDraw.Draw(image).text(at, text, color, _font(size), anchor="ls")
    return at[0] + _text_width(text, size)
