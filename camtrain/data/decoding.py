"""Picture files of every kind to RGB: the one decoder of training, evaluation and prediction."""

from __future__ import annotations

import os
import struct
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | os.PathLike[str], *, data: bytes | None = None) -> Tensor:
    """Decode a picture file.

    Args:
        path: A file of any format that Pillow reads; of an animation, the first frame is taken.
        data: The content of the file where it is in memory already; ``path`` only names it then.

    Returns:
        (3, H, W) uint8, upright: the EXIF orientation is applied.

    Raises:
        CamtrainFileNotFoundError: There is no such file.
        CamtrainValueError: The file is no picture, damaged, or absurdly large (a decompression
            bomb).
    """
    try:
        with Image.open(path if data is None else BytesIO(data)) as image:
            rgb = to_rgb(image)
    except FileNotFoundError:
        raise CamtrainFileNotFoundError(
            f"The image {os.fspath(path)} does not exist; check the path."
        ) from None
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise CamtrainValueError(
            f"The image {os.fspath(path)} cannot be read ({error}); "
            "replace the file or take it out of the data."
        ) from error
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright RGB picture of 8 bits, whatever the mode of the given one.

    Transparency is composited on white, 16-bit gray is scaled (not clipped) to 8 bits.
    """
    image.load()  # turns TIFF files upright, so the orientation is asked for afterwards
    orientation = _orientation(image)
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((gray.clip(0, 65535) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; a damaged EXIF block must not cost the picture."""
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except (OSError, ValueError, SyntaxError, struct.error):
        return None
