"""Sources by name."""

from pathlib import Path

import pytest
from PIL import Image

from camtrain.data import SourceOptions, make_source, source_splits
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError


def test_digits_have_three_splits_of_the_given_lengths() -> None:
    options = SourceOptions(lengths=(5, 4, 3), seed=7)
    assert source_splits("digits", options) == ("train", "val", "test")
    assert [len(make_source("digits", split, options)) for split in ("train", "val", "test")] == [
        5,
        4,
        3,
    ]
    assert make_source("digits", "val", options).class_names == tuple("0123456789")


def test_a_folder_takes_its_options(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("L", (4, 6)).save(tmp_path / name / f"{number}.png")
    options = SourceOptions(root=tmp_path, val_fraction=0.3, test_fraction=0.0, seed=1)
    assert source_splits("folder", options) == ("train", "val")
    assert [len(make_source("folder", split, options)) for split in ("train", "val")] == [14, 6]


def test_bad_sources_are_refused() -> None:
    for call in (
        lambda: source_splits("zip", SourceOptions()),
        lambda: make_source("zip", "val", SourceOptions()),
    ):
        with pytest.raises(CamtrainValueError, match="one of folder, digits, got 'zip'"):
            call()
    with pytest.raises(CamtrainValueError, match=r"give --data\.root PATH"):
        make_source("folder", "train", SourceOptions())
    with pytest.raises(CamtrainFileNotFoundError, match="does not exist"):
        source_splits("folder", SourceOptions(root="/nowhere"))
