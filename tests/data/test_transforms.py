"""Boxes and maps agree with the pixels in every resize mode and augmentation."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from camtrain.data import (
    AUGMENTATIONS,
    Augmentation,
    CropGeometry,
    boxes_to_input,
    fit_channels,
    normalize,
    prepare,
    resize,
    to_pixels,
)
from camtrain.data.transforms import INTERPOLATIONS
from camtrain.errors import CamtrainValueError
from camtrain.maps import maps_on_picture
from camtrain.preprocessing import ChannelOrder, Preprocessing, ResizeMode

SIZES = st.tuples(st.integers(16, 80), st.integers(16, 80))


@st.composite
def preprocessings(draw: st.DrawFn) -> Preprocessing:
    return Preprocessing(
        size=draw(SIZES),
        resize_mode=draw(st.sampled_from(get_args(ResizeMode))),
        interpolation=draw(st.sampled_from(["nearest", "bilinear", "bicubic"])),
        crop_pct=draw(st.sampled_from([1.0, 0.875, 0.6])),
    )


def extent(seen: torch.Tensor) -> torch.Tensor:
    """The tight xyxy box of the true pixels."""
    ys, xs = seen.nonzero(as_tuple=True)
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


@given(preprocessing=preprocessings(), image_hw=SIZES, corners=st.tuples(*[st.floats(0, 1)] * 4))
def test_a_box_drawn_on_the_picture_lies_on_the_object_in_the_input(
    preprocessing: Preprocessing, image_hw: tuple[int, int], corners: tuple[float, ...]
) -> None:
    (y0, y1), (x0, x1) = (
        sorted(round(corner * side) for corner in pair)
        for pair, side in zip((corners[:2], corners[2:]), image_hw, strict=True)
    )
    assume(y1 - y0 >= 3)
    assume(x1 - x0 >= 3)
    image = torch.zeros(3, *image_hw, dtype=torch.uint8)
    image[:, y0:y1, x0:x1] = 255
    placement = preprocessing.placement(image_hw)
    box = boxes_to_input(torch.tensor([[x0, y0, x1, y1]]), placement)[0]
    width, height = preprocessing.size[1], preprocessing.size[0]
    box = box.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    assume(min(box[2] - box[0], box[3] - box[1]) >= 3)
    resized = resize(image, preprocessing)
    assert resized.shape == (3, *preprocessing.size)
    assert resized.dtype == torch.uint8
    assert (extent(resized[0] > 127) - box).abs().max() <= 1


def test_crop_and_pad_of_equal_scale_move_pixels_only() -> None:
    image = torch.arange(4 * 7, dtype=torch.uint8).reshape(1, 4, 7)
    gray = {"mean": (0.5,), "std": (1.0,)}
    cropped = resize(image, Preprocessing(size=(4, 4), resize_mode="crop", **gray))
    assert torch.equal(cropped, image[:, :, 2:6])
    padded = resize(image, Preprocessing(size=(8, 7), resize_mode="pad", **gray))
    assert torch.equal(padded[:, 2:6], image)
    assert padded[:, :2].eq(128).all()
    assert padded[:, 6:].eq(128).all()


def test_padding_is_nearly_zero_after_normalization() -> None:
    preprocessing = Preprocessing(size=(30, 20), resize_mode="pad")
    ready = prepare(torch.full((3, 8, 16), 255, dtype=torch.uint8), preprocessing)
    assert ready.dtype == torch.float32
    assert ready[:, 0].abs().max() < 0.5 / 255 / min(preprocessing.std) + 1e-6


def test_bytes_and_unit_floats_are_the_same_pixels() -> None:
    image = torch.randint(0, 256, (3, 24, 36), dtype=torch.uint8)
    preprocessing = Preprocessing(size=(24, 36))
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    expected = (image / 255 - mean) / std
    torch.testing.assert_close(normalize(image, preprocessing), expected)
    torch.testing.assert_close(prepare(image / 255, preprocessing), expected)


def test_bgr_turns_the_channels_around_before_mean_and_std() -> None:
    """Caffe's input by hand: pixels 0..255, blue first, minus 104, 117, 123."""
    orange = torch.tensor([255, 128, 10], dtype=torch.uint8)[:, None, None].expand(3, 5, 7)
    caffe = Preprocessing(
        size=(5, 7),
        mean=(104 / 255, 117 / 255, 123 / 255),
        std=(1 / 255,) * 3,
        channel_order="bgr",
    )
    for image in (orange, orange / 255):
        ready = prepare(image, caffe)
        expected = torch.tensor([10.0 - 104, 128.0 - 117, 255.0 - 123])
        torch.testing.assert_close(
            ready, expected[:, None, None].expand(3, 5, 7), rtol=0, atol=1e-4
        )
    batch = torch.stack([orange, 255 - orange])
    assert torch.equal(normalize(batch, caffe)[0], normalize(orange, caffe))


@pytest.mark.parametrize("order", get_args(ChannelOrder))
def test_padding_is_the_mean_colour_in_either_order(order: ChannelOrder) -> None:
    mean = (0.0, 0.4, 1.0)
    preprocessing = Preprocessing(
        size=(30, 20), mean=mean, std=(1.0,) * 3, resize_mode="pad", channel_order=order
    )
    image = torch.zeros(3, 8, 16, dtype=torch.uint8)
    assert resize(image, preprocessing)[0, 0, 0] == (255 if order == "bgr" else 0)  # red
    for picture in (image, image / 255):
        assert prepare(picture, preprocessing)[:, 0].abs().max() < 0.5 / 255 + 1e-6


@pytest.mark.parametrize("order", get_args(ChannelOrder))
def test_pixels_come_back_from_the_input(order: ChannelOrder) -> None:
    image = torch.randint(0, 256, (2, 3, 24, 36), dtype=torch.uint8)
    preprocessing = Preprocessing(channel_order=order)
    assert torch.equal(to_pixels(normalize(image, preprocessing), preprocessing), image)


def test_gray_meets_colour() -> None:
    gray = torch.randint(0, 256, (1, 5, 6), dtype=torch.uint8)
    assert torch.equal(fit_channels(gray, 3), gray.repeat(3, 1, 1))
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 5, 6)
    assert fit_channels(red, 1).unique().tolist() == [76]  # 0.299 * 255, the luma of red
    with pytest.raises(CamtrainValueError, match=r"1, 3 or 3 channels.*\(2, 5, 6\)"):
        fit_channels(gray.expand(2, -1, -1), 3)


@given(preprocessing=preprocessings(), image_hw=SIZES, grid=st.tuples(*[st.integers(4, 12)] * 2))
def test_a_map_of_positions_comes_back_as_the_positions_on_the_picture(
    preprocessing: Preprocessing, image_hw: tuple[int, int], grid: tuple[int, int]
) -> None:
    """The map's value is the place on the picture that its cell looks at; bilinear keeps it."""
    place = preprocessing.placement(image_hw)
    cells = [
        ((torch.arange(count) + 0.5) * (side / count) - offset) / scale
        for count, side, offset, scale in zip(
            grid,
            preprocessing.size,
            (place.offset_y, place.offset_x),
            (place.scale_y, place.scale_x),
            strict=True,
        )
    ]
    maps = torch.stack(torch.meshgrid(*cells, indexing="ij"))
    found = maps_on_picture(maps, preprocessing, image_hw, image_hw)
    ys, xs = torch.arange(image_hw[0]) + 0.5, torch.arange(image_hw[1]) + 0.5
    rows = (ys >= cells[0][0]) & (ys <= cells[0][-1])  # beyond the outermost centres maps are flat
    columns = (xs >= cells[1][0]) & (xs <= cells[1][-1])
    expected = torch.stack(torch.meshgrid(ys, xs, indexing="ij"))
    inside = rows[:, None] & columns
    torch.testing.assert_close(found[:, inside], expected[:, inside], rtol=0, atol=2e-3)


def test_squash_is_plain_interpolation_and_the_other_modes_agree_with_it() -> None:
    maps = torch.randn(2, 5, 7)
    expected = F.interpolate(maps[None], size=(40, 90), mode="bilinear", align_corners=False)[0]
    for mode in get_args(ResizeMode):  # 60 x 90 fits 20 x 30 without a border
        found = maps_on_picture(
            maps, Preprocessing(size=(20, 30), resize_mode=mode), (60, 90), (40, 90)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=0 if mode == "squash" else 1e-5)


def test_what_crop_cut_away_is_zero() -> None:
    preprocessing = Preprocessing(size=(20, 20), resize_mode="crop")
    found = maps_on_picture(torch.ones(1, 5, 5), preprocessing, (40, 60), (40, 60))
    torch.testing.assert_close(found[:, :, 10:50], torch.ones(1, 40, 40))
    assert found[:, :, :10].eq(0).all()
    assert found[:, :, 50:].eq(0).all()


LARGER_SIZES = st.tuples(st.integers(24, 90), st.integers(24, 90))
GRAY = {"mean": (0.0,), "std": (1.0,)}  # what is padded is black


def square(image_hw: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """A white box on black, (1, H, W)."""
    x0, y0, x1, y1 = box
    image = torch.zeros(1, *image_hw, dtype=torch.uint8)
    image[:, y0:y1, x0:x1] = 255
    return image


def check(image: Tensor, boxes_xyxy: Tensor, tolerance: float = 1.0) -> None:
    """The box lies on the square within a pixel."""
    if not len(boxes_xyxy):
        assert (image > 127).sum() <= 2 * sum(image.shape[1:])  # a sliver at the border
        return
    assume((boxes_xyxy[0, 2:] - boxes_xyxy[0, :2]).min() >= 3)
    assert (extent(image[0] > 127) - boxes_xyxy[0]).abs().max() <= tolerance


@given(
    name=st.sampled_from(sorted(AUGMENTATIONS)),
    mode=st.sampled_from(get_args(ResizeMode)),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    size=LARGER_SIZES,
    image_hw=LARGER_SIZES,
    corner=st.tuples(st.floats(0, 0.7), st.floats(0, 0.7)),
    seed=st.integers(0, 10**6),
)
def test_boxes_go_through_every_augmentation_with_the_pixels(
    name: str,
    mode: ResizeMode,
    interpolation: str,
    size: tuple[int, int],
    image_hw: tuple[int, int],
    corner: tuple[float, float],
    seed: int,
) -> None:
    mode = "squash" if name == "wsol" else mode
    settings = Preprocessing(size=size, resize_mode=mode, interpolation=interpolation, **GRAY)
    y, x = (int(part * side) for part, side in zip(corner, image_hw, strict=True))
    box = (x, y, x + image_hw[1] // 4, y + image_hw[0] // 4)
    augmentation = Augmentation(name, settings)
    torch.manual_seed(seed)
    geometry = augmentation.draw(image_hw)
    image, boxes_xyxy = (
        augmentation.apply(geometry, square(image_hw, box)),
        geometry.boxes(torch.tensor([box])),
    )
    assert image.shape == (1, *size)
    assert boxes_xyxy.dtype == torch.float32
    check(image, boxes_xyxy)


def test_boxes_out_of_sight_are_left_out_and_others_are_clipped() -> None:
    geometry = CropGeometry(0, 40, 50, 40, (100, 80), (0, 0), (100, 80), is_mirrored=True)
    boxes = torch.tensor([[0, 0, 39, 20], [30, 10, 50, 30], [60, 5, 70, 20]])
    assert geometry.boxes(boxes).tolist() == [[60, 20, 80, 60], [20, 10, 40, 40]]
    assert geometry.boxes(boxes[:0]).shape == (0, 4)


@given(size=LARGER_SIZES, image_hw=LARGER_SIZES, mode=st.sampled_from(get_args(ResizeMode)))
def test_a_view_knows_by_how_much_a_picture_may_shrink(
    size: tuple[int, int], image_hw: tuple[int, int], mode: ResizeMode
) -> None:
    geometry = CropGeometry.whole(image_hw, Preprocessing(size=size, resize_mode=mode))
    resized = geometry.resized_hw
    assert image_hw[0] / geometry.shrink >= resized[0] - 1e-6
    assert image_hw[1] / geometry.shrink >= resized[1] - 1e-6
    moved = replace(geometry, top=13, left=22).aligned(8)
    assert (moved.top, moved.left) == (8, 16)


@given(
    factor=st.sampled_from([2, 4, 8]),
    image_hw=st.tuples(st.integers(200, 420), st.integers(200, 420)),
    size=st.tuples(st.integers(16, 25), st.integers(16, 25)),
    part=st.tuples(*[st.floats(0, 1)] * 4),
    mode=st.sampled_from(["bilinear", "bicubic"]),
)
def test_the_view_of_a_reduced_picture_is_that_of_the_whole(
    factor: int,
    image_hw: tuple[int, int],
    size: tuple[int, int],
    part: tuple[float, ...],
    mode: str,
) -> None:
    """A slope of gray tells where each pixel was looked up, also with sides that do not divide."""
    height, width = (max(25 * 8, int(p * side)) for p, side in zip(part, image_hw, strict=False))
    top = int(part[2] * (image_hw[0] - height))
    left = int(part[3] * (image_hw[1] - width))
    geometry = CropGeometry(top, left, height, width, size, (0, 0), size, is_mirrored=True).aligned(
        factor
    )
    ys, xs = (torch.arange(side) + 0.5 for side in image_hw)
    whole = torch.stack([ys[:, None].expand(image_hw), xs[None].expand(image_hw)])
    rows, columns = (-(-side // factor) for side in image_hw)
    centres_y = (torch.arange(rows) + 0.5) * factor
    centres_x = (torch.arange(columns) + 0.5) * factor
    reduced = torch.stack(
        [centres_y[:, None].expand(rows, columns), centres_x[None].expand(rows, columns)]
    )
    expected = geometry.image(whole, INTERPOLATIONS[mode])
    found = geometry.image(reduced, INTERPOLATIONS[mode], factor=factor)
    assert found.shape == expected.shape == (2, *size)
    inner = (found - expected)[:, 3:-3, 3:-3].abs()  # at the border the filters see an edge
    assert inner.max() <= 0.2 * factor


def test_a_box_that_rounding_puts_just_outside_is_kept() -> None:
    geometry = CropGeometry(
        11, 12, 43, 45, (24, 50), (0, 0), (24, 50)
    )  # 45 * (50 / 45) > 50 in float32
    assert geometry.boxes(torch.tensor([[42, 32, 59, 48]])).shape == (1, 4)
