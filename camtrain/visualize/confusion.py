"""A confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.visualize.text import INK, MUTED, PAPER, Color, shorten, text_width, write

_TEXT, _PADDING, _NAME = 14, 8, 160  # pixels: of letters, around them, and the widest name
_FULL: Color = (0, 92, 173)  # a whole row


def confusion_picture(confusion: Tensor, names: Sequence[str]) -> Image.Image:
    """The counts in a grid, the darker the larger their part of the true class, as RGB.

    Args:
        confusion: (K, K) int, pictures by true class (rows) and predicted class (columns), K >= 1.
        names: K class names.

    Raises:
        CamtrainValueError: The matrix is not (K, K) for K names.
    """
    count = len(names)
    if not count or confusion.shape != (count, count):
        raise CamtrainValueError(
            f"confusion must be (K, K), a row and a column for each of the {count} names, got "
            f"{tuple(confusion.shape)}."
        )
    shown = [shorten(name, _NAME, _TEXT) for name in names]
    cell = max(text_width(str(int(confusion.max())), _TEXT) + 2 * _PADDING, 2 * _TEXT)
    margin = max(text_width(name, _TEXT) for name in shown) + 2 * _PADDING
    left, top = margin + _TEXT + _PADDING, margin + _TEXT + _PADDING
    side = count * cell
    picture = Image.new("RGB", (left + side + _PADDING, top + side + _PADDING), PAPER)
    write(picture, "true", at=(_PADDING, top + _TEXT), size=_TEXT, color=MUTED)
    write(picture, "predicted", at=(left, _TEXT + 2), size=_TEXT, color=MUTED)
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    for i, name in enumerate(shown):
        baseline = top + i * cell + (cell + _TEXT) // 2 - 2
        write(picture, name, at=(left - _PADDING - text_width(name, _TEXT), baseline), size=_TEXT)
        picture.paste(_upright(name, margin, cell), (left + i * cell, top - margin))
        for j in range(count):
            corner = (left + j * cell, top + i * cell)
            share, number = float(shares[i, j]), int(confusion[i, j])
            color = _mixed(share)
            picture.paste(color, (*corner, corner[0] + cell - 1, corner[1] + cell - 1))
            if number:
                text = str(number)
                at = (corner[0] + (cell - text_width(text, _TEXT)) // 2, baseline)
                write(picture, text, at=at, size=_TEXT, color=PAPER if share > 0.5 else INK)
    return picture


def _upright(name: str, length: int, width: int) -> Image.Image:
    """A name that is read from the bottom to the top, (length high, width wide)."""
    line = Image.new("RGB", (length, width), PAPER)
    write(line, name, at=(_PADDING, (width + _TEXT) // 2 - 2), size=_TEXT)
    return line.transpose(Image.Transpose.ROTATE_90)


def _mixed(share: float) -> Color:
    """Between a very light gray and the full colour."""
    empty = torch.tensor([243.0, 245.0, 247.0])
    red, green, blue = empty.lerp(torch.tensor(_FULL).float(), share).round().int().tolist()
    return red, green, blue
