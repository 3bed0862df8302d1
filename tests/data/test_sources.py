"""Sources by name, and what is the same for all of them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from camtrain.data import Listing, SourceOptions, is_divided, make_sources, source_of
from camtrain.data.lists import PathList
from camtrain.data.source import FileSource, split_number
from camtrain.errors import CamtrainError, CamtrainFileNotFoundError, CamtrainValueError
from tests.data.trees import picture, xml


def test_digits_have_three_splits_of_the_given_lengths() -> None:
    sources = make_sources("digits", SourceOptions(lengths=(5, 4, 3), seed=7))
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 5,
        "val": 4,
        "test": 3,
    }
    assert sources["val"].class_names == tuple("0123456789")
    assert not is_divided(sources)


def test_a_folder_takes_its_options(tmp_path: Path) -> None:
    for name in "ab":
        for number in range(10):
            picture(tmp_path / name / f"{number}.png")
    options = SourceOptions(root=tmp_path, val_fraction=0.3, test_fraction=0.0, seed=1)
    sources = make_sources("folder", options)
    assert {split: len(source) for split, source in sources.items()} == {"train": 14, "val": 6}
    assert is_divided(sources)


def test_bad_sources_are_refused() -> None:
    with pytest.raises(CamtrainValueError, match=r"one of folder, csv, .*digits, got 'zip'"):
        make_sources("zip", SourceOptions())
    with pytest.raises(CamtrainValueError, match=r"folder needs .* give --data\.root FOLDER"):
        make_sources("folder", SourceOptions())
    with pytest.raises(CamtrainFileNotFoundError, match="does not exist"):
        make_sources("folder", SourceOptions(root="/nowhere"))


def test_paths_are_kept_as_bytes_and_come_back_whole() -> None:
    names = ["a/1.jpg", "ä/ö 2.jpg", "", os_name := b"b/\xff.jpg".decode(errors="surrogateescape")]
    paths = PathList.of(names)
    assert paths == names
    assert list(paths[1:3]) == names[1:3]
    assert paths[-1] == os_name
    assert paths.take(np.array([3, 0])).below("root") == [f"root/{os_name}", "root/a/1.jpg"]
    assert PathList.of(["/else/1.jpg"]).below("root") == ["/else/1.jpg"]
    assert PathList.of([]) == []
    with pytest.raises(IndexError):
        _ = paths[4]


def listing(labels: np.ndarray, root: Path) -> Listing:
    return Listing(
        root=root,
        paths=PathList.of(f"{row}.png" for row in range(len(labels))),
        labels=labels,
        splits=np.full(len(labels), split_number("val"), np.int8),
        class_names=("a", "b"),
    )


def test_a_source_gives_labels_of_both_kinds(tmp_path: Path) -> None:
    for row in range(3):
        picture(tmp_path / f"{row}.png")
    one = source_of(listing(np.array([1, 0, 1]), tmp_path), "val")
    assert one.labels == [1, 0, 1]
    assert one.read(0).label == 1
    hot = np.array([[True, False], [False, False], [True, True]])
    several = source_of(listing(hot, tmp_path), "val")
    assert several.labels.dtype == torch.float32
    assert several.read(2).label.tolist() == [1.0, 1.0]
    assert several.read(2).path == several.paths[2] == str(tmp_path / "2.png")
    assert len(source_of(listing(hot, tmp_path), "train")) == 0


def test_pictures_in_memory_have_masks_too(tmp_path: Path) -> None:
    images = torch.arange(24, dtype=torch.uint8).reshape(2, 1, 3, 4)
    every = {**vars(listing(np.array([0, 1]), tmp_path)), "images": images}
    source = source_of(Listing(**{**every, "masks": lambda row: images[row, 0] % 2}), "val")
    assert torch.equal(source.read(1).image, images[1])
    assert torch.equal(source.read(1).mask, images[1, 0] % 2)


def test_sources_reach_worker_processes(tmp_path: Path) -> None:
    """Those that are spawned get a copy."""
    for split in ("train", "val"):
        for name in "ab":
            picture(tmp_path / split / name / "1.png")
            xml(tmp_path / split / name / "1.xml", (name, 1, 2, 3, 4))
            picture(tmp_path / "masks" / split / name / "1.png")
    source = pickle.loads(pickle.dumps(make_sources("folder", SourceOptions(root=tmp_path))))["val"]
    assert source.paths[1] == str(tmp_path / "val/b/1.png")
    assert source.read(1).boxes_xyxy.tolist() == [[0, 1, 3, 4]]
    assert source.read(1).mask.all()


def test_a_mask_is_turned_as_its_picture_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 20), "red").save(tmp_path / "0.png", exif=exif)  # upright 60 high
    every = vars(listing(np.array([0]), tmp_path))

    def read(height: int, width: int, *, is_upright: bool) -> Tensor | None:
        mask = torch.ones(height, width, dtype=torch.uint8)
        source = source_of(Listing(**{**every, "masks": lambda row: mask}), "val")
        assert isinstance(source, FileSource)
        return source.read_file(0, exif=is_upright).mask

    for height, width, is_upright in ((60, 20, True), (20, 60, False)):
        assert read(height, width, is_upright=is_upright).shape == (height, width)
        with pytest.raises(
            CamtrainError, match=r"The mask of .*0\.png must have .*; turn the mask"
        ):
            read(width, height, is_upright=is_upright)
    assert read(6, 2, is_upright=True).shape == (60, 20)


def test_a_mask_of_another_size_is_brought_to_that_of_the_picture(tmp_path: Path) -> None:
    picture(tmp_path / "0.png", (60, 20))
    mask = torch.tensor([[0, 1, 255]], dtype=torch.uint8)
    every = listing(np.array([0]), tmp_path)
    source = source_of(Listing(**{**vars(every), "masks": lambda row: mask}), "val")
    expected = torch.tensor([[0] * 20 + [1] * 20 + [255] * 20] * 20, dtype=torch.uint8)
    assert torch.equal(source.read(0).mask, expected)
