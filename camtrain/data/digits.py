"""ClutteredDigits: pictures with exact boxes that need no download."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camtrain.data.source import SourcePicture, Split
from camtrain.errors import CamtrainValueError, check_choice

CANVAS = 64
_Gray = npt.NDArray[np.uint8]
_Box = tuple[int, int, int, int]  # half-open xyxy

_SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}  # of the 1797 source digits
_DIGIT_SIDE = (22, 36)  # pixels that the 8 x 8 source pixels of the digit are enlarged to
_CLUTTER_SIDE = (20, 28)  # the same for the digits that the clutter is cut from
_CLUTTER_COUNT = (6, 10)
_CLUTTER_TRIES = 32  # places drawn per picture; those that would cover the digit are passed over
_VISIBLE = 40  # gray level from which ink counts; fainter ink is erased, so that the box is exact


class ClutteredDigits:
    """Handwritten digits at random size and place among clutter cut from other digits.

    The digits are those that scikit-learn ships (8 x 8 pixels, 1797 of them); the source digits of
    train, val and test are disjoint. The idea is that of cluttered MNIST (Mnih et al. 2014, arXiv
    1406.6247). Pictures are (1, 64, 64) uint8, white on black, and their box is the tight box of
    the digit's ink. Clutter may touch the box and never reaches into it.

    Args:
        split: Which source digits to draw from.
        length: Number of pictures. Picture i depends on seed, split and i alone.
        seed: Chooses the digits, sizes and places, not the partition of the source digits.

    Raises:
        CamtrainValueError: An unknown split, or a length below 1.
    """

    class_names = tuple("0123456789")

    def __init__(self, split: Split, *, length: int, seed: int = 0) -> None:
        """Choose digits, sizes and places; nothing is drawn yet."""
        check_choice("split", split, get_args(Split))
        if length < 1:
            raise CamtrainValueError(f"length must be at least 1 picture, got {length}.")
        self.split = split
        digits = source_digits(split)
        # row by row from one stream, so that a picture does not depend on how many follow it
        rng = np.random.default_rng([seed, get_args(Split).index(split)])
        self._draws = rng.random((length, 5 + 6 * _CLUTTER_TRIES))
        self._glyphs = digits.glyphs
        self._digit_indices = (self._draws[:, 0] * len(digits.glyphs)).astype(np.int64)
        self.labels: list[int] = digits.labels[self._digit_indices].tolist()
        self.paths = [f"digits/{split}/{index:06d}" for index in range(length)]
        self._images = torch.zeros(length, 1, CANVAS, CANVAS, dtype=torch.uint8)
        self._boxes = torch.zeros(length, 1, 4, dtype=torch.int64)  # all 0: not drawn yet

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.labels)

    def boxes(self, index: int) -> Tensor:
        """The box of the digit at ``index``, (1, 4), which is drawn for it."""
        return self.read(index).boxes_xyxy

    def read(self, index: int) -> SourcePicture:
        """The picture at ``index``, drawn when it is read for the first time."""
        index = range(len(self))[index]
        if not self._boxes[index].any():
            picture, box = _draw(
                self._glyphs, int(self._digit_indices[index]), self._draws[index, 1:]
            )
            self._images[index, 0] = torch.from_numpy(picture)
            self._boxes[index, 0] = torch.tensor(box)
        image, box_xyxy = self._images[index].clone(), self._boxes[index].clone()
        return SourcePicture(image, self.labels[index], box_xyxy, self.paths[index])


class SourceDigits(NamedTuple):
    """The digits of a split: glyphs (n, 8, 8), labels (n,), rows (n,) in scikit-learn's list."""

    glyphs: _Gray
    labels: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


@cache
def source_digits(split: Split) -> SourceDigits:
    """The source digits of one split: always the same, and the same share of every class."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    start = sum(list(_SHARES.values())[: get_args(Split).index(split)])
    rng = np.random.default_rng(0)
    rows = []
    for label in range(10):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(rng.random(len(members)))]
        first, last = (round(len(members) * share) for share in (start, start + _SHARES[split]))
        rows.append(members[first:last])
    chosen = np.concatenate(rows)
    glyphs = (digits.images[chosen] * (255 / 16)).round().astype(np.uint8)
    return SourceDigits(glyphs, labels[chosen], chosen)


def _draw(glyphs: _Gray, digit_index: int, draws: npt.NDArray[np.float64]) -> tuple[_Gray, _Box]:
    """A picture, (64, 64), of a digit and its box, from uniform random numbers in [0, 1)."""
    size, row, column, amount = draws[:4].tolist()
    glyph = np.pad(glyphs[digit_index], 1)  # so that strokes end softly
    digit = _ink(_enlarge(glyph, _integer_between(_DIGIT_SIDE, size) / 8))
    box = _place(digit, row, column)
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    canvas[_window(box)] = digit
    remaining_count = _integer_between(_CLUTTER_COUNT, amount)
    for clutter in draws[4:].reshape(_CLUTTER_TRIES, 6).tolist():
        patch = _clutter(glyphs, clutter[:4])
        place = _place(patch, *clutter[4:])
        if _overlap(place, box):
            continue
        region = canvas[_window(place)]
        np.maximum(region, patch, out=region)
        remaining_count -= 1
        if not remaining_count:
            break
    return canvas, box


def _place(ink: _Gray, row: float, column: float) -> _Box:
    """A box of the ink's size, at a random place of the canvas."""
    top, left = (
        int(draw * (CANVAS + 1 - side)) for draw, side in zip((row, column), ink.shape, strict=True)
    )
    return left, top, left + ink.shape[1], top + ink.shape[0]


def _window(box: _Box) -> tuple[slice, slice]:
    left, top, right, bottom = box
    return slice(top, bottom), slice(left, right)


def _overlap(box_a: _Box, box_b: _Box) -> bool:
    left, top = map(max, box_a[:2], box_b[:2])
    right, bottom = map(min, box_a[2:], box_b[2:])
    return left < right and top < bottom


def _clutter(glyphs: _Gray, draws: list[float]) -> _Gray:
    """3 x 3 or 4 x 4 source pixels of some digit, enlarged."""
    which, size, y, x = draws
    pixels = 3 + int(size * 2)
    top, left = (int(draw * (9 - pixels)) for draw in (y, x))
    patch = glyphs[int(which * len(glyphs)), top : top + pixels, left : left + pixels]
    return _enlarge(patch, _integer_between(_CLUTTER_SIDE, (size * 2) % 1) / 8)


def _enlarge(glyph: _Gray, factor: float) -> _Gray:
    side = round(glyph.shape[0] * factor)
    enlarged = cv2.resize(glyph, (side, side), interpolation=cv2.INTER_CUBIC)
    return enlarged.astype(np.uint8, copy=False)


def _ink(digit: _Gray) -> _Gray:
    """The digit cut to its tight box, without the ink too faint to be seen."""
    visible = digit >= _VISIBLE
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return digit[window] * visible[window]


def _integer_between(limits: tuple[int, int], draw: float) -> int:
    """The integer between both limits, inclusive, that ``draw`` in [0, 1) stands for."""
    return limits[0] + int(draw * (limits[1] - limits[0] + 1))
