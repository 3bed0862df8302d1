"""The plain-text lists of data sets."""

from pathlib import Path

import pytest

from camtrain.data.lists import find_one_of, lines_of
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from tests.data.trees import text


def fields(file: Path, form: str, **options: object) -> list[list[str]]:
    return [line.fields for line in lines_of(file, form, **options)]


def test_lines_are_split_where_their_form_says(tmp_path: Path) -> None:
    file = text(tmp_path / "list.txt", "\ufeffa b/1.jpg 7", "", "  c.jpg\t8  ")
    assert fields(file, "path label") == [["a b/1.jpg", "7"], ["c.jpg", "8"]]
    file = text(tmp_path / "words.txt", "n01440764 tench, Tinca tinca")
    assert fields(file, "wnid words", from_right=False) == [["n01440764", "tench, Tinca tinca"]]
    file = text(tmp_path / "boxes.txt", "a,b.jpg,1, 2")
    assert fields(file, "path,x,y", separator=",") == [["a,b.jpg", "1", "2"]]
    [line] = lines_of(file, "path,x,y", separator=",")
    assert (line.integer(1), line.numbers(1, 2)) == (1, [1.0, 2.0])


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xd8\xff\xe0 JFIF")
    with pytest.raises(CamtrainValueError, match=r"list\.txt must be a text of lines path label"):
        fields(tmp_path / "list.txt", "path label")


def test_the_first_name_that_exists_is_found(tmp_path: Path) -> None:
    text(tmp_path / "in" / "b.txt", "b")
    assert find_one_of(tmp_path, ["a.txt", "in/b.txt"], "a list") == tmp_path / "in" / "b.txt"
    with pytest.raises(CamtrainFileNotFoundError, match=r"lacks a\.txt \(or c\.txt\), a list; put"):
        find_one_of(tmp_path, ["a.txt", "c.txt"], "a list")
