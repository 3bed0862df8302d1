"""dt_boxes: every box of the authors' own program, exact values by hand, degenerate maps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from camtrain.errors import CamtrainError
from camtrain.localization import dt_boxes
from camtrain.localization.boxes import FALLBACK_LEVELS


def test_every_box_of_the_authors_program(shared: Path) -> None:
    folder = shared / "oracles" / "zhou_bbox"
    maps = np.load(folder / "heatmaps.npz")
    cases = json.loads((folder / "expected.json").read_text())["cases"]
    assert cases
    for case in cases:
        found, expected = dt_boxes(maps[case["map"]], case["params"]).tolist(), case["boxes_xywh"]
        if case["area_tie"]:  # the program's sort leaves boxes of one area in any order
            assert [w * h for _, _, w, h in found] == [w * h for _, _, w, h in expected]
            found, expected = sorted(found), sorted(expected)
        assert found == expected, case


def rectangles(*boxes_xywh: tuple[int, int, int, int], value: int = 50) -> NDArray[np.uint8]:
    """A map (60, 90) of rectangles that, by default, only the lowest level sees."""
    heatmap = np.zeros((60, 90), dtype=np.uint8)
    for x, y, w, h in boxes_xywh:
        heatmap[y : y + h, x : x + w] = value
    return heatmap


def test_rectangles_are_found_once_and_the_largest_comes_first() -> None:
    found = dt_boxes(rectangles((4, 6, 10, 8), (40, 20, 16, 30)))
    assert found.dtype == torch.int64
    assert found.tolist() == [[40, 20, 16, 30], [4, 6, 10, 8]]


def test_a_hole_gives_a_box_one_pixel_larger_than_itself() -> None:
    heatmap = rectangles((10, 10, 40, 30))
    heatmap[20:30, 20:32] = 0
    assert dt_boxes(heatmap).tolist()[:2] == [[10, 10, 40, 30], [19, 19, 14, 12]]


def test_boxes_keep_away_from_the_right_and_lower_edge() -> None:
    assert dt_boxes(rectangles((70, 40, 20, 20))).tolist() == [[70, 40, 15, 15]]
    assert dt_boxes(rectangles((0, 0, 20, 20))).tolist() == [[0, 0, 20, 20]]
    assert dt_boxes(rectangles((87, 57, 3, 3))).tolist() == [[85, 55, -2, -2]]


def test_what_is_at_a_level_is_background() -> None:
    assert dt_boxes(rectangles((4, 6, 10, 8), value=20)).shape == (0, 4)
    assert dt_boxes(rectangles((4, 6, 10, 8), value=21)).tolist() == [[4, 6, 10, 8]]


def test_thin_parts_of_a_thick_blob_are_worn_away() -> None:
    heatmap = np.zeros((120, 160), dtype=np.uint8)
    heatmap[10:90, 10:90] = 50  # its largest distance is 40, so what is nearer than 2 goes
    heatmap[50, 90:150] = 50
    assert dt_boxes(heatmap).tolist() == [[11, 11, 78, 78]]


def test_the_box_after_an_erased_one_is_skipped() -> None:
    # Every level gives the same box: the second is erased, the third is not compared.
    heatmap = rectangles((20, 20, 30, 20), value=255)
    assert dt_boxes(heatmap).tolist() == [[20, 20, 30, 20]] * 2


def test_invalid_levels_silently_become_the_fallback() -> None:
    heatmap = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    expected = dt_boxes(heatmap, FALLBACK_LEVELS)
    for levels in ((0, 1, 2), (20, 20, 30), (5, 4, 9), (20, 100, 255)):
        assert torch.equal(dt_boxes(heatmap, levels), expected)


def test_floats_are_quantized_as_the_paper_saved_its_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(1, 1, 5, 7, generator=generator)
    heatmap = torch.nn.functional.interpolate(small, size=(80, 110), mode="bilinear")[0, 0]
    levels = (heatmap / heatmap.max() * 255 + 0.5).floor().byte()
    expected = dt_boxes(levels)
    assert len(expected) > 1
    for same in (heatmap, heatmap.double() * 0.3, heatmap.numpy(), levels.numpy()):
        assert torch.equal(dt_boxes(same), expected)


@pytest.mark.parametrize(
    "heatmap",
    [
        torch.zeros(9, 14),
        torch.full((9, 14), -1.0),
        torch.full((9, 14), torch.nan),
        torch.full((9, 14), torch.inf),
        torch.zeros(9, 14, dtype=torch.uint8),
    ],
)
def test_a_heatmap_without_foreground_has_no_box(heatmap: torch.Tensor) -> None:
    found = dt_boxes(heatmap)
    assert found.shape == (0, 4)
    assert found.dtype == torch.int64


def test_a_constant_heatmap_is_one_box() -> None:
    assert dt_boxes(torch.full((9, 14), 0.3)).tolist()[0] == [0, 0, 9, 4]


@given(
    heatmap=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30)),
    levels=st.tuples(*[st.integers(-1, 256)] * 3),
)
def test_any_map_has_an_answer(heatmap: NDArray[np.uint8], levels: tuple[int, int, int]) -> None:
    found = dt_boxes(heatmap, levels)
    areas = (found[:, 2] * found[:, 3]).tolist()
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize(
    ("heatmap", "message"),
    [
        (torch.rand(1, 4, 5), "got shape (1, 4, 5)"),
        (torch.rand(0, 5), "got shape (0, 5)"),
        (torch.ones(4, 5, dtype=torch.int64), "uint8 or float in [0, 1], got torch.int64"),
    ],
)
def test_bad_heatmaps_are_named(heatmap: torch.Tensor, message: str) -> None:
    with pytest.raises(CamtrainError) as error:
        dt_boxes(heatmap)
    assert message in str(error.value)
