"""The threshold chart: lines and dots at the right pixels, no covered text, and errors."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from camtrain.errors import CamtrainValueError
from camtrain.visualize import threshold_chart
from camtrain.visualize.charts import COLORS, MOST_MARKS
from tests.conftest import everyday
from tests.visualize.conftest import PAPER, has

LEFT, RIGHT, BOTTOM = 84, 936, 536  # the plot's edges, in pixels
HEADER, FLAG = 92, 22  # its top is at HEADER, FLAG lower for each mark
MARK = (100, 108, 122)
THRESHOLDS = np.arange(1000) / 1000
NAN = float("nan")


def constant(value: float) -> torch.Tensor:
    return torch.full((1000,), value, dtype=torch.float64)


def chart(*curves: object, **marks: float) -> Image.Image:
    """A chart of curves, of constants where they are numbers."""
    drawn = [constant(curve) if isinstance(curve, float) else curve for curve in curves]
    named = {f"curve {index}": curve for index, curve in enumerate(drawn)}
    return threshold_chart(THRESHOLDS, named, marks, title="a title")


def rows_of(picture: Image.Image, color: tuple[int, int, int], x: int) -> list[int]:
    """Where a column of the plot has the very colour."""
    column = np.asarray(picture)[HEADER - 4 :, x]
    return [HEADER - 4 + int(y) for y in np.flatnonzero((column == color).all(-1))]


def lightness(color: tuple[int, int, int]) -> float:
    """CIE L*, 0 to 100, of an sRGB colour (IEC 61966-2-1)."""
    part = np.array(color) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return float(116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16)


def test_colours_differ_in_lightness_and_stand_out_from_white() -> None:
    levels = [lightness(color) for color in COLORS]
    assert max(levels) < 72
    assert min(abs(a - b) for a, b in combinations(levels, 2)) > 8
    assert min(abs(a - b) for a, b in combinations(levels[:3], 2)) > 18


def test_size_title_and_white_edges() -> None:
    shown = chart(0.5, fixed=0.2)
    assert (shown.size, shown.mode) == ((960, 600), "RGB")
    pixels = np.asarray(shown)
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == PAPER).all()
    assert has(shown.crop((LEFT, 15, 250, 45)), (17, 24, 39), tolerance=40)
    assert shown != threshold_chart(THRESHOLDS, {"curve 0": constant(0.5)}, {}, title="")


@pytest.mark.parametrize("value", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("count", [0, 2])
def test_a_constant_curve_is_a_level_line_at_its_height(value: float, count: int) -> None:
    marks = {f"mark {index}": 0.9 for index in range(count)}
    shown, top = chart(value, **marks), HEADER + FLAG * count
    expected = BOTTOM - value * (BOTTOM - top)
    for x in (LEFT, 500, RIGHT - 2):
        rows = rows_of(shown, COLORS[0], x)
        assert 2 <= len(rows) <= 4
        assert np.mean(rows) + 0.5 == pytest.approx(expected, abs=0.6)


def test_each_curve_has_its_colour_and_the_first_is_bold_and_on_top() -> None:
    shown = chart(0.9, 0.7, 0.5, 0.3, 0.2, 0.1)
    counts = [len(rows_of(shown, color, 500)) for color in COLORS]
    assert counts[0] > max(counts[1:])
    assert min(counts) >= 1
    order = [rows_of(shown, color, 500)[0] for color in COLORS]
    assert order == sorted(order)
    both = chart(0.5, 0.5)
    assert rows_of(both, COLORS[0], 500) == rows_of(chart(0.5), COLORS[0], 500)
    assert not rows_of(both, COLORS[1], 500)


def test_a_slope_goes_from_corner_to_corner() -> None:
    shown = chart(torch.from_numpy(THRESHOLDS))  # accuracy = threshold
    for x in (200, 510, 800):
        expected = BOTTOM - (x + 0.5 - LEFT) / (RIGHT - LEFT) * (BOTTOM - HEADER)
        assert np.mean(rows_of(shown, COLORS[0], x)) + 0.5 == pytest.approx(expected, abs=0.7)


@pytest.mark.parametrize("where", [0.0, 0.143, 0.5, 0.999])
def test_a_mark_is_a_vertical_line_with_a_dot_on_the_first_curve(where: float) -> None:
    shown, x = chart(0.25, calibrated=where), LEFT + where * (RIGHT - LEFT)
    plain = chart(0.25, calibrated=NAN)
    row = np.asarray(shown)[HEADER + FLAG + 20].astype(int)
    dark = np.flatnonzero(np.abs(row - MARK).max(-1) < 100)
    assert 1 <= len(dark) <= 3
    assert dark.mean() + 0.5 == pytest.approx(x, abs=0.8)
    y = BOTTOM - 0.25 * (BOTTOM - HEADER - FLAG)
    column = min(max(int(x), LEFT), RIGHT - 1)
    dot = rows_of(shown, COLORS[0], column)
    assert 8 <= len(dot) <= 11
    assert np.mean(dot) + 0.5 == pytest.approx(y, abs=0.6)
    assert len(rows_of(plain, COLORS[0], column)) <= 4


def test_the_dot_lies_on_the_line_between_two_thresholds() -> None:
    curves = {"IoU 0.5": [0.2, 0.6]}
    shown = threshold_chart([0.1, 0.5], curves, {"fixed": 0.2}, title="")  # 0.2 + 0.4 / 4 = 0.3
    dot = rows_of(shown, COLORS[0], round(LEFT + 0.2 * (RIGHT - LEFT)))
    assert np.mean(dot) + 0.5 == pytest.approx(BOTTOM - 0.3 * (BOTTOM - HEADER - FLAG), abs=0.6)
    outside = threshold_chart([0.1, 0.5], curves, {"fixed": 0.7}, title="")
    assert not rows_of(outside, COLORS[0], round(LEFT + 0.7 * (RIGHT - LEFT)))


@pytest.mark.parametrize("close", [[0.143, 0.151, 0.2], [0.143] * 3, [0.9, 0.99, 0.999]])
def test_flags_of_close_marks_have_a_line_of_the_chart_each(close: list[float]) -> None:
    """The first curve's value stands once in each line, whole and inside the chart."""
    names = ("fixed", "calibrated", "oracle")
    shown = np.asarray(chart(0.5, **dict(zip(names, close, strict=True)))).astype(int)
    alone = np.asarray(chart(0.5, fixed=0.4)).astype(int)

    def ink(pixels: np.ndarray, row: int) -> int:
        line = pixels[HEADER - 13 + FLAG * row : HEADER + 3 + FLAG * row]
        return int((np.abs(line - COLORS[0]).max(-1) < 30).sum())

    for row in range(3):
        assert ink(shown, row) == ink(alone, 0) > 40
    assert (shown[:, -2:] == PAPER).all()


def test_no_line_passes_through_a_flag() -> None:
    """Each text above the plot is the same as it would be without the other marks."""
    marks = {"first": 0.1, "near": 0.13, "mid": 0.4, "late": 0.97, "last": 0.99}
    shown = np.asarray(chart(0.5, **marks))
    for row, name in enumerate(["first", "near", "mid", "last", "late"]):
        lone = np.asarray(chart(0.5, **{name: marks[name]}))[HEADER - 13 : HEADER + 3]
        line = shown[HEADER - 13 + FLAG * row : HEADER + 3 + FLAG * row]
        columns = np.flatnonzero((lone != PAPER).any(axis=(0, 2)))
        assert (
            line[:, columns.min() : columns.max()] == lone[:, columns.min() : columns.max()]
        ).all()


def test_nan_leaves_a_gap_and_a_lone_value_is_a_dot() -> None:
    values = constant(0.5)
    values[200:600] = NAN
    values[400] = 0.5
    shown = chart(values, fixed=0.3)
    drawn = [bool(rows_of(shown, COLORS[0], round(LEFT + t * 852))) for t in (0.1, 0.3, 0.4, 0.5)]
    assert drawn == [True, False, True, False]
    assert rows_of(shown, COLORS[0], round(LEFT + 0.7 * 852))


def test_of_nothing_there_is_an_empty_chart_that_says_so() -> None:
    shown = chart(constant(NAN), constant(NAN), fixed=0.2, oracle=NAN)
    plot = shown.crop((LEFT, HEADER + FLAG + 2, RIGHT, BOTTOM - 2))
    assert not any(has(plot, color) for color in COLORS)
    middle = shown.crop((400, 310, 620, 330))
    empty = chart(constant(NAN), 0.0, fixed=0.2).crop((400, 310, 620, 330))
    assert has(middle, MARK, tolerance=30)
    assert not has(empty, MARK, tolerance=30)


def test_tensors_arrays_and_lists_draw_the_same_chart() -> None:
    values = torch.linspace(1, 0, 4)
    kinds = (values, values.numpy(), values.tolist(), values.clone().requires_grad_())
    pictures = [threshold_chart([0.0, 0.2, 0.5, 0.9], {"a": kind}, {}, title="") for kind in kinds]
    assert all(picture == pictures[0] for picture in pictures)


@pytest.mark.parametrize("count", everyday([1, 3, 6], 1))
def test_long_names_stay_inside_the_chart(count: int) -> None:
    curves = {f"{index} {'name ' * 60}": constant(0.5) for index in range(count)}
    marks = {f"{index} {'W' * 200}": index / MOST_MARKS for index in range(MOST_MARKS)}
    shown = np.asarray(threshold_chart(THRESHOLDS, curves, marks, title="W" * 300))
    assert (shown[:, -2:] == PAPER).all()
    assert (shown[:76, RIGHT + 1 :] == PAPER).all()


@pytest.mark.parametrize(
    ("message", "thresholds", "curves", "marks"),
    [
        (r"\(T,\) with T > 0, got shape \(0,\)", [], {"a": []}, {}),
        (r"\(T,\) with T > 0, got shape \(1, 2\)", [[0.1, 0.2]], {"a": [0.1, 0.2]}, {}),
        (r"ascend within \[0, 1\).*0\.5, 0\.1", [0.5, 0.1], {"a": [0, 0]}, {}),
        (r"ascend within \[0, 1\)", [0.5, 0.5], {"a": [0, 0]}, {}),
        (r"ascend within \[0, 1\).*1\.0", [0.5, 1.0], {"a": [0, 0]}, {}),
        (r"ascend within \[0, 1\).*-0\.1", [-0.1, 0.5], {"a": [0, 0]}, {}),
        (r"ascend within \[0, 1\).*nan", [0.1, NAN, 0.3], {"a": [0, 0, 0]}, {}),
        ("curves must be 1 to 6.*got 0", [0.1, 0.2], {}, {}),
        ("curves must be 1 to 6.*got 7", [0.1, 0.2], {key: [0, 0] for key in "abcdefg"}, {}),
        (r"'b' must have.*2 thresholds, got shape \(3,\)", [0, 0.2], {"b": [0, 0, 0]}, {}),
        (r"'b' must lie in \[0, 1\].*got 0 to 68\.3", [0, 0.2], {"a": [0, 1], "b": [0, 68.3]}, {}),
        (r"'a' must lie in \[0, 1\].*got -0\.1", [0, 0.2], {"a": [NAN, -0.1]}, {}),
        (r"'a' must lie in \[0, 1\].*inf", [0, 0.2], {"a": [0, float("inf")]}, {}),
        (r"mark 'late' must lie in \[0, 1\), got 1\.0", [0, 0.2], {"a": [0, 0]}, {"late": 1.0}),
        (r"mark 'm' must lie in \[0, 1\), got -0\.2", [0, 0.2], {"a": [0, 0]}, {"m": -0.2}),
        (
            "marks must be at most 8, got 9",
            [0, 0.2],
            {"a": [0, 0]},
            dict.fromkeys("abcdefghi", 0.1),
        ),
    ],
)
def test_bad_input_is_named(
    message: str, thresholds: list[float], curves: dict[str, list[float]], marks: dict[str, float]
) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        threshold_chart(thresholds, curves, marks, title="")
