"""Boxes beside the pictures, in every format, end as half-open pixels of their picture."""

import doctest
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camtrain.data import ImageFolder, box_files
from camtrain.data.box_files import from_xywh
from camtrain.data.boxes import BoxTable
from camtrain.errors import CamtrainError
from tests.data.trees import picture, text, xml

HEADER = "path,xmin,ymin,xmax,ymax,class"


def pictures(root: Path) -> Path:
    for name in ("cat/a.jpg", "cat/b.jpg", "dog/a.jpg", "dog/c.jpg"):
        picture(root / "test" / name)
    return root


def boxes_of(root: Path) -> dict[str, list[list[int]]]:
    """The boxes of the pictures that have any."""
    source = ImageFolder(pictures(root), "test")
    found = {
        Path(path).relative_to(root / "test").as_posix(): source.boxes(index).tolist()
        for index, path in enumerate(source.paths)
    }
    return {path: boxes for path, boxes in found.items() if boxes}


def coco(root: Path, *boxes: tuple[str, str, list[float]], **more: Any) -> Path:
    """A COCO file of (file name, class, x y width height); ids begin where they like."""
    names = sorted({name for _, name, _ in boxes})
    files = sorted({file for file, _, _ in boxes})
    content = {
        "images": [{"id": 40 + n, "file_name": file} for n, file in enumerate(files)],
        "categories": [{"id": 7 + n, "name": name} for n, name in enumerate(names)],
        "annotations": [
            {
                "image_id": 40 + files.index(file),
                "category_id": 7 + names.index(name),
                "bbox": box,
                **more,
            }
            for file, name, box in boxes
        ],
    }
    return text(root / "boxes.json", json.dumps(content))


def test_the_same_boxes_in_every_format(tmp_path: Path) -> None:
    """A cat in the columns 3 to 9 and rows 4 to 5, another that fills the picture of 50 x 30."""
    expected = {"cat/a.jpg": [[3, 4, 10, 6], [0, 0, 50, 30]], "dog/c.jpg": [[1, 1, 2, 2]]}
    text(
        tmp_path / "csv" / "boxes.csv",
        HEADER,
        "test/cat/a.jpg,3,4,10,6,cat",
        "test/cat/a.jpg,0,0,5,5,dog",  # another class
        "test/dog/c.jpg,1,1,2,2,",  # no class said
        "train/cat/a.jpg,3,4,5,6,cat",  # another split
        "test/cat/a.jpg,0,0,50,30,cat",
    )
    folder = tmp_path / "voc" / "test"
    cats = ("cat", 4, 5, 10, 6), ("dog", 1, 1, 5, 5), ("cat", 1, 1, 50, 30)
    xml(folder / "cat" / "a.xml", *cats)
    xml(folder / "dog" / "c.xml", ("dog", 2, 2, 2, 2))
    coco(
        tmp_path / "coco",
        ("test/cat/a.jpg", "cat", [3, 4, 7, 2]),
        ("test/cat/a.jpg", "dog", [0, 0, 5, 5]),
        ("c.jpg", "dog", [1, 1, 1, 1]),  # the only one of this name
        ("nowhere.jpg", "dog", [1, 1, 1, 1]),
        ("test/cat/a.jpg", "cat", [0, 0, 50, 30]),
    )
    assert boxes_of(tmp_path / "voc") == expected
    folder = pictures(tmp_path / "yolo")
    lines = "1 .13 .1666667 .14 .0666667", "0 .1 .1 .1 .1", "1 .5 .5 1 1 .9"  # with a score
    yolo(folder, *lines)
    text(folder / "test" / "dog" / "c.txt", "0 .03 .05 .02 .0333333", "")
    assert boxes_of(folder) == expected
    for name, path in {"csv": r"train/cat/a\.jpg", "coco": r"nowhere\.jpg"}.items():
        with pytest.warns(
            UserWarning, match=f"1 boxes are of no .* of {path}; 3 are of 2 pictures"
        ):
            assert boxes_of(tmp_path / name) == expected


def test_class_names_of_boxes_may_spell_accents_in_two_ways(tmp_path: Path) -> None:
    """Before, such boxes were those of another class."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    picture(tmp_path / "csv" / "test" / composed / "a.jpg")
    text(tmp_path / "csv" / "boxes.csv", HEADER, f"test/{composed}/a.jpg,1,1,2,2,{decomposed}")
    picture(tmp_path / "voc" / "test" / composed / "a.jpg")
    xml(tmp_path / "voc" / "test" / composed / "a.xml", (decomposed, 2, 2, 2, 2))
    for name in ("csv", "voc"):
        picture(tmp_path / name / "test" / "dog" / "a.jpg")
        assert ImageFolder(tmp_path / name, "test").boxes(0).tolist() == [[1, 1, 2, 2]]


def test_the_class_column_may_be_absent_and_a_byte_order_mark_present(tmp_path: Path) -> None:
    text(tmp_path / "boxes.csv", "\ufeffpath,xmin,ymin,xmax,ymax", "test/cat/a.jpg,1,2,3,4")
    assert boxes_of(tmp_path) == {"cat/a.jpg": [[1, 2, 3, 4]]}


@pytest.mark.parametrize("separator", [";", "\t", ", "])
def test_boxes_are_read_as_spreadsheets_write_them(separator: str, tmp_path: Path) -> None:
    """Before: boxes.csv must start with the line path,xmin,..."""
    lines = [HEADER.title(), "test/cat/a.jpg,3,4,10,6,cat"]
    text(tmp_path / "boxes.csv", *(line.replace(",", separator) for line in lines))
    assert boxes_of(tmp_path) == {"cat/a.jpg": [[3, 4, 10, 6]]}


def test_without_a_file_there_are_no_boxes(tmp_path: Path) -> None:
    assert boxes_of(tmp_path) == {}


def test_crowds_are_no_boxes(tmp_path: Path) -> None:
    coco(tmp_path, ("test/cat/a.jpg", "cat", [3, 4, 7, 2]), iscrowd=1)
    assert boxes_of(tmp_path) == {}


def test_tools_that_count_voc_from_0_do_not_leave_the_picture(tmp_path: Path) -> None:
    xml(tmp_path / "test" / "cat" / "a.xml", ("cat", 0, 0, 9, 9))
    assert boxes_of(tmp_path) == {"cat/a.jpg": [[0, 0, 9, 9]]}


@given(x=st.floats(0, 40), y=st.floats(0, 20), width=st.floats(0, 10), height=st.floats(0, 10))
def test_edges_are_rounded_and_a_box_has_area(
    x: float, y: float, width: float, height: float
) -> None:
    xmin, ymin, xmax, ymax = from_xywh(x, y, width, height)
    assert abs(xmin - x) <= 0.5
    assert abs(ymin - y) <= 0.5
    assert 0 <= xmin < xmax
    assert 0 <= ymin < ymax
    assert xmax == xmin + 1 or abs(xmax - x - width) <= 0.5
    assert ymax == ymin + 1 or abs(ymax - y - height) <= 0.5


def test_a_table_keeps_the_order_of_the_boxes_of_a_picture() -> None:
    boxes = [[n, n, n + 1, n + 2] for n in range(5)]
    table = BoxTable(4, [2, 0, 2, 3, 2], boxes)
    assert [table(row).tolist() for row in range(4)] == [
        [boxes[1]],
        [],
        [boxes[0], boxes[2], boxes[4]],
        [boxes[3]],
    ]
    assert BoxTable(2, [], [])(1).shape == (0, 4)
    assert table(0).dtype == BoxTable(1, [], [])(0).dtype
    assert np.array_equal(table(0), [boxes[1]])


def test_the_examples_print_what_they_say() -> None:
    failed, attempted = doctest.testmod(box_files)
    assert attempted > 0
    assert failed == 0


def csv_of(*lines: str) -> Callable[[Path], object]:
    return lambda root: text(root / "boxes.csv", *lines)


def xml_of(*objects: Any) -> Callable[[Path], object]:
    return lambda root: xml(root / "test" / "cat" / "a.xml", *objects)


def yolo(root: Path, *lines: str, names: str = "names: [dog, cat]") -> Path:
    """A YOLO text file beside a picture of 50 x 30, and the names of its classes."""
    text(root / "data.yaml", names)
    return text(root / "test" / "cat" / "a.txt", *lines)


def yolo_of(*lines: str, **more: str) -> Callable[[Path], object]:
    return lambda root: yolo(root, *lines, **more)


def csv_and_yolo(root: Path) -> None:
    csv_of(HEADER)(root)
    yolo(root)


def csv_and_coco(root: Path) -> None:
    csv_of(HEADER)(root)
    text(root / "annotations.json", "{}")


def csv_and_xml(root: Path) -> None:
    csv_of(HEADER)(root)
    xml_of()(root)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (csv_of(), r"boxes\.csv.*lacks path, xmin, ymin, xmax, ymax"),
        (csv_of("path,x,y,w,h"), "lacks xmin, ymin, xmax, ymax; add the header"),
        (csv_of(HEADER, "a.jpg,1,2,3,4,cat", "a.jpg,1,2,x,4,cat"), "line 3: .*got a.jpg,1,2,x,4,c"),
        (csv_of(HEADER, "a.jpg,1,2"), "line 2: expected whole numbers"),
        (csv_of(HEADER, "a.jpg,3,2,3,4,cat"), "line 2: .*xmin < xmax"),
        (csv_of(HEADER, "a.jpg,1,5,3,4,cat"), "line 2: .*ymin < ymax"),
        (csv_of(HEADER, "a.jpg,-1,2,3,4,cat"), "line 2: .*0 <= xmin"),
        (lambda root: text(root / "boxes.json", "{"), r"boxes\.json must be a COCO file .*JSON"),
        (lambda root: text(root / "boxes.json", "{}"), "a COCO file .*KeyError: 'categories'"),
        (lambda root: text(root / "boxes.json", "[1]"), "must be a COCO file .*TypeError"),
        (
            lambda root: coco(root, ("test/cat/a.jpg", "cat", [1, 2, 3])),
            "expected x, y, width, height in the bbox of test/cat/a.jpg, got 1, 2, 3",
        ),
        (
            lambda root: coco(root, ("test/cat/a.jpg", "cat", [1, 2, -3, 4])),
            "got 1, 2, -3, 4; correct or delete it",
        ),
        (
            lambda root: coco(root, ("a.jpg", "cat", [1, 2, 3, 4])),
            r"names the picture a\.jpg, and there are 2 of this name; write file_name with fold",
        ),
        (xml_of(("cat", 5, 4, 4, 6)), r"a\.xml: expected numbers with xmin <= xmax .* got 5, 4, 4"),
        (xml_of(("cat", "a", 4, 4, 6)), r"a\.xml: expected numbers .* of cat, got a, 4, 4, 6"),
        (
            lambda root: text(root / "test" / "cat" / "a.xml", "<annotation>"),
            r"a\.xml must be the XML of a picture's boxes, but cannot be read \(no element",
        ),
        # Of the boxes that belong to no picture: before, the data counted as without boxes.
        (
            csv_of(HEADER, "cat/a.jpg,1,2,3,4,cat", "cat/b.jpg,1,2,3,4,cat"),
            r"All boxes of .* are of no picture, the first of cat/a\.jpg; write paths relative to",
        ),
        (
            csv_of(HEADER, "test/cat/a.jpg,1,2,3,4,Cat"),
            "are of another class than their picture, the first of Cat; the classes are cat, dog;",
        ),
        (
            lambda root: coco(root, ("x.jpg", "cat", [1, 2, 3, 4])),
            r"All boxes of .* are of no picture, the first of x\.jpg",
        ),
        (
            lambda root: xml(root / "test" / "cat" / "x.xml", ("cat", 1, 1, 2, 2)),
            r"All boxes of .* are in XML files that no picture is named like, as cat/1\.jpg",
        ),
        (csv_of(HEADER, "a.jpg,1,2,3,3000000000,cat"), "line 2: .*got a.jpg,1,2,3,3000000000"),
        (csv_of(HEADER, f"a.jpg,1,2,{'9' * 5000},4,cat"), "line 2: expected whole numbers"),
        (csv_of(HEADER, "a" * 200_000), "line 2: field larger than field limit"),
        (csv_of(HEADER, '"a.jpg' + ",1" * 200_000), "line 2: field larger than field limit"),
        *(
            (
                lambda root, side=side: coco(root, ("test/cat/a.jpg", "cat", [1, 2, side, 4])),
                rf"the bbox of test/cat/a\.jpg, got 1, 2, {shown}, 4",
            )
            for side, shown in ((1e308, r"1e\+308"), (math.inf, "inf"), (math.nan, "nan"))
        ),
        (lambda root: text(root / "boxes.json", "[" * 100_000), "a COCO file .*RecursionError"),
        *(
            (xml_of(("cat", 1, 1, side, 6)), rf"a\.xml: expected numbers .* got 1, 1, {side}, 6")
            for side in ("inf", "nan", "1e300", "5000000000")
        ),
        (
            yolo_of("1 .5 .5 .5"),
            r"a\.txt, line 1: expected the number of a class of data\.yaml, 0 to ",
        ),
        (
            yolo_of("", "2 .5 .5 .5 .5"),
            "line 2: .* 0 to 1, and x, y, .* got 2 .5 .5 .5 .5; correct",
        ),
        (yolo_of("1 .5 .5 .5 25"), "width, height from 0 to 1, got 1 .5 .5 .5 25; correct or del"),
        (yolo_of("1 .5 .5 .5 nan"), "got 1 .5 .5 .5 nan"),
        (yolo_of("cat .5 .5 .5 .5"), "got cat .5 .5 .5 .5"),
        (
            yolo_of(names="nc: 2"),
            r"data\.yaml must hold the names of the classes of YOLO .*'names'",
        ),
        (
            yolo_of(names="names: ["),
            r"data\.yaml must hold the names .*write names: \[NAME, \.\.\.",
        ),
        (csv_and_yolo, r"but has boxes\.csv and text files beside the pictures, with data\.yaml"),
        (csv_and_coco, r"boxes in one place, but has boxes\.csv and annotations\.json"),
        (csv_and_xml, r"but has boxes\.csv and XML files beside the pictures; delete or rename"),
    ],
)
def test_damaged_boxes_get_one_clear_sentence(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(CamtrainError, match=message) as caught:
        boxes_of(tmp_path)
    assert str(tmp_path) in str(caught.value)
