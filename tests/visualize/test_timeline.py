"""Pictures over time: places, headings that can be read on any paper, errors."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from camtrain.errors import CamtrainValueError
from camtrain.visualize import timeline


def test_a_row_for_each_picture_and_a_column_for_each_moment() -> None:
    colors = [["red", "green", "blue"], ["black", "white", "gray"]]
    rows = [[Image.new("RGB", (40, 20), color) for color in row] for row in colors]
    drawn = timeline(rows, ["a", "b", "c"], tile=128)
    assert drawn.size == (3 * 128 + 2 * 6, 30 + 2 * 64 + 6)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            place = (j * 134 + 64, 30 + i * 70 + 32)
            assert drawn.getpixel(place) == (*picture.getpixel((0, 0)), 255)


def test_there_is_nothing_behind_it_and_its_words_suit_light_and_dark() -> None:
    drawn = np.asarray(timeline([[Image.new("RGB", (10, 40))]], ["epoch 10"]))
    assert drawn[-1, 0, 3] == 0  # beside a narrow picture
    words = drawn[:30]
    [color] = {tuple(pixel[:3]) for pixel in words.reshape(-1, 4) if pixel[3] == 255}
    assert 100 < np.mean(color) < 160


@pytest.mark.parametrize(
    ("rows", "headings"), [([], ["a"]), ([[None]], []), ([[None]], ["a", "b"])]
)
def test_bad_input_is_named(rows: list[list[Image.Image]], headings: list[str]) -> None:
    with pytest.raises(CamtrainValueError, match=r"Every row needs a picture for each of the"):
        timeline(rows, headings)
