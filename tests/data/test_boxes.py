"""Boxes beside the pictures."""

from pathlib import Path

import pytest

from camtrain.data.boxes import read_boxes
from camtrain.errors import CamtrainValueError

HEADER = "path,xmin,ymin,xmax,ymax,class\n"
CLASS_OF = {"train/cat/a.jpg": "cat", "train/dog/b.jpg": "dog"}


def boxes(folder: Path, text: str) -> dict[str, list[list[int]]]:
    (folder / "boxes.csv").write_text(text, encoding="utf-8")
    return {path: rows.tolist() for path, rows in read_boxes(folder, CLASS_OF).items()}


def test_boxes_of_the_labelled_class_are_read_in_order(tmp_path: Path) -> None:
    text = HEADER + (
        "train/cat/a.jpg,1,2,30,40,cat\n"
        "train/cat/a.jpg,0,0,5,5,dog\n"  # another class
        "train/dog/b.jpg,3,4,5,6,\n"  # no class said
        "val/cat/c.jpg,3,4,5,6,cat\n"  # another split
        "train/cat/a.jpg,7,8,9,10,cat\n"
    )
    found = boxes(tmp_path, text)
    assert found == {
        "train/cat/a.jpg": [[1, 2, 30, 40], [7, 8, 9, 10]],
        "train/dog/b.jpg": [[3, 4, 5, 6]],
    }


def test_the_class_column_may_be_absent_and_a_byte_order_mark_present(tmp_path: Path) -> None:
    text = "\ufeffpath,xmin,ymin,xmax,ymax\ntrain/cat/a.jpg,1,2,3,4\n"
    assert boxes(tmp_path, text) == {"train/cat/a.jpg": [[1, 2, 3, 4]]}


def test_without_a_file_there_are_no_boxes(tmp_path: Path) -> None:
    assert read_boxes(tmp_path, CLASS_OF) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks path, xmin, ymin, xmax, ymax"),
        ("path,x,y,w,h\n", "lacks xmin, ymin, xmax, ymax; add the header"),
        (HEADER + "a.jpg,1,2,3,4,cat\na.jpg,1,2,x,4,cat\n", "line 3: .*got a.jpg,1,2,x,4,cat"),
        (HEADER + "a.jpg,1,2\n", "line 2: expected whole numbers"),
        (HEADER + "a.jpg,3,2,3,4,cat\n", "line 2: .*xmin < xmax"),
        (HEADER + "a.jpg,1,5,3,4,cat\n", "line 2: .*ymin < ymax"),
        (HEADER + "a.jpg,-1,2,3,4,cat\n", "line 2: .*0 <= xmin"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CamtrainValueError, match=rf"boxes\.csv.*{message}"):
        boxes(tmp_path, text)
