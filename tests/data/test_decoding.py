"""Every kind of picture file becomes upright RGB."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camtrain.data import read_image
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError

RED_ON_TOP = np.zeros((6, 10, 3), np.uint8)
RED_ON_TOP[:3, :, 0] = 255
RED_ON_TOP[3:, :, 2] = 255


def stored(orientation: int, upright: Image.Image) -> Image.Image:
    """The pixels that a camera stores so that ``orientation`` turns them upright."""
    turn = Image.Transpose
    inverse = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    return upright.transpose(inverse[orientation]) if orientation in inverse else upright


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"turned.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    stored(orientation, Image.fromarray(pixels)).save(file, exif=exif, **options)
    assert torch.equal(read_image(file), torch.from_numpy(pixels).permute(2, 0, 1))


def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path: Path) -> None:
    file = tmp_path / "exif.jpg"
    Image.fromarray(RED_ON_TOP).save(file, exif=b"Exif\x00\x00nonsense")
    assert read_image(file).shape == (3, 6, 10)


def pictures() -> dict[str, tuple[Image.Image, str, tuple[int, int, int]]]:
    """Mode: a picture of one colour, the suffix to store it with, the colour it must be read as."""
    half_red = Image.new("RGBA", (10, 6), (255, 0, 0, 128))
    palette = Image.new("P", (10, 6), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    clear_palette = palette.copy()
    clear_palette.info["transparency"] = 1
    clear_gray = Image.new("L", (10, 6), 7)
    clear_gray.info["transparency"] = 7
    return {
        "RGB": (Image.new("RGB", (10, 6), (1, 2, 3)), "png", (1, 2, 3)),
        "RGBA": (half_red, "png", (255, 127, 127)),
        "LA": (Image.new("LA", (10, 6), (0, 0)), "png", (255, 255, 255)),
        "L": (Image.new("L", (10, 6), 77), "png", (77, 77, 77)),
        "L, one transparent value": (clear_gray, "png", (255, 255, 255)),
        "P": (palette, "png", (200, 100, 50)),
        "P, one transparent entry": (clear_palette, "png", (255, 255, 255)),
        "1": (Image.new("1", (10, 6), 1), "png", (255, 255, 255)),
        "16-bit gray": (Image.new("I;16", (10, 6), 25700), "png", (100, 100, 100)),
        "16-bit gray TIFF": (Image.new("I;16", (10, 6), 65535), "tif", (255, 255, 255)),
        "CMYK": (Image.new("CMYK", (10, 6), (0, 255, 255, 0)), "tif", (255, 0, 0)),
        "CMYK JPEG": (Image.new("CMYK", (10, 6), (0, 0, 0, 255)), "jpg", (0, 0, 0)),
        "YCbCr": (Image.new("YCbCr", (10, 6), (128, 128, 128)), "jpg", (128, 128, 128)),
    }


@pytest.mark.parametrize("kind", pictures())
def test_every_mode_becomes_rgb(tmp_path: Path, kind: str) -> None:
    image, suffix, colour = pictures()[kind]
    file = tmp_path / f"picture.{suffix}"
    image.save(file)
    expected = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 6, 10)
    assert torch.equal(read_image(file), expected)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (10, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CamtrainFileNotFoundError, match=r"none\.jpg does not exist"):
        read_image(tmp_path / "none.jpg")


@pytest.mark.parametrize("content", ["empty", "text", "truncated"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / f"{content}.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)).save(file)
    file.write_bytes({"empty": b"", "text": b"hello"}.get(content, file.read_bytes()[:900]))
    with pytest.raises(CamtrainValueError, match=f"{content}.jpg cannot be read"):
        read_image(file)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RED_ON_TOP).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(CamtrainValueError, match="decompression bomb"):
        read_image(tmp_path / "bomb.png")
