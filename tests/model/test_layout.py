"""Layouts: where channels, rows and columns lie, told by the proportions of the image."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from camtrain.errors import CamtrainValueError
from camtrain.model.layout import Layout, find_layout, grid_of

SIDES = st.integers(1, 12)


@given(SIDES, SIDES, st.integers(0, 5), st.sampled_from((8, 16, 32)))
def test_any_grid_is_found_again(h: int, w: int, prefix: int, patch: int) -> None:
    image_hw = (h * patch, w * patch)
    assert grid_of(h * w, image_hw) == (h, w)
    layout = find_layout((1, prefix + h * w, 1000), image_hw, prefix=prefix)
    assert layout == Layout("nlc", prefix)


@given(SIDES, SIDES, st.integers(0, 5))
def test_every_layout_gives_the_same_map(h: int, w: int, prefix: int) -> None:
    maps = torch.randn(2, 3, h, w)
    tokens = torch.cat((torch.randn(2, prefix, 3), maps.flatten(2).transpose(1, 2)), dim=1)
    image_hw = (16 * h, 16 * w)
    assert torch.equal(Layout().to_map(maps, image_hw), maps)
    assert torch.equal(Layout("nhwc").to_map(maps.permute(0, 2, 3, 1), image_hw), maps)
    assert torch.equal(Layout("nlc", prefix).to_map(tokens, image_hw), maps)
    assert torch.equal(Layout("ncl", prefix).to_map(tokens.transpose(1, 2), image_hw), maps)
    assert torch.equal(Layout().to_map((tokens, [maps]), image_hw), maps)  # the last of several


@pytest.mark.parametrize(
    ("shape", "image_hw", "known", "layout"),
    [
        ((1, 512, 7, 7), (224, 224), {}, Layout()),
        ((1, 7, 7, 768), (224, 224), {}, Layout("nhwc")),
        ((1, 7, 14, 768), (224, 448), {}, Layout("nhwc")),
        ((1, 512, 1, 1), (32, 32), {}, Layout()),
        ((1, 197, 768), (224, 224), {}, Layout("nlc", 1)),
        ((1, 201, 1024), (224, 224), {"prefix": 5}, Layout("nlc", 5)),
        ((1, 320, 16), (256, 256), {}, Layout("ncl")),
        ((1, 256, 49), (224, 224), {"channels": 256}, Layout("ncl")),
        ((1, 256, 49), (224, 224), {"channels": 49}, Layout("nlc")),
        ((1, 14, 14, 14), (224, 224), {}, Layout()),  # both are possible
        ((1, 64, 30, 17), (224, 224), {}, Layout()),  # a network of other proportions
    ],
)
def test_known_shapes(
    shape: tuple[int, ...], image_hw: tuple[int, int], known: dict[str, int], layout: Layout
) -> None:
    assert find_layout(shape, image_hw, **known) == layout


@pytest.mark.parametrize("shape", [(1, 1000), (1, 98, 768), (1, 2, 3, 4, 5)])
def test_what_is_no_map_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CamtrainValueError, match="cut must give a feature map") as error:
        find_layout(shape, (224, 224))
    assert str(shape) in str(error.value)
