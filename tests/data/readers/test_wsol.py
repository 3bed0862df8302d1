"""The metadata folders of the WSOL benchmark."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camtrain.data import ListedSource, SourceOptions, Split, make_sources
from camtrain.errors import CamtrainError
from tests.data.trees import picture, text


def sources_of(root: Path, **options: Any) -> dict[Split, ListedSource]:
    return make_sources("wsol", SourceOptions(root=root, **options))


def boxes(root: Path, metadata: str = "metadata") -> Path:
    """As the lists of ILSVRC: train has no boxes, val is of other pictures than ILSVRC's val."""
    folder = root / metadata
    ids = {
        "train": ["train/n01440764/n01440764_10026.JPEG", "train/n01443537/n01443537_2.JPEG"],
        "val": ["val2/0/0.jpeg", "val2/1/0.jpeg"],
        "test": ["val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG"],
    }
    for split, paths in ids.items():
        text(folder / split / "image_ids.txt", *paths)
        text(folder / split / "class_labels.txt", *(f"{p},{n}" for n, p in enumerate(paths)))
        text(folder / split / "image_sizes.txt", *(f"{p},50,30" for p in paths))
        for path in paths:
            picture(root / path)
    one, other = ids["test"]
    text(folder / "test/localization.txt", f"{other},0,0,49,29", f"{one},5,6,7,8", f"{one},1,2,3,4")
    text(folder / "val/localization.txt", f"{ids['val'][0]},1,1,1,1")
    return folder


@pytest.mark.parametrize("metadata", ["metadata", "", "elsewhere"])
def test_boxes_are_counted_from_0_and_inclusive(metadata: str, tmp_path: Path) -> None:
    folder = boxes(tmp_path, metadata)
    sources = sources_of(tmp_path, metadata=folder if metadata == "elsewhere" else None)
    assert list(sources) == ["train", "val", "test"]
    test = sources["test"]
    assert test.class_names == ("0", "1")
    assert test.labels == [0, 1]
    assert test.boxes(0).tolist() == [[5, 6, 8, 9], [1, 2, 4, 5]]
    assert test.read(1).boxes_xyxy.tolist() == [[0, 0, 50, 30]]
    assert sources["val"].boxes(0).tolist() == [[1, 1, 2, 2]]
    assert sources["train"].boxes(0).shape == (0, 4)
    assert test.read(0).mask is None
    assert test.paths[0] == str(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")


def test_names_of_classes_can_be_given(tmp_path: Path) -> None:
    boxes(tmp_path)
    source = sources_of(tmp_path, class_names=["tench", "goldfish", "shark"])["test"]
    assert source.class_names == ("tench", "goldfish", "shark")
    assert source.labels == [0, 1]
    with pytest.raises(CamtrainError, match="numbers 2 classes, and class_names has 1"):
        sources_of(tmp_path, class_names=["tench"])


def test_pictures_of_cub_lie_below_images(tmp_path: Path) -> None:
    name = "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg"
    text(tmp_path / "metadata/test/image_ids.txt", name)
    text(tmp_path / "metadata/test/class_labels.txt", f"{name},0")
    picture(tmp_path / "images" / name)
    assert sources_of(tmp_path)["test"].read(0).image.shape == (3, 30, 50)


def mask(file: Path, *boxes: tuple[int, int, int, int], size: tuple[int, int] = (50, 30)) -> None:
    pixels = np.zeros((size[1], size[0]), np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = 255
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert("1").save(file)  # as OpenImages has them


def masks(root: Path) -> Path:
    """As the lists of OpenImages: several masks per picture, the first line has the ignore mask."""
    folder, names = root / "metadata" / "test", ["test/0a/1.jpg", "test/0a/2.jpg", "test/0b/3.jpg"]
    text(folder / "image_ids.txt", *names)
    text(folder / "class_labels.txt", *(f"{name},{n // 2}" for n, name in enumerate(names)))
    lines = [
        "test/0a/1.jpg,test/0a/1_m_a.png,test/0a/1_ignore.png",
        "test/0a/1.jpg,test/0a/1_m_b.png,",
        "test/0a/2.jpg,test/0a/2_m_a.png,",
    ]
    text(folder / "localization.txt", *lines)
    for name in names:
        picture(root / name)
    mask(root / "test/0a/1_m_a.png", (0, 0, 10, 5))
    mask(root / "test/0a/1_m_b.png", (20, 10, 30, 15))
    mask(root / "test/0a/1_ignore.png", (5, 0, 25, 30))
    mask(root / "test/0a/2_m_a.png", (0, 0, 25, 15), size=(100, 60))
    return root


def test_masks_are_joined_and_ignore_only_what_is_no_object(tmp_path: Path) -> None:
    source = sources_of(masks(tmp_path))["test"]
    expected = np.zeros((30, 50), np.uint8)
    expected[:, 5:25] = 255
    expected[:5, :10] = expected[10:15, 20:30] = 1
    assert source.read(0).mask.tolist() == expected.tolist()
    assert source.boxes(0).shape == (0, 4)
    # A mask of twice the size comes at that of the picture.
    second = source.read(1).mask
    assert second.shape == (30, 50)
    assert second.sum() == second[:8, :13].sum() >= 12 * 7
    assert source.read(2).mask is None


def spoil(make: Callable[[Path], object], file: str, *lines: str) -> Callable[[Path], None]:
    def both(root: Path) -> None:
        make(root)
        text(root / "metadata" / file, *lines)

    return both


def without(file: str) -> Callable[[Path], None]:
    def both(root: Path) -> None:
        boxes(root)
        (root / file).unlink()

    return both


ID = "val/ILSVRC2012_val_00000001.JPEG"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, r"must hold train, val or test with image_ids\.txt"),
        (without("metadata/test/class_labels.txt"), r"lacks class_labels\.txt"),
        (
            without("train/n01440764/n01440764_10026.JPEG"),
            r"image_ids\.txt names .*n01440764_10026\.JPEG first, which does not exist",
        ),
        (spoil(boxes, "test/class_labels.txt", f"{ID},0"), r"lacks 1 of them, first val/ILSVRC"),
        (spoil(boxes, "test/class_labels.txt", f"{ID},x"), r"line 1: expected a whole number from"),
        (spoil(boxes, "test/image_ids.txt"), r"image_ids\.txt must have lines path, but is empty"),
        (spoil(boxes, "test/localization.txt", f"{ID},5,6,4,8"), r"expected x0 <= x1 and y0 <= y1"),
        (spoil(boxes, "test/localization.txt", f"{ID},5,6,7"), "expected path,x0,y0,x1,y1, got"),
        (spoil(boxes, "test/localization.txt", f"{ID},5,6,-7,8"), "whole number from 0, got '-7'"),
        (
            spoil(boxes, "test/localization.txt", "a.jpg,5,6,7,8"),
            r"a\.jpg is not in image_ids\.txt",
        ),
    ],
)
def test_damaged_lists_get_one_clear_sentence(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(CamtrainError, match=message) as caught:
        sources_of(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_damaged_masks_are_named_when_read(tmp_path: Path) -> None:
    masks(tmp_path)
    mask(tmp_path / "test/0a/1_m_b.png", size=(51, 30))
    (tmp_path / "test/0a/2_m_a.png").write_text("no picture")
    source = sources_of(tmp_path)["test"]
    with pytest.raises(CamtrainError, match=r"must have one size.*1_m_b\.png: 51 x 30; replace"):
        source.read(0)
    with pytest.raises(CamtrainError, match=r"2_m_a\.png cannot be read"):
        source.read(1)
    (tmp_path / "test/0a/2_m_a.png").unlink()
    with pytest.raises(CamtrainError, match=r"2_m_a\.png does not exist"):
        source.read(1)
