"""Grids of pictures: galleries, sheets of a batch, pictures over time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from camtrain.errors import CamtrainValueError
from camtrain.visualize import batch_sheet, gallery, thumbnail, timeline
from camtrain.visualize.grid import grid

RED = (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_line_of_a_grid_is_as_high_as_its_highest_cell(mode: str) -> None:
    heights = [10, 30, 20, 5]
    cells = [Image.new(mode, (40, height), "red") for height in heights]
    canvas, corners = grid(cells, 3, gaps=(4, 6), margins=(1, 2, 3, 5))
    assert canvas.size == (1 + 3 * 40 + 2 * 4 + 3, 2 + 30 + 6 + 5 + 5)
    assert corners == [(1, 2), (45, 2), (89, 2), (1, 38)]
    for (left, top), cell in zip(corners, cells, strict=True):
        assert canvas.crop((left, top, left + 40, top + cell.height)) == cell
    assert canvas.getpixel((1, 20)) == ((255, 255, 255) if mode == "RGB" else (0, 0, 0, 0))


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


@pytest.mark.parametrize(("count", "shape"), [(1, (3, 20, 30)), (6, (1, 64, 48)), (25, (3, 8, 16))])
def test_every_picture_of_a_batch_has_its_place(count: int, shape: tuple[int, int, int]) -> None:
    images = torch.full((count, *shape), 90, dtype=torch.uint8)
    none = torch.zeros(0, 4)
    sheet = batch_sheet(images, [none] * count, ["cat"] * count, title="batch")
    gray = (np.asarray(sheet) == 90).all(axis=2)
    tile = (1480 - 6 * 12) // 5
    height, width = (round(side * tile / max(shape[1:])) for side in shape[1:])
    assert sheet.width == 1480
    assert abs(gray.sum() - count * height * width) < 0.01 * gray.sum()


def test_a_box_of_a_batch_is_drawn_where_it_is() -> None:
    images = torch.full((1, 3, 40, 80), 90, dtype=torch.uint8)
    box = torch.tensor([[20.0, 10.0, 60.0, 30.0]])
    plain, boxed = (
        np.asarray(batch_sheet(images, [boxes], ["cat"], title="batch")).astype(int)
        for boxes in (torch.zeros(0, 4), box)
    )
    ys, xs = np.nonzero((plain != boxed).any(axis=2))
    scale = ((1480 - 72) // 5) / 80
    found = np.array([xs.min() - 12, ys.min() - 48, xs.max() + 1 - 12, ys.max() + 1 - 48])
    assert np.abs(found - box[0].numpy() * scale).max() <= 3


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_a_batch_needs_a_name_for_each(names: list[str]) -> None:
    with pytest.raises(CamtrainValueError, match="boxes and a name for each"):
        batch_sheet(torch.zeros(1, 3, 8, 8).byte(), [torch.zeros(0, 4)], names, title="")


def test_a_row_for_each_picture_and_a_column_for_each_moment() -> None:
    colors = [["red", "green", "blue"], ["black", "white", "gray"]]
    rows = [[Image.new("RGB", (40, 20), color) for color in row] for row in colors]
    drawn = timeline(rows, ["a", "b", "c"], tile=128)
    assert drawn.size == (3 * 128 + 2 * 6, 30 + 2 * 64 + 6)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            place = (j * 134 + 64, 30 + i * 70 + 32)
            assert drawn.getpixel(place) == (*picture.getpixel((0, 0)), 255)


def test_there_is_nothing_behind_a_timeline_and_its_words_suit_light_and_dark() -> None:
    drawn = np.asarray(timeline([[Image.new("RGB", (10, 40))]], ["epoch 10"]))
    assert drawn[-1, 0, 3] == 0  # beside a narrow picture
    words = drawn[:30]
    [color] = {tuple(pixel[:3]) for pixel in words.reshape(-1, 4) if pixel[3] == 255}
    assert 100 < np.mean(color) < 160


@pytest.mark.parametrize(
    ("rows", "headings"), [([], ["a"]), ([[None]], []), ([[None]], ["a", "b"])]
)
def test_a_timeline_needs_a_picture_for_each_heading(
    rows: list[list[Image.Image]], headings: list[str]
) -> None:
    with pytest.raises(CamtrainValueError, match=r"Every row needs a picture for each of the"):
        timeline(rows, headings)
