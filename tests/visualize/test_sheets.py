"""Panels and contact sheets: exact pixels where they are known by hand, sizes, and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from camtrain.errors import CamtrainValueError
from camtrain.visualize import PREDICTED_BOX, TRUE_BOX, SheetRow, contact_sheet
from camtrain.visualize.sheets import panel
from tests.conftest import everyday
from tests.visualize.conftest import OUTLINE, PAPER, VIRIDIS_0, VIRIDIS_1, gray, has

LONG = "Staffordshire bullterrier, Staffordshire bull terrier"


def sheet_row(height: int = 48, width: int = 64, channels: int = 3, **changes: object) -> SheetRow:
    """A gray picture: the true heatmap is hot on the left, the predicted one on top."""
    down = torch.linspace(1, 0, height)[:, None].expand(height, width)
    right = torch.linspace(1, 0, width)[None].expand(height, width)
    row = SheetRow(
        image=gray(height, width, channels),
        true_heatmap=right,
        predicted_heatmap=down,
        true_boxes_xyxy=torch.tensor([[10, 5, 30, 25]]),
        predicted_boxes_xyxy=torch.tensor([[20, 15, 60, 40]]),
        true_name="kangaroo",
        predicted_name="raccoon",
        true_score=0.05,
        predicted_score=0.93,
        is_right=False,
    )
    return replace(row, **changes)


@pytest.mark.parametrize(
    ("height_width", "tile", "expected_hw"),
    [
        ((48, 64), 256, (192, 256)),
        ((32, 32), 224, (224, 224)),
        ((8, 8), 256, (256, 256)),
        ((1000, 300), 256, (256, 77)),
        ((300, 1000), 512, (154, 512)),
        ((1, 1500), 256, (1, 256)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_panel_keeps_the_aspect(
    height_width: tuple[int, int], tile: int, expected_hw: tuple[int, int], channels: int
) -> None:
    empty = torch.zeros(0, 4)
    boxes = {"true_boxes_xyxy": empty, "predicted_boxes_xyxy": empty}
    row = sheet_row(*height_width, channels, **boxes, tile=tile)
    unit, (height, width) = tile // 32, expected_hw
    shown = panel(row)
    assert shown.size == (3 * tile + 2 * unit, height + 7 * unit)
    first = np.asarray(shown)[:height, :tile]
    columns = (first == 100).all((0, 2))
    left = (tile - width) // 2
    assert columns[left : left + width].all()
    assert columns.sum() == width


def test_panel_shows_picture_true_heatmap_and_predicted_heatmap() -> None:
    shown = panel(sheet_row(opacity=1))
    picture, true, predicted = (shown.crop((x, 0, x + 256, 192)) for x in (0, 264, 528))
    assert picture.getpixel((0, 0)) == (100, 100, 100)
    assert true.getpixel((0, 100)) == predicted.getpixel((200, 0)) == VIRIDIS_1
    assert true.getpixel((255, 100)) == predicted.getpixel((200, 191)) == VIRIDIS_0
    for tile, colors in ((picture, 1), (true, 2), (predicted, 0)):
        found = [has(tile, TRUE_BOX), has(tile, PREDICTED_BOX)]
        assert found == [colors > 0, colors > 1]
    for tile in (picture, true):  # (10, 5, 30, 25) of 64 x 48, four times as large
        for inside, outside in (((40, 60), (39, 60)), ((119, 30), (120, 30)), ((80, 20), (80, 19))):
            assert tile.getpixel(inside) == TRUE_BOX
            assert tile.getpixel(outside) == OUTLINE
        assert tile.getpixel((50, 99)) == TRUE_BOX
    assert true.getpixel((80, 120)) == true.getpixel((239, 159)) == PREDICTED_BOX


def test_small_pictures_keep_their_pixels_and_their_heatmap_is_smooth() -> None:
    board = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).repeat(16, 16)[None]
    none = torch.zeros(0, 4)
    heatmap = torch.zeros(32, 32)
    heatmap[:, 16:] = 1
    row = sheet_row(
        *(32, 32),
        image=board,
        true_heatmap=heatmap,
        true_boxes_xyxy=none,
        predicted_boxes_xyxy=none,
        opacity=1,
    )
    shown = np.asarray(panel(row))
    blown = board[0].repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
    assert (shown[:256, :256] == blown[:, :, None]).all()
    assert len(np.unique(shown[100, 264:520], axis=0)) > 5


def test_panel_says_right_in_green_and_wrong_in_red() -> None:
    green, red = (21, 128, 61), (185, 28, 28)
    right, wrong = panel(sheet_row(is_right=True)), panel(sheet_row(is_right=False))
    assert (has(right, green), has(right, red)) == (True, False)
    assert (has(wrong, green), has(wrong, red)) == (False, True)


@pytest.mark.parametrize("name", ["", "7", "W" * 150, "i" * 300, f"{LONG}, " * 4, "two\nlines"])
@pytest.mark.parametrize("tile", everyday([224, 512], 224))
def test_captions_end_inside_the_panel(name: str, tile: int) -> None:
    row = sheet_row(
        true_name=name, predicted_name=name, true_score=1.0, predicted_score=1.0, tile=tile
    )
    shown, unit = np.asarray(panel(row)), tile // 32
    plain = np.asarray(panel(replace(row, true_name="x", predicted_name="x")))
    assert shown.shape == plain.shape
    assert (shown[-1] == PAPER).all()
    # Above the letters only the badge is red: it has its full width.
    badge_top = [(pixels[1 - 3 * unit] == (185, 28, 28)).all(-1) for pixels in (shown, plain)]
    assert badge_top[0].sum() == badge_top[1].sum() > unit


@pytest.mark.parametrize(("count", "columns"), [(1, 2), (2, 2), (5, 2), (5, 1), (48, 3)])
def test_contact_sheet_is_a_grid_of_the_panels(count: int, columns: int) -> None:
    rows = [sheet_row(image=gray(48, 64, value=5 * index), tile=224) for index in range(count)]
    sheet = contact_sheet(rows, title="epoch 3", columns=columns)
    panels = [panel(row) for row in rows]
    width, height, unit, shown_columns = *panels[0].size, 7, min(count, columns)
    lines = -(-count // columns)
    assert sheet.width == 4 * unit + shown_columns * (width + 4 * unit)
    assert sheet.height == 16 * unit + lines * (height + 3 * unit)
    for index, expected in enumerate(panels):
        left = 4 * unit + index % shown_columns * (width + 4 * unit)
        top = 15 * unit + index // shown_columns * (height + 3 * unit)
        assert sheet.crop((left, top, left + width, top + height)) == expected


def test_contact_sheet_mixes_sizes_without_overlap() -> None:
    rows = [sheet_row(30, 100), sheet_row(100, 30), sheet_row(500, 500), sheet_row(32, 64, 1)]
    heights = [panel(row).height for row in rows]
    sheet = contact_sheet(rows, title="")
    top = 15 * 8
    assert sheet.height == top + 8 + max(heights[:2]) + max(heights[2:]) + 6 * 8
    second = top + max(heights[:2]) + 24
    shown = panel(rows[2])
    assert sheet.crop((32, second, 32 + shown.width, second + shown.height)) == shown


@pytest.mark.parametrize("tile", [224, 300, 512])
def test_contact_sheet_clips_neither_title_nor_legend(tile: int) -> None:
    sheet = contact_sheet([sheet_row(tile=tile, colormap="turbo")], title="epoch 3 " * 30)
    shown, unit = np.asarray(sheet), tile // 32
    assert (shown[:, -3 * unit :] == PAPER).all()
    assert (shown[: 2 * unit] == PAPER).all()
    header = sheet.crop((0, 0, sheet.width, 11 * unit))
    for color in (PREDICTED_BOX, TRUE_BOX):
        assert has(header, color)
    for end in ((48, 18, 59), (122, 4, 3)):  # turbo, whose ends the shrunk bar almost reaches
        assert has(header, end, tolerance=12)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("between 224 and 512 pixels, got 64", lambda: sheet_row(tile=64)),
        (
            r"got \(64, 48\)",
            lambda: panel(sheet_row(predicted_heatmap=torch.zeros(64, 48))),
        ),
        ("1 row and 1 column, got 0 and 2", lambda: contact_sheet([], title="")),
        (
            "1 row and 1 column, got 1 and 0",
            lambda: contact_sheet([sheet_row()], title="", columns=0),
        ),
    ],
)
def test_bad_input_is_named(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        call()
