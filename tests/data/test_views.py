"""A square in a picture and its box are seen at the same place."""

from dataclasses import replace
from typing import get_args

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from camtrain.data import AUGMENTATIONS, Augmentation, CropGeometry
from camtrain.data.transforms import INTERPOLATIONS
from camtrain.preprocessing import Preprocessing, ResizeMode

SIZES = st.tuples(st.integers(24, 90), st.integers(24, 90))
GRAY = {"mean": (0.0,), "std": (1.0,)}  # what is padded is black


def square(image_hw: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """A white box on black, (1, H, W)."""
    x0, y0, x1, y1 = box
    image = torch.zeros(1, *image_hw, dtype=torch.uint8)
    image[:, y0:y1, x0:x1] = 255
    return image


def extent(seen: Tensor) -> Tensor:
    """The tight xyxy box of the true pixels."""
    ys, xs = seen.nonzero(as_tuple=True)
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


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
    size=SIZES,
    image_hw=SIZES,
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


@given(size=SIZES, image_hw=SIZES, mode=st.sampled_from(get_args(ResizeMode)))
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
