"""Files, folders and patterns: what they stand for, in which order, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camtrain.data import read_image
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.inference.pictures import expand_inputs, pixels_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in folders, among them hidden and other files."""
    root = tmp_path / "photos"
    names = ["b.jpg", "a/x.PNG", "a/y.jpeg", "a.d/z.bmp", "a/.hidden.jpg", ".git/c.jpg", "a/t.txt"]
    for name in [*names, "boxes.csv", "odd[1].jpg", "deep/er/w.webp"]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "empty").mkdir()
    return root


FOUND = ["a/x.PNG", "a/y.jpeg", "a.d/z.bmp", "b.jpg", "deep/er/w.webp", "odd[1].jpg"]


def test_a_folder_stands_for_its_pictures_sorted_without_the_hidden_ones(folder: Path) -> None:
    expected = [str(folder / name) for name in FOUND]
    assert list(expand_inputs(folder)) == list(expand_inputs(str(folder))) == expected
    assert list(expand_inputs([folder / "b.jpg", folder / "a"])) == [
        folder / "b.jpg",
        str(folder / "a/x.PNG"),
        str(folder / "a/y.jpeg"),
    ]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["b.jpg", "odd[1].jpg"]),
        ("a/?.*", ["a/t.txt", "a/x.PNG", "a/y.jpeg"]),
        ("**/w.*", ["deep/er/w.webp"]),
        ("odd[1].jpg", ["odd[1].jpg"]),  # a name, not a pattern
        ("a*", []),  # folders only
        ("*.gif", []),
    ],
)
def test_a_pattern_stands_for_the_files_that_fit(
    pattern: str, names: list[str], folder: Path
) -> None:
    path = f"{folder}/{pattern}"
    assert list(expand_inputs(path)) == ([f"{folder}/{name}" for name in names] or [path])


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("{root}/empty", CamtrainFileNotFoundError, "holds no pictures (.jpg .jpeg"),
        ("{root}/*.gif", CamtrainFileNotFoundError, "No file fits the pattern"),
        ("{root}/none.jpg", CamtrainFileNotFoundError, "does not exist"),
        ("{root}/boxes.csv", CamtrainValueError, "cannot be read"),
        ("http://a.org/b.jpg", CamtrainValueError, "is an address, and camtrain reads only files"),
        ("S3://bucket/b.jpg", CamtrainValueError, "download it first"),
        ("file:///b.jpg", CamtrainValueError, "is an address"),
    ],
)
def test_what_holds_no_picture_is_refused_in_one_sentence(
    path: str, error: type[Exception], message: str, folder: Path
) -> None:
    path = path.format(root=folder)
    [item] = expand_inputs(path)
    assert item == path
    with pytest.raises(error) as raised:
        pixels_of(item)
    assert path in str(raised.value)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_pixels_are_those_that_training_sees(tmp_path: Path) -> None:
    """EXIF, alpha, palette, CMYK, 16 bits, gray: one decoder."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (30, 44, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(rng.integers(0, 256, (30, 44), dtype=np.uint8)))
    gray16 = Image.fromarray(rng.integers(0, 65536, (30, 44), dtype=np.uint16))
    kinds = {
        "turned.jpg": (rgb, {"exif": exif}),
        "alpha.png": (rgba, {}),
        "palette.png": (rgb.quantize(8), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "deep.png": (gray16, {}),
        "gray.png": (rgb.convert("L"), {}),
        "bits.png": (rgb.convert("1"), {}),
    }
    for name, (image, options) in kinds.items():
        image.save(tmp_path / name, **options)
        expected = read_image(tmp_path / name)
        assert expected.shape == ((3, 44, 30) if name == "turned.jpg" else (3, 30, 44)), name
        assert torch.equal(pixels_of(tmp_path / name), expected), name
        with Image.open(tmp_path / name) as opened:  # a PIL image of every mode as well
            assert torch.equal(pixels_of(opened), expected), name


def test_a_folder_that_may_not_be_read_is_an_empty_one(folder: Path) -> None:
    os.chmod(folder / "deep", 0)
    try:
        found = list(expand_inputs(folder))
    finally:
        os.chmod(folder / "deep", 0o700)
    assert set(found) >= {str(folder / name) for name in FOUND if not name.startswith("deep")}
