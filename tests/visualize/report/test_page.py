"""What the report's page is made of: packed maps, packed pictures, and a page that is whole."""

from __future__ import annotations

import base64
import doctest
import io
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from camtrain.visualize.overlay import palette
from camtrain.visualize.report import page
from camtrain.visualize.report.page import (
    packed_colormap,
    packed_map,
    packed_picture,
    part_of_picture,
    report_page,
    unpacked_map,
)


def levels_of(packed: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["levels"]), np.uint8).reshape(packed["hw"])


def test_examples_print_what_they_say() -> None:
    failed, attempted = doctest.testmod(page)
    assert attempted > 0
    assert failed == 0


def test_a_map_comes_back_to_a_256th_of_its_range() -> None:
    class_map = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    packed = packed_map(class_map)
    low, high, mean = packed["range"]
    assert (unpacked_map(packed) - class_map).abs().max() <= (high - low) / 255 / 2 + 1e-5
    assert mean == pytest.approx(class_map.mean().item(), rel=1e-5)


def test_a_large_map_is_averaged_but_its_range_is_not() -> None:
    class_map = torch.zeros(96, 60)
    class_map[0, 0] = 8.0
    packed = packed_map(class_map)
    assert packed["hw"] == [48, 30]
    assert packed["range"][:2] == [0.0, 8.0]
    assert levels_of(packed)[0, 0] == round(255 / 4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_has_no_levels(value: float) -> None:
    class_map = torch.zeros(2, 3)
    class_map[1, 2] = value
    packed = packed_map(class_map)
    assert packed == {"hw": [2, 3], "range": None, "levels": None}
    assert not unpacked_map(packed).any()


def test_a_constant_map_has_a_range_of_nothing() -> None:
    packed = packed_map(torch.full((2, 3), 1.5))
    assert packed["range"] == [1.5, 1.5, 1.5]
    assert not levels_of(packed).any()


@pytest.mark.parametrize(
    ("shape", "kind", "width_height"),
    [
        ((1, 32, 32), "png", [32, 32]),
        ((3, 40, 128), "png", [128, 40]),
        ((3, 129, 90), "jpeg", [90, 129]),
        ((1, 1000, 500), "jpeg", [256, 512]),
        ((3, 1, 2000), "jpeg", [512, 1]),
    ],
)
def test_pictures_keep_their_aspect(
    shape: tuple[int, int, int], kind: str, width_height: list[int]
) -> None:
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    packed = packed_picture(image)
    assert packed["wh"] == width_height
    head, data = packed["src"].split(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert list(picture.size) == width_height
        if kind == "png":
            expected = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
            assert (np.asarray(picture.convert("RGB")) == expected).all()


def test_boxes_are_parts_of_width_and_height() -> None:
    boxes = torch.tensor([[0, 0, 80, 40], [20, 10, 40, 30]])
    assert part_of_picture(boxes, (40, 80)) == [[0, 0, 1, 1], [0.25, 0.25, 0.5, 0.75]]
    assert part_of_picture(torch.zeros(0, 4), (40, 80)) == []


@pytest.mark.parametrize("name", ["viridis", "jet"])
def test_colours_are_those_of_the_palette(name: str) -> None:
    colors = np.frombuffer(base64.b64decode(packed_colormap(name)["colors"]), np.uint8)
    assert (colors.reshape(256, 3) == palette(name)).all()


def test_the_page_holds_its_content_and_nothing_is_left_to_fill() -> None:
    content = {
        "title": "<b>a & b</b>",
        "names": ["</script>", "{{style}}", "\u2028"],
        "nothing": None,
    }
    text = report_page(content)
    found = re.search(r'id="content">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    assert json.loads(found[1]) == content
    assert "<title>&lt;b&gt;a &amp; b&lt;/b&gt;</title>" in text
    assert text.count("{{") == 1  # that of the name
    assert text.count("<style>") == text.count("</style>") == 1


def test_numbers_that_browsers_refuse_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        report_page({"title": "", "value": float("nan")})
