"""Galleries: every picture whole in its tile, its text below it."""

import numpy as np
import pytest
from PIL import Image

from camtrain.errors import CamtrainValueError
from camtrain.visualize import gallery, thumbnail

RED = (255, 0, 0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((500, 375), (100, 75)), ((30, 90), (33, 100)), ((10, 10), (100, 100)), ((4000, 3), (100, 1))],
)
def test_a_thumbnail_keeps_the_aspect(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert thumbnail(Image.new("RGB", size), 100).size == expected


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 3, 2), (7, 3, 3)])
def test_pictures_lie_in_a_grid_and_lines_below_them(count: int, columns: int, rows: int) -> None:
    pictures = [(Image.new("RGB", (90, 60), RED), f"class {n}", f"{n}.jpg") for n in range(count)]
    sheet = gallery(pictures, title="a title", columns=3, tile=90)
    pixels = np.asarray(sheet)
    is_red = (pixels == RED).all(-1)
    assert is_red.sum() == count * 90 * 60
    runs = np.flatnonzero(np.diff(is_red.any(0).astype(int)) == 1)
    assert len(runs) == columns
    starts = np.flatnonzero(np.diff(is_red.any(1).astype(int)) == 1)
    assert len(starts) == rows
    ends = np.flatnonzero(np.diff(is_red.any(1).astype(int)) == -1)
    for end in ends:  # two lines of text
        assert (pixels[end + 1 : end + 45] < 128).any()


def test_long_texts_are_shortened_to_their_tile() -> None:
    picture = Image.new("RGB", (90, 60), RED)
    sheet = gallery([(picture, "w" * 200, "x" * 200)] * 2, title="y" * 400, tile=90)
    pixels = np.asarray(sheet)
    assert (pixels[:, -10:] == 255).all()
    assert (pixels[151:, 16 + 90 + 2 : 16 + 90 + 14] == 255).all()  # between the two texts


@pytest.mark.parametrize(("pictures", "columns"), [(0, 2), (1, 0)])
def test_nothing_to_show_is_refused(pictures: int, columns: int) -> None:
    shown = [(Image.new("RGB", (4, 4)), "a", "b")] * pictures
    with pytest.raises(CamtrainValueError, match="at least 1 picture and 1 column"):
        gallery(shown, title="x", columns=columns)
