"""Localization and classification by the rule of ILSVRC: from maps, and from a prediction file.

The rules are those of the CLS-LOC task (Russakovsky et al., arXiv 1409.0575, section 4.1) as its
evaluation program applies them. A box is right when its IoU with *any* truth box reaches the IoU
threshold: exactly 0.5 counts, on inclusive pixels. For boxes with integer edges that is the
half-open IoU (see ``box_iou_inclusive``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.localization.boxes import box_iou, box_iou_inclusive, boxes_from_heatmap
from camtrain.localization.metric import (
    PictureMetric,
    check_batch,
    check_iou_threshold,
    maps_on_cpu,
    pictures_with_boxes,
)
from camtrain.maps import heatmaps
from camtrain.thresholds import DEFAULT_THRESHOLD, Threshold, check_any_threshold

MAX_GUESSES = 5
NO_GUESS = -1.0


def ranks_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes are guessed before the true class: (B,) int64, of (B, K) and (B,).

    0 is the best guess. Of equal logits the lower class number is guessed first. K where the
    label's logit is NaN.

    Example:
        >>> ranks_of_labels(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([2]))
        tensor([1])
    """
    classes, labels = torch.arange(logits.shape[1], device=logits.device), labels[:, None]
    of_label = logits.gather(1, labels)  # (B, 1)
    not_before = (logits < of_label) | ((logits == of_label) & (classes >= labels))
    return logits.shape[1] - not_before.sum(dim=1)


class LocalizationAccuracy(PictureMetric):
    """GT-known, top-1, top-5 localization at a fixed threshold of the heatmap, and classification.

    The box of a picture surrounds the largest component of its heatmap (the class map at the
    picture's size, min-max normalized) above threshold x maximum.

    * ``gt_known``: the box of the true class's map is right (see the top of this module).
    * ``top1`` (``top5``): the box is right, and the true class is the best (among the min(5, K)
      best) of the guesses. Maps of other classes do not matter: a guess of another class is wrong.
    * ``cls_top1`` (``cls_top5``): the true class is the best (among the min(5, K) best), over *all*
      pictures.

    Of equal logits the lower class number is guessed first; a class whose logit is NaN is never
    guessed. Pictures without boxes, and those of a blacklist, are not counted for localization.
    ``flat_errors`` computes the same from a file of predictions, as 1 - error.

    Args:
        threshold: Part of the heatmap's maximum that a pixel must exceed, in [0, 1), or ``auto``,
            see ``boxes_from_heatmap``.
        iou_threshold: The least IoU of a right box, in (0, 1].
        num_classes: K, to count GT-known for each class too; None counts all together only.

    Example:
        >>> maps = torch.zeros(1, 3, 4)
        >>> maps[0, 0, 0] = 1.0
        >>> logits, labels = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2])
        >>> boxes_xyxy, sizes_hw = [torch.tensor([[0, 0, 16, 18]])], torch.tensor([[30, 40]])
        >>> metric = LocalizationAccuracy()
        >>> metric.update(maps, logits, labels, boxes_xyxy, sizes_hw)
        >>> {name: score.item() for name, score in metric.compute().items()}
        {'gt_known': 1.0, 'top1': 0.0, 'top5': 1.0, 'cls_top1': 0.0, 'cls_top5': 1.0}
    """

    def __init__(
        self,
        threshold: Threshold = DEFAULT_THRESHOLD,
        iou_threshold: float = 0.5,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.threshold = check_any_threshold(threshold)
        self.iou_threshold = check_iou_threshold(iou_threshold)
        self.add_sums("gt_known", "top1", "top5", "count", dtype=torch.int64)
        self.add_sums("cls_top1", "cls_top5", "cls_count", dtype=torch.int64)
        shape = (num_classes or 0,)
        self.add_sums("class_right", "class_count", shape=shape, dtype=torch.int64)

    def update(
        self,
        maps: Tensor | Sequence[Tensor],
        logits: Tensor,
        labels: Tensor,
        boxes_xyxy: Sequence[Tensor],
        sizes_hw: Tensor,
        blacklisted: Tensor | None = None,
    ) -> None:
        """Count a batch.

        Args:
            maps: (B, h, w), or B maps (h, w) of any sizes: the class map of each picture's *true*
                class; it covers the whole picture.
            logits: (B, K).
            labels: (B,) int, the true classes.
            boxes_xyxy: Per picture (n, 4), half-open xyxy in pixels of the picture.
            sizes_hw: (B, 2) int, the pictures' (H, W), in pixels.
            blacklisted: (B,) bool: pictures that are left out of localization (ILSVRC has such a
                list, of pictures whose objects cannot be boxed), but not out of classification.

        Raises:
            CamtrainValueError: A shape is wrong, or the batch sizes differ.
        """
        maps = maps_on_cpu(maps, len(boxes_xyxy))
        check_batch("logits", logits, "B K", len(boxes_xyxy))
        check_batch("labels", labels, "B", len(boxes_xyxy))
        if blacklisted is None:
            blacklisted = torch.zeros(len(boxes_xyxy), dtype=torch.bool)
        check_batch("blacklisted", blacklisted, "B", len(boxes_xyxy))
        is_left_out = blacklisted.tolist()
        ranks = ranks_of_labels(logits.detach().cpu(), labels.cpu()).tolist()
        top5 = min(5, logits.shape[1])
        self.cls_top1 += sum(rank < 1 for rank in ranks)
        self.cls_top5 += sum(rank < top5 for rank in ranks)
        self.cls_count += len(ranks)
        for index, boxes, size_hw in pictures_with_boxes(boxes_xyxy, sizes_hw):
            if is_left_out[index]:
                continue
            heatmap = heatmaps(maps[index][None, None], size=size_hw)[0, 0]
            largest_box = boxes_from_heatmap(heatmap, self.threshold)[:1]
            is_right = bool((box_iou(largest_box, boxes) >= self.iou_threshold).any())
            self.gt_known += is_right
            self.top1 += is_right and ranks[index] < 1
            self.top5 += is_right and ranks[index] < top5
            self.count += 1
            if len(self.class_count):
                self.class_right[int(labels[index])] += is_right
                self.class_count[int(labels[index])] += 1

    def by_class(self) -> tuple[Tensor, Tensor]:
        """For each class, the number of pictures whose box is right, and of those that have boxes.

        Both are (K,) int64, summed over all processes; empty if ``num_classes`` was not given.
        """
        with self.sync_context():
            return self.class_right.cpu().clone(), self.class_count.cpu().clone()

    def compute(self) -> dict[str, Tensor]:
        """The fractions by name, float64 scalars; NaN if no picture was counted."""
        localization = {"gt_known": self.gt_known, "top1": self.top1, "top5": self.top5}
        classification = {"cls_top1": self.cls_top1, "cls_top5": self.cls_top5}
        return {name: right.double() / self.count for name, right in localization.items()} | {
            name: right.double() / self.cls_count for name, right in classification.items()
        }


class FlatErrors(NamedTuple):
    """The fraction of wrong pictures when the first k guesses count, for k = 1, 2, ..., 5.

    Attributes:
        classification: Five numbers in [0, 1], none above the one before; NaN if no picture was
            counted. A picture is wrong if no guess has its label.
        localization: The same numbers, but a guess must also have a right box.
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
    when one of them has its label and a right box (see the top of this module). Everything is
    computed in float64, so that unsigned integers do not wrap.

    Args:
        predictions: (n, 5, 5), guesses, best first: label, xmin, ymin, xmax, ymax, inclusive pixels
            of the picture. A guess that is missing has the label -1.
        labels: (n,) int, the true classes, numbered as in ``predictions``.
        boxes_xyxy: Per picture (m, 4), the truth: *inclusive* xyxy in pixels of the picture.
        blacklisted: (n,) bool: pictures that are left out of the localization error, as pictures
            without boxes are, but not out of the classification error.
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
    count = len(predictions)
    if predictions.ndim != 3 or predictions.shape[1:] != (MAX_GUESSES, 5):
        raise CamtrainValueError(
            f"predictions must be (n, {MAX_GUESSES}, 5), got {tuple(predictions.shape)}."
        )
    if labels.shape != (count,) or len(boxes_xyxy) != count:
        raise CamtrainValueError(
            f"predictions, labels and boxes_xyxy must hold the same pictures, got {count}, "
            f"{tuple(labels.shape)} and {len(boxes_xyxy)}."
        )
    is_counted = torch.tensor([len(boxes) > 0 for boxes in boxes_xyxy], dtype=torch.bool)
    if blacklisted is not None:
        if blacklisted.shape != (count,) or blacklisted.dtype != torch.bool:
            raise CamtrainValueError(
                f"blacklisted must be one bool per picture, ({count},), got "
                f"{tuple(blacklisted.shape)} of {blacklisted.dtype}."
            )
        is_counted &= ~blacklisted.cpu()
    check_iou_threshold(iou_threshold)
    predictions = predictions.detach().cpu().double()
    labels = labels.cpu().double()[:, None]
    has_label = (predictions[:, :, 0] == labels) & (labels != NO_GUESS)  # (n, 5)
    has_box = torch.zeros_like(has_label)
    for row in has_label.any(dim=1).nonzero().flatten().tolist():
        truth = boxes_xyxy[row].cpu().double().reshape(-1, 4)
        iou = box_iou_inclusive(predictions[row, :, 1:], truth)
        has_box[row] = (iou >= iou_threshold).any(dim=1)
    return FlatErrors(_top_k_errors(has_label), _top_k_errors((has_label & has_box)[is_counted]))


def _top_k_errors(is_right: Tensor) -> tuple[float, ...]:
    """The top-1 to top-5 error; ``is_right`` (n, 5) says whether each guess is right."""
    number_right = is_right.cummax(dim=1).values.sum(dim=0)
    return tuple((1 - number_right.double() / len(is_right)).tolist())


def read_predictions(path: str | Path) -> Tensor:
    """The guesses of a file in the format of ILSVRC, for ``flat_errors``.

    The file has one line per picture, in the order of the truth: up to five groups of five numbers,
    ``label xmin ymin xmax ymax``, best guess first, separated by blanks. An empty line is a picture
    without a guess. ILSVRC numbers its classes 1..1000 in its own order; labels are not changed.

    Returns:
        (n, 5, 5) float64; guesses that are missing have the label -1 and a box of zeros.

    Raises:
        CamtrainFileNotFoundError: There is no such file.
        CamtrainValueError: A line is wrong; the message names file and line.
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
            guesses = _parse_guesses(line)
        except ValueError as error:
            raise CamtrainValueError(f"{path}, line {row + 1}: {error}") from error
        predictions[row, : len(guesses)] = guesses
    return predictions


def _parse_guesses(line: str) -> Tensor:
    """The guesses of a line, (g, 5) float64; a ValueError says what is wrong with the line."""
    numbers = []
    for word in line.split():
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"expected numbers separated by blanks, got {word!r}.")
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
