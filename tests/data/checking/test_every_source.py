"""check-data takes every source, as it is published."""

from collections.abc import Callable
from pathlib import Path

import pytest

from camtrain.data import SourceOptions
from camtrain.data.checking.check import check_data
from tests.data.readers.test_published import cub, places365
from tests.data.trees import picture, text, xml


def voc(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            picture(root / split / name / "1.png")
            xml(root / split / name / "1.xml", (name, 1, 1, 9, 9))
    xml(root / "train/a/1.xml", ("a", 9, 9, 3, 3), ("a", 1, 1, 9, 31), ("a", 1, 1, 50, 30))
    text(root / "train/b/1.xml", "<annotation>")


def labels_csv(root: Path) -> None:
    lines = ["path,label,split", "1.png,a;b,train", "2.png,b,train", "3.png,a,val", "4.png,b,val"]
    text(root / "labels.csv", *lines)
    for number in (1, 2, 3):
        picture(root / f"{number}.png")


EXPECTED: list[tuple[str, Callable[[Path], object], dict[str, int], set[str]]] = [
    ("places365", places365, {"train": 3, "val": 3}, set()),
    ("cub", cub, {"train": 2, "val": 0, "test": 2}, {"bad_box"}),
    ("folder", voc, {"train": 2, "val": 2}, {"bad_box"}),
    ("csv", labels_csv, {"train": 2, "val": 2}, {"unreadable"}),
]


@pytest.mark.parametrize(("name", "make", "pictures", "errors"), EXPECTED)
def test_every_source_is_read_to_the_end(
    name: str,
    make: Callable[[Path], object],
    pictures: dict[str, int],
    errors: set[str],
    tmp_path: Path,
) -> None:
    make(tmp_path)
    report = check_data(name, SourceOptions(root=tmp_path), processes=0)
    assert sum(summary.pictures for summary in report.splits.values()) == sum(pictures.values())
    assert {finding.kind for finding in report.errors} == errors


def test_all_bad_boxes_of_an_xml_file_are_listed(tmp_path: Path) -> None:
    voc(tmp_path)
    report = check_data("folder", SourceOptions(root=tmp_path), processes=0)
    found = [(f.paths, f.detail) for f in report.findings if f.kind in ("bad_box", "edge_box")]
    assert [paths for paths, _ in found] == [
        ("train/a/1.png",),
        ("train/b/1.png",),
        ("train/a/1.png",),
    ]
    assert "expected numbers with xmin <= xmax" in found[0][1]
    assert "1.xml must be the XML" in found[1][1]
    assert "1 px outside" in found[2][1]


def test_paths_of_a_csv_file_are_relative_to_its_folder(tmp_path: Path) -> None:
    labels_csv(tmp_path)
    for root in (tmp_path, tmp_path / "labels.csv"):
        report = check_data("csv", SourceOptions(root=root), processes=0)
        assert list(report.excluded()) == ["4.png"]
        assert report.splits["train"].classes == {"a": 1, "b": 2}
