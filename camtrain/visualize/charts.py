"""Accuracy against threshold or score, and confusion matrices, as charts drawn with Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.visualize.overlay import INK, MUTED, PAPER, Color, shorten, text_width, write

Values = Tensor | NDArray[np.float64] | Sequence[float]
Point = tuple[float, float]

# They differ in hue and, for readers who confuse hues, in lightness (CIE L* 17 to 69).
COLORS: tuple[Color, ...] = (
    (0, 40, 95),
    (200, 80, 0),
    (80, 178, 232),
    (110, 35, 120),
    (0, 110, 90),
    (205, 115, 165),
)
MOST_MARKS = 8

_SIZE = (960, 600)
_LEFT, _RIGHT, _BOTTOM = 84, 936, 536
_HEADER, _FLAG = 92, 22  # pixels above the flags, and per flag
_GRID, _AXIS = (228, 231, 236), (140, 147, 158)
_TITLE_SIZE, _TEXT_SIZE, _GAP = 20, 15, 10
_TEXT, _PADDING, _NAME = 14, 8, 160  # of a matrix: pixels of letters, around them, widest name
_FULL: Color = (0, 92, 173)  # a cell that holds its whole row
_SQUARE, _CORNER, _SIDE = 400, (76, 16), 300  # of a reliability chart: the picture, its plot
_FINE = 4  # lines are drawn this much larger and averaged, which smooths their edges


class _Flag(NamedTuple):
    """A marked threshold: its vertical line, and the text beside the line's upper end."""

    x: float  # of the line, in pixels
    value: float  # of the first curve, NaN where it has none
    name: str
    percent: str
    left: int  # where the text starts

    @property
    def is_left_of_line(self) -> bool:
        return self.left < self.x


def threshold_chart(
    thresholds: Values, curves: Mapping[str, Values], marks: Mapping[str, float], *, title: str
) -> Image.Image:
    """Draw accuracies against the threshold, with some thresholds marked, as RGB of 960 x 600.

    The first curve is bold. Where a mark crosses it there is a dot, and the mark's flag above the
    plot says how high, in percent of the pictures, between two thresholds by linear interpolation.
    Each flag has a line to itself, so none covers another, however close the marks are.

    Args:
        thresholds: (T,) in [0, 1), ascending: parts of the heatmap's maximum.
        curves: Per name (T,) accuracies in [0, 1]; NaN leaves a gap. One to six curves.
        marks: Per name a threshold in [0, 1), such as the fixed, the calibrated and the oracle one;
            NaN, the best threshold of nothing counted, is left out. At most eight marks.
        title: One line.

    Raises:
        CamtrainValueError: A shape, a range, an order or a number of curves or marks is wrong.
    """
    x = _array(thresholds)
    lines = {name: _array(values) for name, values in curves.items()}
    _check(x, lines, marks)
    flags = _flags(marks, x, next(iter(lines.values())))
    top = _baseline(len(flags))

    chart = _draw_lines(x, list(lines.values()), flags, top)
    write(chart, shorten(title, _RIGHT - _LEFT, _TITLE_SIZE), at=(_LEFT, 38), size=_TITLE_SIZE)
    _draw_legend(chart, list(lines))
    _draw_axes(chart, top)
    for row, flag in enumerate(flags):
        _draw_flag(chart, flag, _baseline(row))
    if not any(np.isfinite(y).any() for y in lines.values()):
        _write_centred(
            chart, "nothing was counted", at=((_LEFT + _RIGHT) // 2, (top + _BOTTOM) // 2)
        )
    return chart


def _array(values: Values) -> NDArray[np.float64]:
    return torch.as_tensor(values, dtype=torch.float64).detach().cpu().numpy()


def _check(
    x: NDArray[np.float64], lines: Mapping[str, NDArray[np.float64]], marks: Mapping[str, float]
) -> None:
    """Raise CamtrainValueError for thresholds, curves or marks that cannot be drawn."""
    if x.ndim != 1 or not len(x):
        raise CamtrainValueError(f"thresholds must be (T,) with T > 0, got shape {x.shape}.")
    if not (x[0] >= 0 and x[-1] < 1 and (np.diff(x) > 0).all()):  # NaN fails too
        raise CamtrainValueError(
            f"thresholds must ascend within [0, 1), without repeats, got {x.tolist()!s:.80}."
        )
    if not 1 <= len(lines) <= len(COLORS):
        raise CamtrainValueError(
            f"curves must be 1 to {len(COLORS)}, one for each colour, got {len(lines)}."
        )
    for name, y in lines.items():
        if y.shape != x.shape:
            raise CamtrainValueError(
                f"curve {name!r} must have a value for each of the {len(x)} thresholds, "
                f"got shape {y.shape}."
            )
        numbers = y[~np.isnan(y)]
        if not ((numbers >= 0) & (numbers <= 1)).all():
            raise CamtrainValueError(
                f"curve {name!r} must lie in [0, 1], NaN where unknown, got {numbers.min():.4g} to "
                f"{numbers.max():.4g}; divide percents by 100."
            )
    if len(marks) > MOST_MARKS:
        raise CamtrainValueError(f"marks must be at most {MOST_MARKS}, got {len(marks)}.")
    for name, threshold in marks.items():
        if not (np.isnan(threshold) or 0 <= threshold < 1):
            raise CamtrainValueError(f"mark {name!r} must lie in [0, 1), got {threshold}.")


def _x(threshold: float) -> float:
    return _LEFT + threshold * (_RIGHT - _LEFT)


def _y(value: float, top: int) -> float:
    return _BOTTOM - value * (_BOTTOM - top)


def _baseline(row: int) -> int:
    """The y of a flag's text."""
    return _HEADER + row * _FLAG


def _flags(
    marks: Mapping[str, float], x: NDArray[np.float64], first: NDArray[np.float64]
) -> list[_Flag]:
    """A flag per mark that is not NaN, so ordered that no line crosses the text of another flag."""
    flags = [
        _flag(name, float(where), float(np.interp(where, x, first, np.nan, np.nan)))
        for name, where in marks.items()
        if not np.isnan(where)
    ]
    flags.sort(key=lambda f: (f.is_left_of_line, -f.x if f.is_left_of_line else f.x))
    return flags


def _flag(name: str, threshold: float, value: float) -> _Flag:
    """A flag to the right of its line, or to the left where it would leave the chart."""
    name = f"{shorten(name, 240, _TEXT_SIZE)} {threshold:.3f}"
    percent = "" if np.isnan(value) else f"{100 * value:.1f} %"
    width = text_width(name, _TEXT_SIZE) + _GAP + text_width(percent, _TEXT_SIZE)
    left = round(_x(threshold)) + 6
    if left + width > _SIZE[0]:
        left -= width + 12
    return _Flag(_x(threshold), value, name, percent, left)


def _draw_lines(
    x: NDArray[np.float64], lines: list[NDArray[np.float64]], flags: list[_Flag], top: int
) -> Image.Image:
    """A chart with grid, axis, marks, curves and dots, which are drawn large and averaged."""
    image = Image.new("RGB", (_SIZE[0] * _FINE, _SIZE[1] * _FINE), PAPER)
    draw = ImageDraw.Draw(image)
    for tenth in range(11):
        _stroke(draw, [(_x(tenth / 10), top), (_x(tenth / 10), _BOTTOM)], _GRID, 1)
        if tenth % 2 == 0:
            color = _GRID if tenth else _AXIS
            _stroke(draw, [(_LEFT, _y(tenth / 10, top)), (_RIGHT, _y(tenth / 10, top))], color, 1)
    for row, flag in enumerate(flags):
        _stroke(draw, [(flag.x, _baseline(row) - _TEXT_SIZE), (flag.x, _BOTTOM)], MUTED, 1.5)
    for index in reversed(range(len(lines))):  # the first on top
        finite = np.flatnonzero(np.isfinite(lines[index]))
        runs = np.split(finite, np.flatnonzero(np.diff(finite) > 1) + 1) if len(finite) else []
        for run in runs:
            points = [(_x(a), _y(b, top)) for a, b in zip(x[run], lines[index][run], strict=True)]
            _stroke(draw, points, COLORS[index], 2 if index else 3.5)
    for flag in flags:
        if not np.isnan(flag.value):
            _dot(draw, (flag.x, _y(flag.value, top)), PAPER, 7)
            _dot(draw, (flag.x, _y(flag.value, top)), COLORS[0], 5)
    return image.reduce(_FINE)


def _stroke(draw: ImageDraw.ImageDraw, points: list[Point], color: Color, width: float) -> None:
    """Draw a line with round ends through points of the chart; a lone point becomes a dot."""
    large = [(x * _FINE, y * _FINE) for x, y in points]
    draw.line(large, color, round(width * _FINE), joint="curve")
    for end in (points[0], points[-1]):
        _dot(draw, end, color, width / 2)


def _dot(draw: ImageDraw.ImageDraw, centre: Point, color: Color, radius: float) -> None:
    x, y = centre
    draw.ellipse([_FINE * side for side in (x - radius, y - radius, x + radius, y + radius)], color)


def _draw_legend(chart: Image.Image, names: list[str]) -> None:
    """Write the curves' colours and names in one line below the title."""
    x, baseline, swatch = _LEFT, 66, 24
    room = (_RIGHT - _LEFT) // len(names) - 2 * swatch
    draw = ImageDraw.Draw(chart)
    for index, (name, color) in enumerate(zip(names, COLORS, strict=False)):
        half = 1 if index else 2
        draw.rectangle((x, baseline - 5 - half, x + swatch - 1, baseline - 6 + half), fill=color)
        at = (x + swatch + 8, baseline)
        x = write(chart, shorten(name, room - 8, _TEXT_SIZE), at=at, size=_TEXT_SIZE) + swatch


def _draw_axes(chart: Image.Image, top: int) -> None:
    """Write the numbers at the grid, and the titles of the axes."""
    for tenth in range(11):
        at = (round(_x(tenth / 10)), _BOTTOM + 22)
        _write_centred(chart, f"{tenth / 10:g}", at=at)
    for percent in range(0, 101, 20):
        label = f"{percent} %"
        at = (_LEFT - 10 - text_width(label, _TEXT_SIZE), round(_y(percent / 100, top)) + 5)
        write(chart, label, at=at, size=_TEXT_SIZE, color=MUTED)
    at = ((_LEFT + _RIGHT) // 2, _BOTTOM + 48)
    _write_centred(chart, "threshold, part of the heatmap's maximum", at=at)
    upright = Image.new("RGB", (_BOTTOM - top, 24), PAPER)
    _write_centred(upright, "accuracy", at=(upright.width // 2, 18))
    chart.paste(upright.transpose(Image.Transpose.ROTATE_90), (4, top))


def _draw_flag(chart: Image.Image, flag: _Flag, baseline: int) -> None:
    """Write name and threshold, and the value in the first curve's colour."""
    if flag.is_left_of_line:  # lines of other flags may pass behind the text
        chart.paste(PAPER, (flag.left - 3, baseline - _TEXT_SIZE, int(flag.x) - 3, baseline + 4))
    x = write(chart, flag.name, at=(flag.left, baseline), size=_TEXT_SIZE) + _GAP
    write(chart, flag.percent, at=(x, baseline), size=_TEXT_SIZE, color=COLORS[0])


def _write_centred(image: Image.Image, text: str, *, at: tuple[int, int]) -> None:
    """Write one muted line whose baseline is centred ``at`` (x, y)."""
    left = at[0] - text_width(text, _TEXT_SIZE) // 2
    write(image, text, at=(left, at[1]), size=_TEXT_SIZE, color=MUTED)


def confusion_picture(confusion: Tensor, names: Sequence[str]) -> Image.Image:
    """The counts in a grid, the darker the larger their part of the true class, as RGB.

    Args:
        confusion: (K, K) int, pictures by true class (rows) and predicted class (columns), K >= 1.
        names: K class names.

    Raises:
        CamtrainValueError: The matrix is not (K, K) for K names.
    """
    count = len(names)
    if not count or confusion.shape != (count, count):
        raise CamtrainValueError(
            f"confusion must be (K, K), a row and a column for each of the {count} names, got "
            f"{tuple(confusion.shape)}."
        )
    labels = [shorten(name, _NAME, _TEXT) for name in names]
    cell = max(text_width(str(int(confusion.max())), _TEXT) + 2 * _PADDING, 2 * _TEXT)
    margin = max(text_width(name, _TEXT) for name in labels) + 2 * _PADDING
    left, top = margin + _TEXT + _PADDING, margin + _TEXT + _PADDING
    side = count * cell
    width = left + max(side, text_width("predicted", _TEXT)) + _PADDING
    picture = Image.new("RGB", (width, top + side + _PADDING), PAPER)
    corner_at = (left - _PADDING - text_width("true", _TEXT), top - _PADDING)  # above the names
    write(picture, "true", at=corner_at, size=_TEXT, color=MUTED)
    write(picture, "predicted", at=(left, _TEXT + 2), size=_TEXT, color=MUTED)
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    for i, name in enumerate(labels):
        baseline = top + i * cell + (cell + _TEXT) // 2 - 2
        write(picture, name, at=(left - _PADDING - text_width(name, _TEXT), baseline), size=_TEXT)
        picture.paste(_upright_name(name, margin, cell), (left + i * cell, top - margin))
        for j in range(count):
            corner = (left + j * cell, top + i * cell)
            share, number = float(shares[i, j]), int(confusion[i, j])
            color = _mixed(share)
            picture.paste(color, (*corner, corner[0] + cell - 1, corner[1] + cell - 1))
            if number:
                text = str(number)
                at = (corner[0] + (cell - text_width(text, _TEXT)) // 2, baseline)
                write(picture, text, at=at, size=_TEXT, color=PAPER if share > 0.5 else INK)
    return picture


def _upright_name(name: str, length: int, width: int) -> Image.Image:
    """A name that is read from the bottom to the top, (length high, width wide)."""
    line = Image.new("RGB", (length, width), PAPER)
    write(line, name, at=(_PADDING, (width + _TEXT) // 2 - 2), size=_TEXT)
    return line.transpose(Image.Transpose.ROTATE_90)


def _mixed(share: float) -> Color:
    """The colour of a cell, between a very light gray and the full colour."""
    empty = torch.tensor([243.0, 245.0, 247.0])
    red, green, blue = empty.lerp(torch.tensor(_FULL).float(), share).round().int().tolist()
    return red, green, blue


def reliability_picture(reliability: Sequence[Sequence[float]]) -> Image.Image:
    """Accuracy against score, as RGB of 400 x 400; calibrated scores lie on the diagonal.

    The larger a dot, the more predictions have such a score.

    Args:
        reliability: Per bin its mean score and accuracy, both in [0, 1], and the number of its
            predictions, by ascending score; see ``CalibrationError.reliability``.
    """

    def place(score: float, accuracy: float) -> Point:
        return _CORNER[0] + score * _SIDE, _CORNER[1] + (1 - accuracy) * _SIDE

    image = Image.new("RGB", (_SQUARE * _FINE, _SQUARE * _FINE), PAPER)
    draw = ImageDraw.Draw(image)
    for fifth in range(6):
        _stroke(draw, [place(fifth / 5, 0), place(fifth / 5, 1)], _GRID, 1)
        _stroke(draw, [place(0, fifth / 5), place(1, fifth / 5)], _GRID, 1)
    _stroke(draw, [place(0, 0), place(1, 1)], MUTED, 1.5)
    points = [place(score, accuracy) for score, accuracy, _ in reliability]
    if points:
        _stroke(draw, points, COLORS[0], 2)
    total = sum(count for _, _, count in reliability)
    for point, (_, _, count) in zip(points, reliability, strict=True):
        _dot(draw, point, COLORS[0], 3 + 7 * (count / total) ** 0.5)
    chart = image.reduce(_FINE)
    middle, bottom = _CORNER[0] + _SIDE // 2, _CORNER[1] + _SIDE
    for fifth in range(6):
        x, y = (round(side) for side in place(fifth / 5, fifth / 5))
        label = f"{20 * fifth} %"
        _write_centred(chart, label, at=(x, bottom + 22))
        at = (_CORNER[0] - 10 - text_width(label, _TEXT_SIZE), y + 5)
        write(chart, label, at=at, size=_TEXT_SIZE, color=MUTED)
    _write_centred(chart, "score of the prediction", at=(middle, bottom + 48))
    upright = Image.new("RGB", (_SIDE, 22), PAPER)
    _write_centred(upright, "part that is right", at=(_SIDE // 2, 17))
    chart.paste(upright.transpose(Image.Transpose.ROTATE_90), (2, _CORNER[1]))
    return chart
