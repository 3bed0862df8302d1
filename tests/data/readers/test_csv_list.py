"""Pictures named by a CSV file, with one label or several."""

from pathlib import Path
from typing import Any

import pytest
import torch

from camtrain.data import ListedSource, SourceOptions, Split, make_sources, write_split
from camtrain.data.readers.csv_list import csv_listing
from camtrain.errors import CamtrainError
from tests.data.trees import picture, text, xml


def sources_of(root: Path, **options: Any) -> dict[Split, ListedSource]:
    return make_sources("csv", SourceOptions(root=root, **options))


def listed(root: Path, *lines: str, name: str = "labels.csv") -> Path:
    for line in lines[1:]:
        picture(root / line.split(",")[0])
    return text(root / name, *lines)


def test_splits_are_those_of_the_list(tmp_path: Path) -> None:
    lines = ["path,label,split", "x/1.jpg,dog,train", "2.jpg,cat,train", "x/3.jpg,cat,val"]
    file = listed(tmp_path, *lines, name="my pictures.csv")
    with pytest.warns(UserWarning, match="The val split .* has no image of the class dog"):
        sources = sources_of(file)
    assert list(sources) == ["train", "val"]
    assert sources["train"].class_names == ("cat", "dog")
    assert sources["train"].labels == [1, 0]
    assert sources["train"].paths == [str(tmp_path / "x/1.jpg"), str(tmp_path / "2.jpg")]
    assert sources["val"].read(0).image.shape == (3, 30, 50)


def test_without_splits_it_is_divided_by_the_seed(tmp_path: Path) -> None:
    lines = [f"{n}.jpg,{'cat' if n % 3 else 'dog'}" for n in range(60)]
    listed(tmp_path, "path,label", *lines)
    sources = sources_of(tmp_path, val_fraction=0.2, test_fraction=0.1)
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 42,
        "val": 12,
        "test": 6,
    }
    assert sources["val"].labels.count(1) == 4


def test_several_labels_are_multi_hot_and_none_is_possible(tmp_path: Path) -> None:
    lines = ["1.jpg,dog;cat,test", "2.jpg,,test", "3.jpg,owl,test", "4.jpg, cat ; owl ,test"]
    listed(tmp_path, "path,label,split", *lines)
    source = sources_of(tmp_path)["test"]
    assert source.class_names == ("cat", "dog", "owl")
    expected = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1]]
    assert torch.equal(source.labels, torch.tensor(expected).float())
    assert source.read(3).label.tolist() == [1, 0, 1]
    names = ["bird", "owl", "dog", "cat"]
    again = sources_of(tmp_path, class_names=names)["test"]
    assert again.labels.tolist() == [[0, 0, 1, 1], [0] * 4, [0, 1, 0, 0], [0, 1, 0, 1]]


def test_pictures_of_one_class_and_of_none_are_multi_hot(tmp_path: Path) -> None:
    listed(tmp_path, "path,label", *(f"{n}.jpg,{'crack' if n % 3 == 0 else ''}" for n in range(30)))
    sources = sources_of(tmp_path, val_fraction=0.2, test_fraction=0.1)
    assert {split: source.class_names for split, source in sources.items()} == {
        split: ("crack",) for split in ("train", "val", "test")
    }
    assert {split: source.labels[:, 0].tolist().count(1) for split, source in sources.items()} == {
        "train": 7,
        "val": 2,
        "test": 1,
    }
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 21,
        "val": 6,
        "test": 3,
    }


def test_several_labels_are_divided_by_the_rarest(tmp_path: Path) -> None:
    labels = ["cat;dog"] * 40 + ["cat"] * 40 + ["dog;owl"] * 10 + [""] * 10
    listed(tmp_path, "path,label", *(f"{n}.jpg,{label}" for n, label in enumerate(labels)))
    sources = sources_of(tmp_path, val_fraction=0.2, test_fraction=0.1)
    counts = {split: source.labels.sum(0).tolist() for split, source in sources.items()}
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 70,
        "val": 20,
        "test": 10,
    }
    assert [counts[split][2] for split in ("train", "val", "test")] == [7, 2, 1]
    assert [counts[split][1] for split in ("train", "val", "test")] == [35, 10, 5]


def test_boxes_lie_beside_the_list_or_the_pictures(tmp_path: Path) -> None:
    lines = ["1.jpg,dog;cat,test", "in/2.jpg,owl,test"]
    listed(tmp_path / "csv", "path,label,split", *lines)
    text(tmp_path / "csv/boxes.csv", "path,xmin,ymin,xmax,ymax,class", "1.jpg,1,2,3,4,cat")
    assert sources_of(tmp_path / "csv")["test"].boxes(0).tolist() == [[1, 2, 3, 4]]
    listed(tmp_path / "voc", "path,label,split", *lines)
    xml(tmp_path / "voc/in/2.xml", ("owl", 1, 2, 3, 4), ("cat", 5, 6, 7, 8))
    assert sources_of(tmp_path / "voc")["test"].boxes(1).tolist() == [[0, 1, 3, 4]]


def test_absolute_paths_below_the_folder_are_those_of_the_folder(tmp_path: Path) -> None:
    """So the splits that a run keeps, and boxes, are found whichever way a path is spelled."""
    lines = ["path,label", *(f"in/{n}.jpg,{'cat' if n % 2 else 'dog'}" for n in range(20))]
    listed(tmp_path, *lines)
    text(tmp_path / "labels.csv", lines[0], *(f"{tmp_path}/./{line}" for line in lines[1:]))
    boxes = ["in/0.jpg,1,2,3,4", f"{tmp_path}/in/0.jpg,5,6,7,8"]
    text(tmp_path / "boxes.csv", "path,xmin,ymin,xmax,ymax", *boxes)
    sources = sources_of(tmp_path)
    write_split(tmp_path / "split.csv", sources)
    again = sources_of(tmp_path, split_file=tmp_path / "split.csv")
    assert {s: list(one.paths) for s, one in again.items()} == {
        s: list(one.paths) for s, one in sources.items()
    }
    found = {
        path: one.boxes(index).tolist()
        for one in sources.values()
        for index, path in enumerate(one.paths)
    }
    assert found.pop(str(tmp_path / "in/0.jpg")) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert not any(found.values())


def test_xml_lies_beside_pictures_anywhere(tmp_path: Path) -> None:
    lines = ["path,label,split", f"{tmp_path}/out/1.jpg,owl,test", f"{tmp_path}/csv/2.jpg,cat,test"]
    listed(tmp_path / "csv", *lines)
    xml(tmp_path / "out/1.xml", ("owl", 1, 2, 3, 4))
    xml(tmp_path / "csv/2.xml", ("cat", 2, 3, 4, 5))
    source = sources_of(tmp_path / "csv")["test"]
    assert source.boxes(0).tolist() == [[0, 1, 3, 4]]
    assert source.boxes(1).tolist() == [[1, 2, 4, 5]]


def test_text_in_another_encoding_is_one_sentence(tmp_path: Path) -> None:
    listed(tmp_path, "path,label", "1.jpg,a", "2.jpg,b")
    file = text(
        tmp_path / "boxes.csv", "path,xmin,ymin,xmax,ymax", "é.jpg,1,2,3,4", encoding="latin-1"
    )
    with pytest.raises(CamtrainError, match=r"boxes\.csv, line 2: .* UTF-8, got the byte 0xe9"):
        sources_of(tmp_path)
    file.unlink()
    text(tmp_path / "labels.csv", "path,label", "1.jpg,a", "2.jpg,é", encoding="latin-1")
    with pytest.raises(CamtrainError, match=r"labels\.csv, line 3: .* UTF-8, got the byte 0xe9"):
        sources_of(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, r"lacks labels\.csv, the list path,label\[,split\]"),
        (["path,class", "1.jpg,a"], "must start with the line path,label .* lacks label; add the"),
        (  # before: without the options
            ["filename,category", "1.jpg,a"],
            "lacks path, label; add the header, or name its columns with --data.path_column and",
        ),
        # Before: "embedded null byte".
        (["path,label", "1.jpg,a", "2\0.jpg,b"], "line 3: the text holds a null byte"),
        (["path,label"], "names no pictures; add lines below the header"),
        (
            ["path,label,split", "1.jpg,a,training"],
            r"line 2: .*\(train or val or test\), got 1",
        ),
        (["path,label,split", "1.jpg,a,train", "2.jpg,b,"], "line 3: expected a path, a label and"),
        (["path,label", "1.jpg,a", "2.jpg"], r"line 3: expected a path, a label, got 2\.jpg,,;"),
        (["path,label", "1.jpg,a", ",b"], "line 3: expected a path, a label, got ,b"),
        (["path,label", "1.jpg,a", "1.jpg,b"], r"line 3: 1\.jpg is named a second time; write sev"),
        (["path,label", "1.jpg,a", "./1.jpg,b"], r"line 3: 1\.jpg is named a second time"),
        (
            ["path,label", "1.jpg,a", "2.jpg,", "3.jpg,b"],
            r"line 3: the label is empty; write the class, or .* need a list of one class, or",
        ),
        (
            ["path,label", "1.jpg,a;", "2.jpg,a"],
            "at least 2 classes, but .* has one, 'a'; add .*em",
        ),
        (["path,label", "1.jpg,a", "2.jpg,a"], "at least 2 classes, but .* has one, 'a'"),
        (
            ["path,label,split", "1.jpg,a,train", "2.jpg,b,val"],
            "split .* class b, unknown to train",
        ),
    ],
)
def test_damaged_lists_get_one_clear_sentence(
    lines: list[str] | None, message: str, tmp_path: Path
) -> None:
    if lines is not None:
        picture(tmp_path / "1.jpg")
        text(tmp_path / "labels.csv", *lines)
    with pytest.raises(CamtrainError, match=message) as caught:
        sources_of(tmp_path)
    assert str(tmp_path) in str(caught.value)


# Lines, and the line on the terminal. Before: "must start with the line path,label", but for the
# first; labels with blanks before them were read.
TABLES = {
    "byte order mark": (["\ufeffpath,label,split", "1.jpg,a,train", "2.jpg,b,train"], None),
    "semicolons": (
        ["path;label;split", "1.jpg;a;train", "2.jpg;b;train"],
        "with semicolons",
    ),
    "tabs": (["path\tlabel\tsplit", "1.jpg\ta\ttrain", "2.jpg\tb\ttrain"], "with tabs between"),
    "blanks": (["path, label, split", '1.jpg, "a", train', "2.jpg , b, train "], None),
    "capitals": (
        ["Path,LABEL,Split", "1.jpg,a,train", "2.jpg,b,train"],
        "path, label, split",
    ),
    "several": (["path;label;split", '1.jpg;"a;b";train', "2.jpg;b;train"], "with semicolons"),
}


@pytest.mark.parametrize("name", TABLES)
def test_lists_are_read_as_spreadsheets_write_them(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines, line = TABLES[name]
    for picture_name in ("1.jpg", "2.jpg"):
        picture(tmp_path / picture_name)
    text(tmp_path / "labels.csv", *lines)
    listing = csv_listing(tmp_path)
    assert list(listing.paths) == ["1.jpg", "2.jpg"]
    assert listing.class_names == ("a", "b")
    assert listing.labels.tolist() == (
        [[True, True], [False, True]] if name == "several" else [0, 1]
    )
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (line is not None)
    assert line is None or line in messages[0]


def test_columns_can_be_named(tmp_path: Path) -> None:
    lines = ["Image;class", *(f"{n}.jpg;{'ab'[n % 2]}" for n in range(8))]
    for n in range(8):
        picture(tmp_path / f"{n}.jpg")
    text(tmp_path / "labels.csv", *lines)
    train = sources_of(tmp_path, path_column="Image", label_column="class")["train"]
    assert train.class_names == ("a", "b")


def test_a_list_in_another_folder_than_its_pictures_is_found_out(tmp_path: Path) -> None:
    text(tmp_path / "labels.csv", "path,label", "1.jpg,a", "2.jpg,b")
    with pytest.raises(CamtrainError, match=r"labels\.csv names .*1\.jpg first, which does not ex"):
        sources_of(tmp_path)
