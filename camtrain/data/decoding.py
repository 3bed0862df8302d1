"""Picture files of every kind to RGB: the one decoder of training, evaluation and prediction."""

from __future__ import annotations

import importlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError, one_line
from camtrain.files import open_regular

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
_UNDONE_BY = {6: 8, 8: 6}  # the others undo themselves
_TRANSPOSED = (5, 6, 7, 8)  # orientations that swap height and width
# The same for tensors: along which sides a picture is turned around, after it was transposed.
_TURNED_DIMS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
_FLAGS = {  # by which factor a JPEG can be decoded smaller
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR_RGB,
}
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # none of these is part of the pixels


def _optional_suffixes() -> tuple[str, ...]:
    """The suffixes of the formats that only some installations read; their readers are loaded."""
    suffixes = (".avif",) if features.check("avif") else ()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
        return (*suffixes, ".heic", ".heif")
    return suffixes


IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"),
    *_optional_suffixes(),
)
# Pillow's names of the formats that are read, whatever a file is called. It starts Ghostscript for
# another one, PostScript.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM"),
    *("JPEG2000", "TGA", "PCX", "SGI", "ICO"),
    *(name for name in ("AVIF", "HEIF") if f".{name.lower()}" in IMAGE_SUFFIXES),
)
MOST_PIXELS = 178_956_970  # of a picture; Pillow's own limit
# How pictures that nothing here reads can be read or replaced.
SUFFIX_ADVICE = {
    **dict.fromkeys((".heic", ".heif"), "pip install pillow-heif"),
    ".avif": "pip install -U pillow",
    ".svg": "draw it as a PNG",
}


class DamagedImageError(CamtrainValueError):
    """A file that is no picture, or not a whole one, or too large to be decoded."""


class Decoded(NamedTuple):
    """A decoded file; pixel i of ``image`` covers [factor i, factor (i + 1)) of the picture."""

    image: Tensor  # (3, h, w) uint8, upright; h = ceil(H / factor), w = ceil(W / factor)
    size_hw: tuple[int, int]  # (H, W) of the whole picture, upright
    factor: int  # 1, 2, 4 or 8


def read_image(
    path: str | os.PathLike[str], *, data: bytes | None = None, exif: bool = True
) -> Tensor:
    """Decode a picture file.

    Args:
        path: A file of any of the usual formats, whatever its suffix; of an animation, the first
            frame is taken.
        data: The content of the file where it is in memory already; ``path`` only names it then.
        exif: Apply the EXIF orientation, so that the picture stands upright.

    Returns:
        (3, H, W) uint8, in no particular memory format.

    Raises:
        CamtrainFileNotFoundError: There is no such file.
        DamagedImageError: The file is no picture, damaged (a truncated file is, were it only by
            its last row), or absurdly large (a decompression bomb, refused before it is decoded).
    """
    return decode_image(path, data=data, exif=exif).image


def decode_image(
    path: str | os.PathLike[str],
    *,
    data: bytes | None = None,
    exif: bool = True,
    shrink: Callable[[tuple[int, int]], float] | None = None,
) -> Decoded:
    """Decode a picture file, perhaps smaller than it is, which for large JPEGs is much faster.

    Other arguments and the errors are those of ``read_image``.

    ``shrink`` says of the (H, W) of the upright picture by how much it may be reduced. A JPEG is
    then decoded by the largest factor of 8, 4, 2 up to that, averaging factor x factor pixels;
    other files are decoded whole.
    """
    try:
        if data is None:
            with open_regular(path) as file:
                data = file.read()
        content = BytesIO(data)
        with open_picture(content) as image:
            if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
                pixels_at = content.tell()  # where Pillow has stopped
                orientation = _orientation(image) if exif else None
                width, height = image.size
                size_hw = (width, height) if orientation in _TRANSPOSED else (height, width)
                most = shrink(size_hw) if shrink is not None else 1.0
                factor = _factor(most, size_hw, is_turned=orientation in _UPRIGHT)
                pixels = _decode_jpeg(image, data, pixels_at, factor, orientation)
                return Decoded(pixels, size_hw, factor)
            # Not asked for its orientation yet: a PNG is read for that, and its damage passed over.
            rgb = to_rgb(image, exif=exif)
            pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
            return Decoded(pixels, (rgb.height, rgb.width), 1)
    except FileNotFoundError:
        raise CamtrainFileNotFoundError(
            f"The image {os.fspath(path)} does not exist; check the path."
        ) from None
    except Exception as error:  # what a damaged file makes the decoders raise cannot be known
        # Pillow would name the object in memory, another one each time.
        reason = getattr(error, "strerror", None) or one_line(error, with_type=False)
        if isinstance(error, Image.DecompressionBombError):
            reason += " PIL.Image.MAX_IMAGE_PIXELS or camtrain predict --max_pixels allow more"
        if isinstance(error, UnidentifiedImageError):
            suffix = Path(path).suffix.lower()
            advice = None if suffix in IMAGE_SUFFIXES else SUFFIX_ADVICE.get(suffix)
            reason = "cannot identify image file" + (f": {advice}" if advice else "")
        raise DamagedImageError(
            f"The image {os.fspath(path)} cannot be read ({reason}); "
            "replace the file or take it out of the data."
        ) from error


def open_picture(file: Path | IO[bytes]) -> Image.Image:
    """``PIL.Image.open`` for the formats that are read here; no file starts a program."""
    return Image.open(file, formats=_FORMATS)


@contextmanager
def pixel_limit(most: int) -> Iterator[None]:
    """Let pictures of up to so many pixels be decoded, and no larger ones."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = most // 2  # Pillow warns above, and refuses above twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def to_rgb(image: Image.Image, *, exif: bool = True) -> Image.Image:
    """An RGB picture of 8 bits, from a picture of any mode.

    Transparency is composited on white; ``exif`` turns the picture upright. Gray of more bits is
    scaled, not clipped, to 8 bits: integers from 0..65535; floats from 0..1, 0..255 or 0..65535,
    the first of them that holds their values.

    Raises:
        ValueError: The gray values lie outside, or would all become the same.
    """
    # Loading turns TIFF files upright, so the orientation is asked for afterwards, or undone.
    stored_orientation = _orientation(image) if image.format == "TIFF" and not exif else None
    image.load()
    undoing = _UNDONE_BY.get(stored_orientation or 1, stored_orientation)
    orientation = _orientation(image) if exif else undoing
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_gray_of_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _gray_of_8_bits(gray: NDArray[Any]) -> NDArray[np.uint8]:
    """Gray values, (H, W), integers or floats, in 8 bits; see ``to_rgb``."""
    low, high = gray.min(), gray.max()
    if gray.dtype.kind == "f":
        top = next((top for top in (1, 255, 65535) if low >= 0 and high <= top), None)
        if top is None:
            raise ValueError(
                f"gray values from {low:g} to {high:g}, expected 0..1, 0..255 or 0..65535"
            )
        bits = np.rint(gray * (255 / top)).astype(np.uint8)
    else:
        bits = ((gray.astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8)
    if low < high and bits.min() == bits.max():
        raise ValueError(
            f"gray values from {low} to {high} are the same in 8 bits, in which 0..65535 becomes "
            "0..255; save it in 8 bits"
        )
    return bits


def _decode_jpeg(
    image: Image.Image, data: bytes, pixels_at: int, factor: int, orientation: int | None
) -> Tensor:
    """The pixels of an opened JPEG of 8-bit gray or colour, (3, h, w), upright.

    They begin somewhat after the byte ``pixels_at``.
    """
    rgb = _decode_intact(image, data, pixels_at, factor)
    if rgb is None:  # Pillow says whether the file is damaged, and how
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        rgb = np.array(image.convert("RGB"))
    decoded = torch.from_numpy(rgb).permute(2, 0, 1)
    if orientation in _TRANSPOSED:
        decoded = decoded.transpose(1, 2)
    return decoded.flip(_TURNED_DIMS[orientation]) if orientation in _TURNED_DIMS else decoded


def _decode_intact(
    image: Image.Image, data: bytes, pixels_at: int, factor: int
) -> NDArray[Any] | None:
    """The pixels, (h, w, 3), of an opened JPEG; None where it may be damaged.

    OpenCV is up to twice as fast as Pillow, with the same pixels, but does not report damage: so
    the first marker among the pixels must be the end of the file.
    """
    if "progressive" in image.info:  # pixels in several parts, with markers between them
        is_intact = data.endswith(b"\xff\xd9")
    else:
        marker = _MARKER.search(data, pixels_at)
        is_intact = marker is not None and data[marker.start() :] == b"\xff\xd9"
    if not is_intact:
        return None
    flags = _FLAGS[factor] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    if decoded is None or factor == 1:
        return decoded
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _factor(most: float, size_hw: tuple[int, int], *, is_turned: bool) -> int:
    """The factor by which a JPEG is decoded smaller: the largest up to ``most``.

    Where a side is no multiple of it, the last pixel covers less than the others. A turned picture
    would begin with that one, so its sides must be multiples.
    """
    allowed = (
        factor
        for factor in _FLAGS
        if factor <= most and not (is_turned and any(side % factor for side in size_hw))
    )
    return next(allowed, 1)


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; None where there is none, or where the EXIF block is damaged."""
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # see `decode_image`
        return None


def upright_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) of a picture after its EXIF orientation is applied; only its header is read.

    Raises:
        DamagedImageError: The header cannot be read.
    """
    try:
        with open_regular(path) as content, open_picture(content) as image:
            is_turned = image.format != "TIFF" and _orientation(image) in _TRANSPOSED
            return image.size if is_turned else image.size[::-1]
    except Exception as error:  # see `decode_image`
        raise DamagedImageError(
            f"The image {os.fspath(path)} cannot be read ({one_line(error, with_type=False)}); "
            "replace the file or take it out of the data."
        ) from error


def read_mask(file: Path) -> NDArray[np.bool_]:
    """Read the file of a mask: (H, W), True where it is not black."""
    return read_gray(file) > 0


def read_gray(file: Path) -> NDArray[np.uint8]:
    """Read the gray values, (H, W), of the file of a mask."""
    try:
        with open_regular(file) as content, open_picture(content) as image:
            return np.asarray(image.convert("L"))
    except FileNotFoundError:
        raise CamtrainFileNotFoundError(
            f"The mask {file} does not exist; check the data folder."
        ) from None
    except Exception as error:  # see `decode_image`
        raise CamtrainValueError(
            f"The mask {file} cannot be read ({one_line(error, with_type=False)}); replace the "
            "file."
        ) from error
