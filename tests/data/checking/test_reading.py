"""Reading every picture: the verdict is that of training, whoever reads."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camtrain.data import ClutteredDigits, ImageFolder, SourceOptions, make_sources, read_image
from camtrain.data.box_files import refuse_box
from camtrain.data.checking import reading
from camtrain.data.checking.reading import Record, examine, examine_all, format_of
from camtrain.data.source import SourcePicture
from camtrain.errors import CamtrainError

ORIENTATION = 0x0112


def photograph(height: int = 120, width: int = 200) -> Image.Image:
    """Smooth, so that its JPEG is like one of a camera."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 13, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **({"format": "JPEG"} | settings))
    return file.getvalue()


def one_class(root: Path, files: dict[str, bytes]) -> ImageFolder:
    """The files as the class a of train, beside a class b."""
    for name, data in files.items():
        path = root / "train" / "a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for folder in ("train/b", "val/a", "val/b"):
        (root / folder).mkdir(parents=True)
        photograph(8, 9).save(root / folder / "0.png")
    return ImageFolder(root, "train")


def test_a_sound_picture(tmp_path: Path) -> None:
    source = one_class(tmp_path, {"1.jpg": encoded(photograph())})
    (tmp_path / "boxes.csv").write_text("path,xmin,ymin,xmax,ymax\ntrain/a/1.jpg,0,0,200,120\n")
    record = examine(ImageFolder(tmp_path, "train"), 0)
    assert record == Record(size_hw=(120, 200), pixels=record.pixels, format="JPEG", boxes=1)
    assert examine(source, 0) == record._replace(boxes=0)


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"format": "PNG"}])
def test_what_training_cannot_read_is_unreadable_and_nothing_else(
    settings: dict[str, object], tmp_path: Path
) -> None:
    """Cut off anywhere, or with one bit flipped: the verdict is that of the decoder of training."""
    whole = encoded(photograph(), **settings)
    rng = np.random.default_rng(1)
    files = {f"cut{length:06d}.jpg": whole[:length] for length in rng.integers(1, len(whole), 12)}
    for number, place in enumerate(rng.integers(0, len(whole), 12)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        files[f"flipped{number}.jpg"] = bytes(flipped)
    source = one_class(tmp_path, files)
    verdicts = {"cut": [], "flipped": []}
    for index, path in enumerate(source.paths[:-1]):
        try:
            read_image(path)
            is_readable = True
        except CamtrainError:
            is_readable = False
        record = examine(source, index)
        assert (record.error == "") == is_readable == bool(record.pixels)
        verdicts["cut" if "cut" in path else "flipped"].append(is_readable)
    assert not any(verdicts["cut"])
    if settings.get("format") == "PNG":  # has a checksum
        assert not all(verdicts["flipped"])


def test_empty_and_foreign_files(tmp_path: Path) -> None:
    source = one_class(tmp_path, {"1.jpg": b"", "2.jpg": b"GET / HTTP/1.0", "3.jpg": b"\0" * 99})
    for index, error in enumerate(("the file has 0 bytes", *["cannot identify image file"] * 2)):
        record = examine(source, index)
        refusal = (
            f"The image {source.paths[index]} cannot be read (cannot identify image file); "
            "replace the file or take it out of the data."
        )
        assert record == Record(error=error, is_empty=index == 0, refusal=refusal, is_damaged=True)
    (tmp_path / "train/a/2.jpg").unlink()
    missing = examine(source, 1)
    assert "does not exist" in missing.error == missing.refusal
    assert not missing.is_damaged


def test_a_reason_is_the_same_each_time() -> None:
    class Broken(ClutteredDigits):
        def read(self, index: int) -> SourcePicture:
            read_image("a.jpg", data=b"no picture")
            raise AssertionError

    assert examine(Broken("val", length=1), 0).error == "cannot identify image file"


def test_the_size_is_the_upright_one_and_boxes_are_held_against_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    source = one_class(tmp_path, {"1.jpg": encoded(photograph(120, 200), exif=exif)})
    rows = ["0,0,120,200", "0,0,121,200", "0,0,120,203", "130,0,150,20"]
    lines = [f"train/a/1.jpg,{row}" for row in rows]
    (tmp_path / "boxes.csv").write_text("\n".join(["path,xmin,ymin,xmax,ymax", *lines]))
    source = ImageFolder(tmp_path, "train")
    record = examine(source, 0)
    assert record.size_hw == (200, 120)
    assert record.boxes == 4
    assert [beyond for _, beyond in record.off_boxes] == [1, 3, 30]
    assert record.off_boxes[1][0] == "box 0,0,120,203 reaches 3 px outside the picture of 120x200"


class OddBoxes(ClutteredDigits):
    """Digits whose boxes have no area, or begin before the picture."""

    def read(self, index: int) -> SourcePicture:
        """As drawn, but for the box."""
        boxes = torch.tensor([[5, 6, 5, 9], [-2, 3, 4, 5], [1, 9, 4, 9]])
        return super().read(index)._replace(boxes_xyxy=boxes)


def test_boxes_without_area_and_before_the_edge() -> None:
    record = examine(OddBoxes("val", length=1), 0)
    assert record.off_boxes == (
        ("box 5,6,5,9 has no area", 0),
        ("box -2,3,4,5 reaches 2 px outside the picture of 64x64", 2),
        ("box 1,9,4,9 has no area", 0),
    )


def test_a_bad_box_refuses_a_picture_that_can_be_read() -> None:
    class Crooked(ClutteredDigits):
        def read(self, index: int) -> SourcePicture:
            refuse_box("The box of 1.jpg has no area; correct it.", "1.jpg")
            return super().read(index)

    record = examine(Crooked("val", length=1), 0)
    assert (record.error, record.is_damaged) == ("", False)
    assert record.refusal == record.off_boxes[0][0] == "The box of 1.jpg has no area; correct it."


def test_equal_pixels_have_equal_hashes_whatever_the_file(tmp_path: Path) -> None:
    image = photograph()
    turned = image.rotate(180)
    wide = Image.fromarray(np.zeros((4, 9, 3), np.uint8))
    files = {
        "1.png": encoded(image, format="PNG"),
        "2.bmp": encoded(image, format="BMP"),
        "3.png": encoded(turned, format="PNG"),
        "4.png": encoded(wide, format="PNG"),
        "5.png": encoded(wide.rotate(90, expand=True), format="PNG"),
    }
    source = one_class(tmp_path, files)
    digests = [examine(source, index).pixels for index in range(5)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_what_decoders_say_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Talking(ClutteredDigits):
        def read(self, index: int) -> SourcePicture:
            os.write(2, b"Corrupt JPEG data: 7 extraneous bytes\n")
            return super().read(index)

    record = examine(Talking("val", length=1), 0)
    assert record.complaint == "Corrupt JPEG data: 7 extraneous bytes"
    assert record.error == ""
    assert capfd.readouterr().err == ""


def test_pictures_without_files_are_read_too() -> None:
    record = examine(ClutteredDigits("val", length=2), 1)
    assert (record.size_hw, record.format, record.boxes) == ((64, 64), "", 1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(photograph()), "JPEG"),
        (encoded(photograph(), format="PNG"), "PNG"),
        (encoded(photograph())[:1000], "JPEG"),
        (b"", ""),
        (b"text", ""),
    ],
)
def test_the_format_is_that_of_the_content(data: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.gif"
    path.write_bytes(data)
    assert format_of(path) == expected


def test_what_another_thread_warns_of_is_no_complaint_about_a_picture() -> None:
    with pytest.warns(UserWarning, match="ipywidgets"), reading._decoder_messages() as said:
        warnings.warn('install "ipywidgets" for Jupyter support', stacklevel=1)  # rich's
    assert said == []


@pytest.mark.nightly
def test_processes_read_the_same_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = list(make_sources("digits", SourceOptions(lengths=(90, 41, 1))).values())
    alone = list(examine_all(sources, 0))
    monkeypatch.setattr(reading, "_FEW", 0)
    assert list(examine_all(sources, 2)) == alone
    assert len(alone) == 132


def test_a_process_that_dies_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, ``check-data`` and ``fit`` ended with torch's traceback."""
    source = one_class(tmp_path, {"1.jpg": encoded(photograph())})
    monkeypatch.setattr(reading, "_FEW", 0)
    monkeypatch.setattr(reading, "examine", lambda *_, **__: os._exit(9))
    with pytest.raises(CamtrainError, match="A process that prepares batches has ended"):
        list(examine_all([source], 1))
