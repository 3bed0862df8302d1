"""A square in a picture, and its box and mask, are seen at the same place."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from camtrain.data import AUGMENTATIONS, Augmentation, Augmented, AutoAugment, View
from camtrain.data.augment import _MOVING, _POLICIES
from camtrain.data.views import INTERPOLATIONS
from camtrain.preprocessing import Preprocessing, ResizeMode

SIZES = st.tuples(st.integers(24, 90), st.integers(24, 90))
GRAY = {"mean": (0.0,), "std": (1.0,)}  # what is padded is black


def square(image_hw: tuple[int, int], box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """A white box on black, (1, H, W), and its mask, (H, W)."""
    x0, y0, x1, y1 = box
    mask = torch.zeros(image_hw, dtype=torch.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask[None] * 255, mask


def extent(seen: Tensor) -> Tensor:
    """The tight xyxy box of the true pixels."""
    ys, xs = seen.nonzero(as_tuple=True)
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def check(seen: Augmented, tolerance: float = 1.0) -> None:
    """The box lies on the square within a pixel, and so does the mask."""
    if not len(seen.boxes_xyxy):
        assert (seen.image > 127).sum() <= 2 * sum(seen.image.shape[1:])  # a sliver at the border
        return
    assume((seen.boxes_xyxy[0, 2:] - seen.boxes_xyxy[0, :2]).min() >= 3)
    assert (extent(seen.image[0] > 127) - seen.boxes_xyxy[0]).abs().max() <= tolerance
    assert (extent(seen.mask == 1) - seen.boxes_xyxy[0]).abs().max() <= tolerance


@given(
    name=st.sampled_from(sorted(AUGMENTATIONS)),
    mode=st.sampled_from(get_args(ResizeMode)),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    size=SIZES,
    image_hw=SIZES,
    corner=st.tuples(st.floats(0, 0.7), st.floats(0, 0.7)),
    seed=st.integers(0, 10**6),
)
def test_the_truth_goes_through_every_augmentation_with_the_pixels(
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
    image, mask = square(image_hw, box)
    augmentation = Augmentation(name, settings)
    torch.manual_seed(seed)
    seen = augmentation.apply(augmentation.draw(image_hw), image, torch.tensor([box]), mask)
    assert seen.image.shape == (1, *size)
    assert seen.mask.shape == size
    assert type(seen.image) is type(seen.mask) is type(seen.boxes_xyxy) is Tensor
    check(seen)


@pytest.mark.parametrize("operation", _MOVING)
@pytest.mark.parametrize("policy", get_args(AutoAugment))
def test_the_truth_follows_every_operation_that_moves_pixels(
    policy: AutoAugment, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = _POLICIES[policy]._AUGMENTATION_SPACE
    monkeypatch.setattr(_POLICIES[policy], "_AUGMENTATION_SPACE", {operation: space[operation]})
    augmentation = Augmentation("none", Preprocessing(size=(120, 160), **GRAY), policy)
    image, mask = square((120, 160), (60, 50, 90, 75))
    for seed in range(8):
        torch.manual_seed(seed)
        seen = augmentation.apply(
            augmentation.draw((120, 160)), image, torch.tensor([[60, 50, 90, 75]]), mask
        )
        found, box = extent(seen.image[0] > 127), seen.boxes_xyxy[0]
        # RandAugment moves twice, and the second box is around the first
        around = 12 if policy == "randaugment" else 2
        assert (found[:2] >= box[:2] - 2).all()
        assert (found[2:] <= box[2:] + 2).all()
        is_cut = box[0] <= 0 or box[1] <= 0 or box[2] >= 160 or box[3] >= 120
        assert is_cut or (found - box).abs().max() <= around
        assert (extent(seen.mask == 1) - found).abs().max() <= 2


def test_every_operation_that_moves_pixels_is_known() -> None:
    names = set(_POLICIES["randaugment"]._AUGMENTATION_SPACE)
    moved_by_name = {name for name in names if name.startswith(("Shear", "Translate", "Rotate"))}
    assert moved_by_name == set(_MOVING)  # torchvision has no further ones


def test_boxes_out_of_sight_are_left_out_and_others_are_clipped() -> None:
    view = View(0, 40, 50, 40, (100, 80), (0, 0), (100, 80), is_mirrored=True)
    augmentation = Augmentation("none", Preprocessing(size=(100, 80), **GRAY))
    boxes = torch.tensor([[0, 0, 39, 20], [30, 10, 50, 30], [60, 5, 70, 20]])
    seen = augmentation.apply(view, torch.zeros(1, 50, 80, dtype=torch.uint8), boxes)
    assert seen.boxes_xyxy.tolist() == [[60, 20, 80, 60], [20, 10, 40, 40]]
    assert seen.mask.shape == (0, 0)


@given(size=SIZES, image_hw=SIZES, mode=st.sampled_from(get_args(ResizeMode)))
def test_a_view_knows_by_how_much_a_picture_may_shrink(
    size: tuple[int, int], image_hw: tuple[int, int], mode: ResizeMode
) -> None:
    view = View.whole(image_hw, Preprocessing(size=size, resize_mode=mode))
    resized = view.resized_hw
    assert image_hw[0] / view.shrink >= resized[0] - 1e-6
    assert image_hw[1] / view.shrink >= resized[1] - 1e-6
    moved = replace(view, top=13, left=22).aligned(8)
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
    view = View(top, left, height, width, size, (0, 0), size, is_mirrored=True).aligned(factor)
    ys, xs = (torch.arange(side) + 0.5 for side in image_hw)
    whole = torch.stack([ys[:, None].expand(image_hw), xs[None].expand(image_hw)])
    rows, columns = (-(-side // factor) for side in image_hw)
    centres_y = (torch.arange(rows) + 0.5) * factor
    centres_x = (torch.arange(columns) + 0.5) * factor
    reduced = torch.stack(
        [centres_y[:, None].expand(rows, columns), centres_x[None].expand(rows, columns)]
    )
    expected = view.of(whole, INTERPOLATIONS[mode])
    found = view.of_reduced(reduced, factor, INTERPOLATIONS[mode])
    assert found.shape == expected.shape == (2, *size)
    inner = (found - expected)[:, 3:-3, 3:-3].abs()  # at the border the filters see an edge
    assert inner.max() <= 0.2 * factor


def test_a_box_that_rounding_puts_just_outside_is_kept() -> None:
    settings = Preprocessing(size=(24, 50), interpolation="nearest", **GRAY)
    view = View(11, 12, 43, 45, (24, 50), (0, 0), (24, 50))  # 45 * (50 / 45) > 50 in float32
    image, _ = square((64, 68), (42, 32, 59, 48))
    seen = Augmentation("none", settings).apply(view, image, torch.tensor([[42, 32, 59, 48]]))
    assert seen.boxes_xyxy.shape == (1, 4)
