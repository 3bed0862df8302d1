"""Leaving pictures out, by a list of their paths."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from camtrain.data import (
    ImageFolder,
    SourceOptions,
    make_sources,
    make_sources_without,
    read_exclude,
    without,
    write_exclude,
)
from camtrain.data.source import Source, SourcePicture
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError

SPLITS = ("train", "val", "test")


def splits_of(root: Path) -> dict[str, Source]:
    return {split: ImageFolder(root, split) for split in SPLITS}


def test_what_stays_is_read_as_before(photographs: Path) -> None:
    whole = splits_of(photographs)
    kept = without(whole, ["train/blue/3.png", "train/red/0.png", "val/red/1.png"], photographs)
    assert [len(kept[split]) for split in SPLITS] == [14, 7, 8]
    for split in SPLITS:
        source = whole[split]
        gone = {str(photographs / name) for name in ("train/blue/3.png", "train/red/0.png")}
        gone |= {str(photographs / "val/red/1.png")}
        places = [place for place in range(len(source)) if source.paths[place] not in gone]
        assert list(kept[split].paths) == [source.paths[place] for place in places]
        assert kept[split].labels == [source.labels[place] for place in places]
        assert kept[split].class_names == source.class_names
        for index, place in enumerate(places):
            mine, own = kept[split].read(index), source.read(place)
            assert torch.equal(mine.image, own.image)
            assert (mine.label, mine.path) == (own.label, own.path)
            assert torch.equal(kept[split].boxes(index), own.boxes_xyxy)


def test_what_stays_can_be_read_as_it_is_stored_or_smaller(photographs: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, 64 high
    stored = photographs / "train/blue/1.jpg"
    Image.new("RGB", (96, 64)).save(stored, exif=exif)
    kept = without(splits_of(photographs), ["train/blue/0.png"], photographs)["train"]
    assert kept.paths[0] == kept.read_file(0).path == str(stored)
    assert kept.read(0).image.shape == (3, 96, 64)
    assert kept.read_file(0, exif=False).image.shape == (3, 64, 96)
    smaller = kept.read_file(0, exif=False, shrink=lambda size_hw: 2.0)
    assert (smaller.image.shape, smaller.size_hw, smaller.factor) == ((3, 32, 48), (64, 96), 2)
    assert torch.equal(smaller.boxes_xyxy, kept.boxes(0))


@pytest.mark.parametrize(
    "name", ["train/red/0.png", "./train/red/0.png", "train//red/../red/0.png", "{root}/0.png"]
)
def test_a_path_may_be_spelled_in_several_ways(name: str, photographs: Path) -> None:
    name = name.replace("{root}", str(photographs / "train/red"))
    kept = without(splits_of(photographs), [name], photographs)
    assert [len(kept[split]) for split in SPLITS] == [15, 8, 8]


def test_unknown_paths_are_said_once(photographs: Path) -> None:
    with pytest.warns(UserWarning, match="names 2 pictures that the data does not have") as caught:
        without(splits_of(photographs), ["a.png", "train/red/0.png", "b.png"], photographs)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without(splits_of(photographs), ["train/red/0.png"], photographs)


class Multilabel:
    """Three pictures of nothing with two labels each way."""

    class_names = ("a", "b")
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    paths = ("x", "y", "z")

    def __len__(self) -> int:
        """Three."""
        return 3

    def boxes(self, index: int) -> torch.Tensor:
        """None."""
        return torch.zeros(0, 4, dtype=torch.int64)

    def read(self, index: int) -> SourcePicture:
        """Black."""
        image = torch.zeros(3, 4, 6, dtype=torch.uint8)
        return SourcePicture(image, self.labels[index], self.boxes(index), self.paths[index])


def test_several_labels_stay_a_tensor() -> None:
    kept = without({"train": Multilabel()}, ["y"], None)["train"]
    assert torch.equal(torch.as_tensor(kept.labels), Multilabel.labels[[0, 2]])
    with pytest.raises(CamtrainValueError, match="exclude leaves no b in the train split"):
        without({"train": Multilabel()}, ["x"], None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"train/red/{n}.png" for n in range(8)], "exclude leaves no red in the train split; add"),
        (
            [f"val/{name}/{n}.png" for name in ("red", "blue") for n in range(4)],
            "exclude leaves no pictures in the val split",
        ),
    ],
)
def test_nothing_may_be_left_empty(names: Sequence[str], message: str, photographs: Path) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        without(splits_of(photographs), names, photographs)


def test_a_class_may_vanish_from_val(photographs: Path) -> None:
    names = [f"val/red/{number}.png" for number in range(4)]
    assert len(without(splits_of(photographs), names, photographs)["val"]) == 4


def test_bad_boxes_of_excluded_pictures_do_no_harm(photographs: Path) -> None:
    with (photographs / "boxes.csv").open("a") as lines:
        lines.write("\ntrain/red/0.png,9,9,3,3,red\nnowhere.png,1,2,x,4,\nval/red/1.png,1,2\n")
    options = SourceOptions(root=photographs)
    exclude = ["train/red/0.png", "nowhere.png", "val/red/1.png"]
    with pytest.raises(CamtrainValueError, match=r"line 34: .*got train/red/0.png,9,9,3,3,red"):
        make_sources("folder", options)
    with pytest.raises(CamtrainValueError, match=r"got nowhere.png,1,2,x,4,"):
        make_sources_without("folder", options, exclude[:1])
    _, kept = make_sources_without("folder", options, exclude)
    assert [len(source) for source in kept.values()] == [15, 7, 8]


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    paths = ["train/a b/ü.jpg", "#1.jpg", "# 2.jpg", " space .jpg", "\udcff.jpg", "x\u2028y.jpg"]
    file = tmp_path / "list.txt"
    write_exclude(file, dict.fromkeys(paths, "because\n of it"), ["why", "and when"])
    start = b"# why\n# and when\n# because of it\ntrain/a b/"
    assert file.read_bytes().startswith(start)
    assert read_exclude(file) == [f"./{path}" if path[0] == "#" else path for path in paths]


def test_a_list_from_another_system_is_read(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"a.jpg\r\n\r\n# said\r\nb.jpg")
    assert read_exclude(tmp_path / "list.txt") == ["a.jpg", "b.jpg"]


def test_bad_lists_are_refused(tmp_path: Path) -> None:
    for file in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(
            CamtrainFileNotFoundError, match=r"exclude must be a text file with one path"
        ):
            read_exclude(file)
    with pytest.raises(CamtrainValueError, match=r"has a line break: 'a\\nb.jpg'"):
        write_exclude(tmp_path / "list.txt", {"a\nb.jpg": ""})
