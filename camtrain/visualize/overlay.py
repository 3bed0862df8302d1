"""Heatmaps, boxes and words drawn on pictures, as PIL images."""

from __future__ import annotations

from functools import cache
from unicodedata import combining, normalize

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from camtrain.errors import CamtrainTypeError, CamtrainValueError, check_choice

Color = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (17, 24, 39)
MUTED: Color = (100, 108, 122)
COLORMAPS = {  # the first two are perceptually uniform
    "viridis": cv2.COLORMAP_VIRIDIS,
    "inferno": cv2.COLORMAP_INFERNO,
    "turbo": cv2.COLORMAP_TURBO,
    "jet": cv2.COLORMAP_JET,
}
TRUE_BOX: Color = (255, 255, 255)
PREDICTED_BOX: Color = (255, 92, 225)  # a pink that no colour map comes near

_OUTLINE = (20, 20, 20)


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
    pixels = rgb_pixels(image)
    return blend(pixels, heatmap_levels(heatmap, pixels.shape[:2]), colormap, opacity)


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
    limit = np.array(image.size * 2)
    boxes = boxes_xyxy.detach().cpu().double().numpy().clip(0, limit)
    boxes = boxes[(boxes[:, :2] < boxes[:, 2:]).all(axis=1)]
    low = np.minimum(boxes[:, :2].round(), limit[:2] - 1)
    high = np.maximum(boxes[:, 2:].round(), low + 1)
    picture, margin = image.convert("RGB"), (width + 1) // 2  # a copy in any case
    draw = ImageDraw.Draw(picture)
    for grow, paint in (
        (margin, _OUTLINE),
        (0, color),
    ):  # outlines first: they hide no coloured line
        corners = np.concatenate([low - grow, high + grow - 1], axis=1).astype(int)
        for x1, y1, x2, y2 in corners.tolist():
            thickness = width + 2 * grow
            if 2 * thickness > min(x2 - x1, y2 - y1):  # the outline would leave a small box
                draw.rectangle((x1, y1, x2, y2), fill=paint)
            else:
                draw.rectangle((x1, y1, x2, y2), outline=paint, width=thickness)
    return picture


def rgb_pixels(image: Image.Image | Tensor) -> NDArray[np.uint8]:
    """The picture as RGB, (H, W, 3)."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise CamtrainTypeError(f"image must be a PIL image or a uint8 tensor, got {kind}.")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise CamtrainValueError(
            f"image must be (C, H, W) with C = 1 or 3, got {tuple(image.shape)}."
        )
    return np.ascontiguousarray(image.cpu().expand(3, -1, -1).permute(1, 2, 0).numpy())


def heatmap_levels(heatmap: Tensor, image_hw: tuple[int, ...]) -> NDArray[np.float32]:
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
def palette(colormap: str) -> NDArray[np.uint8]:
    """The 256 colours of a colour map as RGB, (256, 3)."""
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8), _opencv_colormap(colormap))
    return np.ascontiguousarray(bgr.reshape(256, 3)[:, ::-1], dtype=np.uint8)


def _opencv_colormap(colormap: str) -> int:
    """OpenCV's number of a colour map."""
    check_choice("colormap", colormap, COLORMAPS)
    return COLORMAPS[colormap]


def blend(
    pixels: NDArray[np.uint8], levels: NDArray[np.float32], colormap: str, opacity: float
) -> Image.Image:
    """The colours of the levels, (H, W), over the pixels, (H, W, 3)."""
    if not 0 <= opacity <= 1:
        raise CamtrainValueError(f"opacity must lie in [0, 1], got {opacity}.")
    colors = cv2.applyColorMap(np.rint(levels * 255).astype(np.uint8), _opencv_colormap(colormap))
    colors = cv2.cvtColor(colors, cv2.COLOR_BGR2RGB)  # (H, W, 3)
    return Image.fromarray(np.asarray(cv2.addWeighted(pixels, 1 - opacity, colors, opacity, 0)))


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which is the same on every machine, with its size in pixels."""
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> int:
    """Pixels from a text's origin to the right end of its ink."""
    return int(font(size).getbbox(text)[2])


def shorten(text: str, width: int, size: int) -> str:
    """The text on one line; an ellipsis replaces its middle if it is wider than ``width`` pixels.

    Accents are dropped: Pillow's own font draws little beyond ASCII.
    """
    bare = (letter for letter in normalize("NFD", text) if not combining(letter))
    text = short = " ".join("".join(bare).split())
    length = len(text)
    while length and text_width(short, size) > width:
        length -= 1
        short = (
            f"{text[: length - length // 2].rstrip()}…{text[len(text) - length // 2 :].lstrip()}"
        )
    return short


def write(
    image: Image.Image, text: str, *, at: tuple[int, int], size: int, color: Color = INK
) -> int:
    """Write one line whose baseline starts ``at`` (x, y); return the x at which its ink ends."""
    ImageDraw.Draw(image).text(at, text, color, font(size), anchor="ls")
    return at[0] + text_width(text, size)
