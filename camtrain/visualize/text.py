"""Words on pictures, in Pillow's own font, which is the same on every machine."""

from __future__ import annotations

from functools import cache
from unicodedata import combining, normalize

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (17, 24, 39)
MUTED: Color = (100, 108, 122)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, its size in pixels."""
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> int:
    """Pixels from a text's origin to the right end of its ink."""
    return int(font(size).getbbox(text)[2])


def shorten(text: str, width: int, size: int) -> str:
    """The text in one line; wider than ``width`` pixels, it loses its middle to an ellipsis.

    Accents are dropped: Pillow's own font, the same on every machine, draws little beyond ASCII.
    """
    bare = (letter for letter in normalize("NFD", text) if not combining(letter))
    text = shown = " ".join("".join(bare).split())
    length = len(text)
    while length and text_width(shown, size) > width:
        length -= 1
        shown = (
            f"{text[: length - length // 2].rstrip()}…{text[len(text) - length // 2 :].lstrip()}"
        )
    return shown


def write(
    image: Image.Image, text: str, *, at: tuple[int, int], size: int, color: Color = INK
) -> int:
    """Write one line, its baseline starting ``at`` (x, y), and return where its ink ends."""
    ImageDraw.Draw(image).text(at, text, color, font(size), anchor="ls")
    return at[0] + text_width(text, size)
