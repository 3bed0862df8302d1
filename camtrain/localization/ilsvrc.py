"""The classification and localization error of ILSVRC, from predictions in a file.

The rules are those of the CLS-LOC task (Russakovsky et al., arXiv 1409.0575, section 4.1) as its
evaluation program applies them. Boxes of this file are *inclusive* xyxy, as in the official files:
the pixel at (xmax, ymax) belongs to the box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.localization.boxes import box_iou_inclusive
from camtrain.localization.pictures import check_iou_threshold

MAX_GUESSES = 5
NO_GUESS = -1.0


@dataclass(frozen=True)
class FlatErrors:
    """Parts of the pictures that are wrong when the first 1, 2, ..., 5 guesses count.

    Attributes:
        classification: Five numbers in [0, 1], falling; NaN when nothing was counted.
        localization: The same, with the box.
    """

    classification: tuple[float, ...]
    localization: tuple[float, ...]


def flat_errors(
    predictions: Tensor,
    labels: Tensor,
    *,
    boxes_xyxy: Sequence[Tensor],
    blacklisted: Tensor | None = None,
    iou_threshold: float = 0.5,
) -> FlatErrors:
    """Classification and localization error of up to five guesses per picture.

    With the first k guesses a picture is classified when one of them has its label, and localized
    when one of them has its label and a box whose IoU with *any* truth box reaches the threshold:
    exactly 0.5 counts, on inclusive pixels. Everything is computed in float64, so that integers of
    any type are safe: unsigned ones do not wrap.

    Args:
        predictions: (n, 5, 5), guesses, best first: label, xmin, ymin, xmax, ymax, inclusive pixels
            of the picture. A guess that is missing has the label -1.
        labels: (n,) int, the true classes, numbered as in ``predictions``.
        boxes_xyxy: Per picture (m, 4), the truth: *inclusive* xyxy in pixels of the picture.
        blacklisted: (n,) bool: pictures that leave the localization error, numerator and
            denominator, as those without boxes do (ILSVRC has none). The classification error
            counts them.
        iou_threshold: The least IoU of a right box, in (0, 1].

    Raises:
        CamtrainValueError: The shapes do not fit each other, or ``iou_threshold`` lies outside
            (0, 1].

    Example:
        >>> predictions = torch.full((1, 5, 5), -1.0)
        >>> predictions[0, 0] = torch.tensor([3, 0, 0, 9, 9])
        >>> predictions[0, 1] = torch.tensor([7, 0, 0, 9, 4])
        >>> truth = [torch.tensor([[0, 0, 9, 9]])]
        >>> flat_errors(predictions, torch.tensor([7]), boxes_xyxy=truth).localization
        (1.0, 0.0, 0.0, 0.0, 0.0)
    """
    is_left_out = _check(predictions, labels, boxes_xyxy, blacklisted)
    is_left_out |= torch.tensor([len(boxes) == 0 for boxes in boxes_xyxy], dtype=torch.bool)
    check_iou_threshold(iou_threshold)
    predictions = predictions.detach().cpu().double()
    labels = labels.cpu().double()[:, None]
    has_label = (predictions[:, :, 0] == labels) & (labels != NO_GUESS)  # (n, 5)
    has_box = torch.zeros_like(has_label)
    for row in has_label.any(dim=1).nonzero().flatten().tolist():
        truth = boxes_xyxy[row].cpu().double().reshape(-1, 4)
        iou = box_iou_inclusive(predictions[row, :, 1:], truth)
        has_box[row] = (iou >= iou_threshold).any(dim=1)
    return FlatErrors(_errors(has_label), _errors((has_label & has_box)[~is_left_out]))


def read_predictions(path: str | Path) -> Tensor:
    """The guesses of a file in the format of ILSVRC, for ``flat_errors``.

    One line per picture, in the order of the truth: up to five groups of five numbers, ``label xmin
    ymin xmax ymax``, best guess first, parted by blanks. An empty line is a picture without a
    guess. ILSVRC numbers its classes 1..1000 in its own order; the labels are kept as written.

    Args:
        path: The text file.

    Returns:
        (n, 5, 5) float64; guesses that are missing have the label -1 and a box of zeros.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: A line holds something else; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise CamtrainFileNotFoundError(f"No file with predictions at {path}.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CamtrainValueError(f"{path} is not a text file: {error}.") from error
    predictions = torch.zeros(len(lines), MAX_GUESSES, 5, dtype=torch.float64)
    predictions[:, :, 0] = NO_GUESS
    for row, line in enumerate(lines):
        try:
            guesses = _guesses(line)
        except ValueError as error:
            raise CamtrainValueError(f"{path}, line {row + 1}: {error}") from error
        predictions[row, : len(guesses)] = guesses
    return predictions


def _guesses(line: str) -> Tensor:
    """The guesses of a line, (g, 5) float64; a ValueError says what is wrong with it."""
    numbers = []
    for word in line.split():
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"expected numbers parted by blanks, got {word!r}.")
        numbers.append(number)
    if len(numbers) % 5 or len(numbers) > 5 * MAX_GUESSES:
        raise ValueError(
            f"expected up to {MAX_GUESSES} groups of 5 numbers, label xmin ymin xmax ymax, got "
            f"{len(numbers)} numbers."
        )
    for label in numbers[::5]:
        if label < 0 or not label.is_integer():
            raise ValueError(f"a label must be a whole number from 0, got {label:g}.")
    return torch.tensor(numbers, dtype=torch.float64).reshape(-1, 5)


def _check(
    predictions: Tensor, labels: Tensor, boxes_xyxy: Sequence[Tensor], blacklisted: Tensor | None
) -> Tensor:
    """The blacklist, (n,) bool, of whatever was given; raise unless all shapes fit."""
    if predictions.ndim != 3 or predictions.shape[1:] != (MAX_GUESSES, 5):
        raise CamtrainValueError(
            f"predictions must be (n, {MAX_GUESSES}, 5), got {tuple(predictions.shape)}."
        )
    count = len(predictions)
    if labels.shape != (count,) or len(boxes_xyxy) != count:
        raise CamtrainValueError(
            f"predictions, labels and boxes_xyxy must hold the same pictures, got {count}, "
            f"{tuple(labels.shape)} and {len(boxes_xyxy)}."
        )
    if blacklisted is None:
        return torch.zeros(count, dtype=torch.bool)
    if blacklisted.shape != (count,) or blacklisted.dtype != torch.bool:
        raise CamtrainValueError(
            f"blacklisted must be one bool per picture, ({count},), got "
            f"{tuple(blacklisted.shape)} of {blacklisted.dtype}."
        )
    return blacklisted.cpu().clone()


def _errors(right: Tensor) -> tuple[float, ...]:
    """The error with the first 1, 2, ..., 5 guesses, of (n, 5) bool."""
    found = right.cummax(dim=1).values.sum(dim=0)
    return tuple((1 - found.double() / len(right)).tolist())
