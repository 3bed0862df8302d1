"""Pictures: exact pixels where they are known by hand, sizes, extremes, and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.visualize import (
    COLORMAPS,
    PREDICTED_BOX,
    TRUE_BOX,
    WatchedPicture,
    _shorten,
    _text_width,
    contact_sheet,
    draw_boxes,
    overlay,
    panel,
)

VIRIDIS_0, VIRIDIS_1 = (68, 1, 84), (253, 231, 37)  # the published ends of the colour map
OUTLINE = (20, 20, 20)
RED, PAPER = (200, 10, 10), (255, 255, 255)
LONG = "Staffordshire bullterrier, Staffordshire bull terrier"


def gray(height: int, width: int, channels: int = 3, value: int = 100) -> torch.Tensor:
    return torch.full((channels, height, width), value, dtype=torch.uint8)


def watched(
    height: int = 48, width: int = 64, channels: int = 3, **changes: object
) -> WatchedPicture:
    """A gray picture: the true heatmap is hot on the left, the predicted one on top."""
    down = torch.linspace(1, 0, height)[:, None].expand(height, width)
    right = torch.linspace(1, 0, width)[None].expand(height, width)
    row = WatchedPicture(
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


def has(picture: Image.Image, color: tuple[int, int, int], tolerance: int = 0) -> bool:
    return bool((np.abs(np.asarray(picture).astype(int) - color) <= tolerance).all(-1).any())


def test_overlay_of_opacity_0_is_the_image_and_of_opacity_1_the_colour_map() -> None:
    image = torch.randint(0, 256, (3, 4, 7), dtype=torch.uint8)
    heatmap = torch.zeros(4, 7)
    heatmap[0, 6] = 1  # top right: a swap of height and width would move it
    shown = np.asarray(overlay(image, heatmap, opacity=0))
    assert (shown == image.permute(1, 2, 0).numpy()).all()
    shown = np.asarray(overlay(image, heatmap, opacity=1))
    assert shown.shape == (4, 7, 3)
    assert tuple(shown[0, 6]) == VIRIDIS_1
    assert (shown.reshape(-1, 3)[np.arange(28) != 6] == VIRIDIS_0).all()


def test_overlay_mixes_by_opacity() -> None:
    image = Image.new("RGB", (2, 1), (100, 101, 120))
    shown = overlay(image, torch.tensor([[0.0, 1.0]]), opacity=0.25)
    assert shown.getpixel((0, 0)) == (92, 76, 111)  # 0.75 * image + 0.25 * (68, 1, 84)
    assert shown.getpixel((1, 0)) == (138, 134, 99)  # 138.25, 133.5 (to even), 99.25


def test_overlay_takes_gray_and_pil_pictures_alike() -> None:
    image, heatmap = torch.arange(35, dtype=torch.uint8).view(1, 5, 7), torch.rand(5, 7)
    expected = overlay(image, heatmap)
    assert overlay(image.expand(3, -1, -1), heatmap) == expected
    for mode in ("L", "RGB", "RGBA"):
        assert overlay(Image.fromarray(image[0].numpy()).convert(mode), heatmap) == expected


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_colour_maps_have_256_levels_and_the_uniform_ones_brighten(colormap: str) -> None:
    heatmap = torch.linspace(0, 1, 256)[None]
    colors = np.asarray(overlay(gray(1, 256), heatmap, colormap=colormap, opacity=1))[0]
    assert len(np.unique(colors, axis=0)) > 200
    luminance = colors @ np.array([0.2126, 0.7152, 0.0722])
    uniform = colormap in ("viridis", "inferno")
    assert (np.diff(luminance) > -0.5).all() == uniform
    assert (luminance[-1] - luminance[0] > 150) == uniform


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 22), st.integers(0, 30)),
    st.tuples(st.integers(1, 25), st.integers(1, 33)),
    st.integers(1, 4),
)
def test_box_colours_its_outermost_pixels_between_two_outlines(
    corner: tuple[int, int], extent: tuple[int, int], width: int
) -> None:
    """Against masks that are counted from the distance to the border, box by box."""
    height_width = (25, 33)
    y1, x1 = corner
    y2, x2 = (min(c + e, side) for c, e, side in zip(corner, extent, height_width, strict=True))
    image = Image.new("RGB", height_width[::-1], (90, 90, 90))
    shown = np.asarray(draw_boxes(image, torch.tensor([[x1, y1, x2, y2]]), color=RED, width=width))
    y, x = np.mgrid[: height_width[0], : height_width[1]]
    depth = np.minimum.reduce([x - x1, x2 - 1 - x, y - y1, y2 - 1 - y])  # 0 on the border pixels
    margin = (width + 1) // 2
    colored = (depth >= 0) & (depth < width)
    outlined = (depth >= -margin) & (depth < width + margin) & ~colored
    expected = np.full((*height_width, 3), 90)
    expected[colored], expected[outlined] = RED, OUTLINE
    assert (shown == expected).all()


def test_box_lines_grow_with_the_picture() -> None:
    for side, width in ((32, 1), (256, 2), (1024, 8)):
        boxes = torch.tensor([[0, 0, side, side]])
        shown = np.asarray(draw_boxes(Image.new("RGB", (side, side)), boxes, color=RED))
        assert (shown[side // 2] == RED).all(-1).sum() == 2 * width


def test_boxes_are_cut_off_rounded_and_left_out() -> None:
    image = Image.new("RGB", (20, 10))

    def drawn(*box: float) -> Image.Image:
        return draw_boxes(image, torch.tensor([box]), color=RED)

    assert drawn(-5, 2, 99, 8) == drawn(0, 2, 20, 8)
    assert drawn(2.4, 1.6, 9.6, 7.4) == drawn(2, 2, 10, 7)
    assert drawn(5.1, 5.1, 5.3, 5.3) == drawn(5, 5, 6, 6)  # small boxes stay visible
    assert drawn(19.8, 9.8, 20, 10) == drawn(19, 9, 20, 10)
    for nothing in ((25, 2, 30, 8), (5, 5, 5, 8), (8, 2, 4, 9), (-9, -9, -1, -1)):
        assert drawn(*nothing) == image
    assert draw_boxes(image, torch.zeros(0, 4), color=RED) == image
    assert not has(image, RED)


def test_a_later_outline_hides_no_earlier_colour() -> None:
    boxes = torch.tensor([[10, 10, 40, 40], [11, 11, 39, 39]])
    shown = draw_boxes(Image.new("RGB", (64, 64)), boxes, color=RED, width=1)
    assert shown.getpixel((10, 25)) == shown.getpixel((11, 25)) == RED


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
    row = watched(*height_width, channels, true_boxes_xyxy=empty, predicted_boxes_xyxy=empty)
    unit, (height, width) = tile // 32, expected_hw
    shown = panel(row, tile=tile)
    assert shown.size == (3 * tile + 2 * unit, height + 7 * unit)
    first = np.asarray(shown)[:height, :tile]
    columns = (first == 100).all((0, 2))
    left = (tile - width) // 2
    assert columns[left : left + width].all()
    assert columns.sum() == width


def test_panel_shows_picture_true_heatmap_and_predicted_heatmap() -> None:
    row = watched()
    shown = panel(row, opacity=1)
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
    row = watched(
        32, 32, image=board, true_heatmap=heatmap, true_boxes_xyxy=none, predicted_boxes_xyxy=none
    )
    shown = np.asarray(panel(row, opacity=1))
    blown = board[0].repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
    assert (shown[:256, :256] == blown[:, :, None]).all()
    assert len(np.unique(shown[100, 264:520], axis=0)) > 5


def test_panel_says_right_in_green_and_wrong_in_red() -> None:
    green, red = (21, 128, 61), (185, 28, 28)
    right, wrong = panel(watched(is_right=True)), panel(watched(is_right=False))
    assert (has(right, green), has(right, red)) == (True, False)
    assert (has(wrong, green), has(wrong, red)) == (False, True)


@pytest.mark.parametrize("name", ["", "7", "W" * 150, "i" * 300, f"{LONG}, " * 4, "two\nlines"])
@pytest.mark.parametrize("tile", [224, 512])
def test_captions_end_inside_the_panel(name: str, tile: int) -> None:
    row = watched(true_name=name, predicted_name=name, true_score=1.0, predicted_score=1.0)
    shown, unit = np.asarray(panel(row, tile=tile)), tile // 32
    plain = np.asarray(panel(replace(row, true_name="x", predicted_name="x"), tile=tile))
    assert shown.shape == plain.shape
    assert (shown[-1] == PAPER).all()
    # Above the letters only the badge is red: it has its full width.
    badge_top = [(pixels[1 - 3 * unit] == (185, 28, 28)).all(-1) for pixels in (shown, plain)]
    assert badge_top[0].sum() == badge_top[1].sum() > unit


@pytest.mark.parametrize("size", [14, 16, 32])
def test_shortened_text_fits_and_keeps_both_ends(size: int) -> None:
    for text in (LONG, "W" * 200, "i" * 200, LONG * 4):
        for width in (100, 300, 700):
            shown = _shorten(text, width, size)
            assert _text_width(shown, size) <= width
            if shown != text:
                head, tail = shown.split("…")
                assert text.startswith(head)
                assert text.endswith(tail)
                assert 0 <= len(head) - len(tail) <= 2  # a space beside the ellipsis is dropped
                assert _text_width(shown, size) > width - 3 * size
    assert _shorten(LONG, 2000, size) == LONG
    assert _shorten("two\nlines", 500, size) == "two lines"
    assert _shorten("Bär · zażółć …", 500, size) == "Bar · zazołc …"


@pytest.mark.parametrize(("count", "columns"), [(1, 2), (2, 2), (5, 2), (5, 1), (48, 3)])
def test_contact_sheet_is_a_grid_of_the_panels(count: int, columns: int) -> None:
    rows = [watched(image=gray(48, 64, value=5 * index)) for index in range(count)]
    sheet = contact_sheet(rows, title="epoch 3", columns=columns, tile=224)
    panels = [panel(row, tile=224) for row in rows]
    width, height, unit, shown_columns = *panels[0].size, 7, min(count, columns)
    lines = -(-count // columns)
    assert sheet.width == 4 * unit + shown_columns * (width + 4 * unit)
    assert sheet.height == 16 * unit + lines * (height + 3 * unit)
    for index, expected in enumerate(panels):
        left = 4 * unit + index % shown_columns * (width + 4 * unit)
        top = 15 * unit + index // shown_columns * (height + 3 * unit)
        assert sheet.crop((left, top, left + width, top + height)) == expected


def test_contact_sheet_mixes_sizes_without_overlap() -> None:
    rows = [watched(30, 100), watched(100, 30), watched(500, 500), watched(32, 64, 1)]
    heights = [panel(row).height for row in rows]
    sheet = contact_sheet(rows, title="")
    top = 15 * 8
    assert sheet.height == top + 8 + max(heights[:2]) + max(heights[2:]) + 6 * 8
    second = top + max(heights[:2]) + 24
    shown = panel(rows[2])
    assert sheet.crop((32, second, 32 + shown.width, second + shown.height)) == shown


@pytest.mark.parametrize("tile", [224, 300, 512])
def test_contact_sheet_clips_neither_title_nor_legend(tile: int) -> None:
    sheet = contact_sheet([watched()], title="epoch 3 " * 30, tile=tile, colormap="turbo")
    shown, unit = np.asarray(sheet), tile // 32
    assert (shown[:, -3 * unit :] == PAPER).all()
    assert (shown[: 2 * unit] == PAPER).all()
    header = sheet.crop((0, 0, sheet.width, 11 * unit))
    for color in (PREDICTED_BOX, TRUE_BOX):
        assert has(header, color)
    for end in ((48, 18, 59), (122, 4, 3)):  # turbo, whose ends the shrunk bar almost reaches
        assert has(header, end, tolerance=12)


IMAGE = gray(4, 7)
HEATMAP = torch.zeros(4, 7)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "uint8 tensor, got torch.float32", lambda: overlay(IMAGE.float(), HEATMAP)),
        (TypeError, "uint8 tensor, got ndarray|got uint8", lambda: overlay(IMAGE.numpy(), HEATMAP)),
        (TypeError, "PIL image or a uint8 tensor, got str", lambda: overlay("a.jpg", HEATMAP)),
        (ValueError, r"C = 1 or 3, got \(4, 7, 3\)", lambda: overlay(gray(7, 3, 4), HEATMAP)),
        (ValueError, r"C = 1 or 3, got \(4, 7\)", lambda: overlay(IMAGE[0], HEATMAP)),
        (ValueError, r"\(H, W\) = \(4, 7\), got \(7, 4\)", lambda: overlay(IMAGE, HEATMAP.T)),
        (ValueError, r"got \(1, 4, 7\)", lambda: overlay(IMAGE, HEATMAP[None])),
        (ValueError, r"\[0, 1\], got 2 to 2", lambda: overlay(IMAGE, HEATMAP + 2)),
        (ValueError, r"\[0, 1\], got nan", lambda: overlay(IMAGE, HEATMAP * torch.nan)),
        (ValueError, "opacity must lie in", lambda: overlay(IMAGE, HEATMAP, opacity=1.5)),
        (
            ValueError,
            "one of viridis, inferno, turbo, jet, got 'hot'",
            lambda: overlay(IMAGE, HEATMAP, colormap="hot"),
        ),
        (
            ValueError,
            r"\(n, 4\).*got shape \(4,\)",
            lambda: draw_boxes(Image.new("L", (9, 9)), torch.zeros(4), color=RED),
        ),
        (
            ValueError,
            "finite pixels.*nan",
            lambda: draw_boxes(Image.new("L", (9, 9)), torch.full((1, 4), torch.nan), color=RED),
        ),
        (ValueError, "between 224 and 512 pixels, got 64", lambda: panel(watched(), tile=64)),
        (
            ValueError,
            r"got \(64, 48\)",
            lambda: panel(watched(predicted_heatmap=torch.zeros(64, 48))),
        ),
        (ValueError, "1 row and 1 column, got 0 and 2", lambda: contact_sheet([], title="")),
        (
            ValueError,
            "1 row and 1 column, got 1 and 0",
            lambda: contact_sheet([watched()], title="", columns=0),
        ),
    ],
)
def test_bad_input_is_named(
    error: type[Exception], message: str, call: Callable[[], object]
) -> None:
    ours = CamtrainTypeError if error is TypeError else CamtrainValueError
    with pytest.raises(ours, match=message):
        call()
