"""Overlays and boxes: exact pixels where they are known by hand, extremes, and errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.visualize import COLORMAPS, draw_boxes, overlay
from tests.visualize.conftest import OUTLINE, VIRIDIS_0, VIRIDIS_1, gray, has

RED = (200, 10, 10)


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


@settings(max_examples=60)
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
    ],
)
def test_bad_input_is_named(
    error: type[Exception], message: str, call: Callable[[], object]
) -> None:
    ours = CamtrainTypeError if error is TypeError else CamtrainValueError
    with pytest.raises(ours, match=message):
        call()
