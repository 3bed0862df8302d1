"""Every kind of picture file becomes upright RGB."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from camtrain.data import (
    IMAGE_SUFFIXES,
    DamagedImageError,
    decode_image,
    decoding,
    read_image,
    to_rgb,
)
from camtrain.data.decoding import read_mask
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


# Gray values: what is read, or said. Before: 0, 0 (of 0.5); clipped; 0; 0; 255; 0; 0.
GRAY: dict[str, tuple[np.ndarray, list[int] | str]] = {
    "floats of 0..1": (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
    "floats of 0..255": (np.array([[0.0, 7.6, 200.0]], np.float32), [0, 8, 200]),
    "floats of 16 bits": (np.array([[0.0, 257.0, 65535.0]], np.float32), [0, 1, 255]),
    "negative floats": (
        np.array([[-1.0, 0.5]], np.float32),
        "gray values from -1 to 0.5, expected",
    ),
    "no numbers": (np.array([[np.nan, 0.5]], np.float32), "gray values from nan to nan, expected"),
    "integers of 32 bits": (np.array([[0, 65535]], np.int32), [0, 255]),
    "large integers": (np.array([[70_000, 90_000]], np.int32), "from 70000 to 90000 are the same"),
    "dark integers": (np.array([[0, 100]], np.uint16), "from 0 to 100 are the same in 8 bits"),
    "one value": (np.array([[100, 100]], np.uint16), [0, 0]),
}


@pytest.mark.parametrize("name", GRAY)
def test_no_gray_picture_becomes_constant_without_a_word(name: str, tmp_path: Path) -> None:
    gray, expected = GRAY[name]
    Image.fromarray(gray).save(tmp_path / "a.tif")
    if isinstance(expected, str):
        with pytest.raises(DamagedImageError, match=expected):
            read_image(tmp_path / "a.tif")
    else:
        assert read_image(tmp_path / "a.tif")[0].tolist() == [expected]


def test_jfif_is_jpeg(tmp_path: Path) -> None:
    Image.fromarray(RED_ON_TOP).save(tmp_path / "a.jfif", format="JPEG")  # before: left out
    assert ".jfif" in IMAGE_SUFFIXES
    assert read_image(tmp_path / "a.jfif").shape == (3, 6, 10)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (10, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif")[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_a_picture_and_its_damage_is_named(tmp_path: Path) -> None:
    assert ".avif" in IMAGE_SUFFIXES
    file = tmp_path / "a.avif"
    Image.fromarray(RED_ON_TOP).save(file, quality=100, subsampling="4:4:4")
    difference = read_image(file).int() - torch.from_numpy(RED_ON_TOP).permute(2, 0, 1)
    assert difference.abs().max() < 12
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedImageError, match=r"a\.avif cannot be read"):
        read_image(file)


def test_heic_is_a_picture_where_its_reader_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[int] = []
    reader = SimpleNamespace(register_heif_opener=lambda: registered.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", reader)
    assert {".heic", ".heif"} < {*decoding._optional_suffixes()}
    assert registered == [1]
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert ".heic" not in decoding._optional_suffixes()


def test_no_picture_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before: Pillow started Ghostscript for PostScript, whatever the file was called."""
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **_: started.append(args))
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\nshowpage\n%%EOF\n"
    for name in ("a.jpg", "a.eps"):
        (tmp_path / name).write_bytes(text)
        for read in (read_image, read_mask):
            with pytest.raises(CamtrainValueError, match="cannot identify image file"):
                read(tmp_path / name)
    assert started == []


@pytest.mark.parametrize("error", [KeyError("tile"), MemoryError(), IndexError("x" * 5000)])
def test_whatever_a_decoder_raises_is_the_damage_of_its_picture(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(RED_ON_TOP).save(tmp_path / "a.png")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(DamagedImageError, match=r"a\.png cannot be read") as raised:
        read_image(tmp_path / "a.png")
    assert len(str(raised.value)) < 600
    with pytest.raises(CamtrainValueError, match=r"a\.png cannot be read"):
        read_mask(tmp_path / "a.png")


def test_the_limit_of_pixels_can_be_chosen(tmp_path: Path) -> None:
    Image.fromarray(RED_ON_TOP).save(tmp_path / "a.png")  # 60 pixels
    with decoding.pixel_limit(60):
        read_image(tmp_path / "a.png")
    with (
        decoding.pixel_limit(58),
        pytest.raises(DamagedImageError, match=r"60 pixels.*58 pixels.*--max_pixels allow"),
    ):
        read_image(tmp_path / "a.png")
    assert 2 * (Image.MAX_IMAGE_PIXELS or 0) == decoding.MOST_PIXELS


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


def photograph(height: int, width: int) -> Image.Image:
    """Smooth colours with some noise, as a JPEG compresses them."""
    rng = np.random.default_rng(height)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray((smooth + rng.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8))


def by_pillow(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


KINDS = [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 30}]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_fast_decoder_gives_the_pixels_of_pillow(options: dict[str, Any], mode: str) -> None:
    """Both are built on libjpeg-turbo here; another build may round by a level or two."""
    data = jpeg(photograph(61, 83).convert(mode), **options)
    difference = read_image("a.jpg", data=data).int() - by_pillow(data).int()
    assert difference.abs().max() <= 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_a_jpeg_is_damaged_as_soon_as_pixels_are_missing(options: dict[str, Any]) -> None:
    data = jpeg(photograph(40, 56), **options)
    assert read_image("a.jpg", data=data).shape == (3, 40, 56)
    for missing in (*range(8, 60), len(data) // 2, len(data) - 20):
        with pytest.raises(DamagedImageError, match=r"a\.jpg cannot be read"):
            read_image("a.jpg", data=data[:-missing])


def test_damage_within_a_jpeg_is_judged_by_pillow() -> None:
    whole = jpeg(photograph(61, 83))
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(300, len(data), 3):
            data[place] = rng.integers(256)
        try:
            expected = by_pillow(bytes(data))
        except (OSError, SyntaxError, ValueError):
            with pytest.raises(DamagedImageError):
                read_image("a.jpg", data=bytes(data))
            outcomes.add("refused")
        else:
            assert torch.equal(read_image("a.jpg", data=bytes(data)), expected)
            outcomes.add("read")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_a_reduced_jpeg_is_the_average_of_the_whole_and_upright(orientation: int | None) -> None:
    upright = photograph(160, 232)
    options = {}
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    data = jpeg(stored(orientation or 1, upright), quality=95, **options)
    whole = decode_image("a.jpg", data=data)
    assert whole.image.shape == (3, 160, 232)
    for factor in (2, 4, 8):
        reduced = decode_image("a.jpg", data=data, shrink=lambda _, by=factor: by + 0.5)
        assert reduced.size_hw == (160, 232)
        assert reduced.factor == factor
        expected = torch.nn.functional.avg_pool2d(whole.image.float(), factor)
        assert reduced.image.shape == expected.shape
        assert (reduced.image - expected).abs().mean() < 2


def test_odd_sides_are_rounded_up_and_never_reduced_when_turned() -> None:
    data = jpeg(photograph(161, 235))
    reduced = decode_image("a.jpg", data=data, shrink=lambda size_hw: size_hw[0] / 40)
    assert (reduced.image.shape, reduced.size_hw) == ((3, 41, 59), (161, 235))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_image("a.jpg", data=jpeg(photograph(161, 235), exif=exif), shrink=lambda _: 8)
    assert (turned.image.shape, turned.factor) == ((3, 235, 161), 1)
    png = io.BytesIO()
    photograph(160, 232).save(png, "PNG")
    assert decode_image("a.png", data=png.getvalue(), shrink=lambda _: 8).factor == 1


def test_the_stored_pixels_can_be_asked_for() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(photograph(40, 56), exif=exif)
    assert read_image("a.jpg", data=data).shape == (3, 56, 40)
    assert read_image("a.jpg", data=data, exif=False).shape == (3, 40, 56)
    file = io.BytesIO()
    photograph(40, 56).save(file, "PNG", exif=exif)
    assert read_image("a.png", data=file.getvalue(), exif=False).shape == (3, 40, 56)


def test_a_jpeg_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(photograph(40, 56))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr("cv2.imdecode", None)
    with pytest.raises(DamagedImageError, match=r"a\.jpg.*decompression bomb"):
        read_image("a.jpg", data=data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_can_stay_as_it_is_stored(orientation: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.tif", exif=exif)
    stored = torch.from_numpy(pixels).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "a.tif", exif=False), stored)
    upright = read_image(tmp_path / "a.tif")
    assert upright.shape == ((3, 10, 6) if orientation > 4 else (3, 6, 10))
    assert torch.equal(upright, stored) == (orientation == 1)
