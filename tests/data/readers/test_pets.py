"""Oxford-IIIT Pet in its published layout: lists, trimaps, boxes of heads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camtrain.data import ListedSource, SourceOptions, Split, make_sources
from camtrain.data.checking.check import check_data
from camtrain.errors import CamtrainError, CamtrainFileNotFoundError
from tests.data.trees import SIZE, picture, text, xml

BREEDS = (("Abyssinian", 1), ("american_bulldog", 2), ("Sphynx", 1))


def pets(root: Path, *, count: int = 5) -> Path:
    """The data set with three breeds; the animal fills columns 10 to 19 and rows 5 to 14."""
    folder = root / "oxford-iiit-pet"
    trimap = np.full(SIZE[::-1], 2, np.uint8)
    trimap[4:16, 9:21] = 3
    trimap[5:15, 10:20] = 1
    (folder / "annotations/trimaps").mkdir(parents=True)
    for list_name, numbers in (("trainval", range(count)), ("test", range(count, count + 2))):
        lines = []
        for label, (breed, species) in enumerate(BREEDS, start=1):
            for number in numbers:
                name = f"{breed}_{number}"
                lines.append(f"{name} {label} {species} {label}")
                picture(folder / f"images/{name}.jpg")
                Image.fromarray(trimap).save(folder / f"annotations/trimaps/{name}.png")
                if list_name == "trainval":
                    kind = ("cat", "dog")[species - 1]
                    xml(folder / f"annotations/xmls/{name}.xml", (kind, 12, 6, 15, 9))
        text(folder / f"annotations/{list_name}.txt", *lines)
    return root


def sources_of(root: Path, **options: Any) -> dict[Split, ListedSource]:
    return make_sources("pets", SourceOptions(root=root, **options))  # type: ignore[return-value]


@pytest.mark.parametrize("inner", ["", "oxford-iiit-pet"])
def test_splits_names_masks_and_boxes_are_those_of_the_data_set(inner: str, tmp_path: Path) -> None:
    sources = sources_of(pets(tmp_path) / inner, val_fraction=0.2)
    assert {split: len(source) for split, source in sources.items()} == {
        **{"train": 12, "val": 3},  # of trainval
        "test": 6,
    }
    test = sources["test"]
    assert test.class_names == ("Abyssinian", "American Bulldog", "Sphynx")
    assert test.labels == [0, 0, 1, 1, 2, 2]
    assert test.paths[2].endswith("oxford-iiit-pet/images/american_bulldog_5.jpg")
    read = test.read(2)
    assert read.boxes_xyxy.tolist() == [[9, 4, 21, 16]]  # with the animal's edge
    assert read.mask is not None
    assert read.mask.shape == (30, 50)
    assert read.mask[5:15, 10:20].eq(1).all()
    assert [int((read.mask == value).sum()) for value in (0, 1, 255)] == [1500 - 144, 100, 44]


def test_torchvision_reads_the_same(tmp_path: Path) -> None:
    """So the layout of the tests is the one that is published."""
    from torchvision.datasets import OxfordIIITPet

    sources = sources_of(pets(tmp_path))
    reference = OxfordIIITPet(tmp_path, split="test")
    assert tuple(reference.classes) == sources["test"].class_names
    assert reference._labels == sources["test"].labels
    assert list(map(str, reference._images)) == list(sources["test"].paths)
    trainval = OxfordIIITPet(tmp_path, split="trainval", target_types="segmentation")
    paths = [*sources["train"].paths, *sources["val"].paths]
    assert sorted(map(str, trainval._images)) == sorted(paths)


def test_boxes_of_heads_are_read_on_request(tmp_path: Path) -> None:
    sources = sources_of(pets(tmp_path), head_boxes=True)
    for index in range(len(sources["val"])):
        assert sources["val"].boxes(index).tolist() == [[11, 5, 15, 9]]
    assert sources["test"].boxes(0).shape == (0, 4)
    (tmp_path / "oxford-iiit-pet/annotations/trimaps/Sphynx_6.png").unlink()
    assert sources["test"].read(5).mask is None
    assert sources_of(tmp_path)["test"].boxes(5).shape == (0, 4)


def test_it_is_downloaded_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also to a folder that does not exist."""
    monkeypatch.setattr(
        "torchvision.datasets.OxfordIIITPet", lambda root, *, download: pets(Path(root))
    )
    assert len(sources_of(tmp_path / "data/pets")["test"]) == 6
    assert f"Downloading Oxford-IIIT Pet (0.8 GB) to {tmp_path}/data" in capsys.readouterr().err


def test_without_a_network_it_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(root: Path, *, download: bool) -> None:
        (root / "oxford-iiit-pet").mkdir(parents=True)  # as torchvision does
        raise OSError("no route")

    monkeypatch.setattr("torchvision.datasets.OxfordIIITPet", fail)
    with pytest.raises(
        CamtrainFileNotFoundError, match=r"lacks Oxford-.*\(.*no route\); unpack images\.tar\.gz"
    ):
        sources_of(tmp_path / "pets")
    assert not (tmp_path / "pets").exists()


def test_check_data_reads_it_to_the_end(tmp_path: Path) -> None:
    report = check_data("pets", SourceOptions(root=pets(tmp_path)), processes=0)
    assert sum(summary.pictures for summary in report.splits.values()) == 21
    assert not report.errors


def replaced(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(annotations: Path) -> None:
        path = annotations / file
        path.write_text(path.read_text().replace(old, new))

    return change


def no_trimap(annotations: Path) -> None:
    (annotations / "trimaps/Sphynx_6.png").write_text("no picture")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "test.txt").unlink(), "lacks test.txt, the list name class spec"),
        (replaced("test.txt", "Sphynx_6 3", "Sphynx_6 1"), "class 1 is Abyssinian, got .* Sphynx"),
        (replaced("test.txt", "Sphynx_6 3", "Sphynx_6 0"), "test.txt, line 6: expected a whole n"),
        (replaced("test.txt", "Sphynx_6 3 1", "Sphynx_6 3 7"), "whole number from 1 to 2, got '7'"),
        (lambda folder: [replaced(f"{name}.txt", " 3 ", " 4 ")(folder) for name in
                         ("trainval", "test")], "got none of class 3; download the data set again"),
        (lambda folder: (folder.parent / "images/Abyssinian_0.jpg").unlink(), "which does not ex"),
        (no_trimap, r"The mask .*Sphynx_6\.png cannot be read"),
    ],
)  # fmt: skip
def test_damages_are_one_sentence(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    damage(pets(tmp_path) / "oxford-iiit-pet/annotations")
    with pytest.raises(CamtrainError, match=message):
        sources_of(tmp_path)["test"].read(5)
