"""MaxBoxAcc and MaxBoxAccV2, the scores of the WSOL benchmark, by groups of pictures too.

The protocol is that of Choe et al., arXiv 2007.04178, section 3.2. The tests compare every box with
the evaluator of its authors (github.com/clovaai/wsolevaluation, evaluation.py). Everything happens
at 224 x 224 with inclusive boxes, on score maps quantized to 8 bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.localization.boxes import box_iou_inclusive, inclusive_boxes, otsu_part
from camtrain.localization.centre import centre_iou
from camtrain.localization.contours import THRESHOLDS, contour_boxes, levels_of_thresholds
from camtrain.localization.groups import (
    MISSES,
    NUMBERS,
    SIZES,
    group_of,
    group_rows,
    kinds_of_misses,
    paired_comparison,
)
from camtrain.localization.metric import ClassMapMetric, SizeHW, check_iou_threshold
from camtrain.maps import score_map
from camtrain.thresholds import check_threshold

IOU_THRESHOLDS = (0.3, 0.5, 0.7)
_TRUTHS_AT_ONCE = 1000  # 100,000 boxes of a picture would take gigabytes


class Outcomes(NamedTuple):
    """What the boxes of a class map are worth at each of the benchmark's 1,000 thresholds.

    Attributes:
        hits: (2, len(iou_thresholds), 1000) bool, whether they hit any truth box. First the one box
            around the largest contour, then any box around any contour.
        misses: (1000,) int64, why the first box misses: see ``kinds_of_misses``. It also has a
            number where the box hits.
        auto: The place among the thresholds of the one nearest to ``auto_threshold``.
    """

    hits: Tensor
    misses: NDArray[np.int64]
    auto: int


def outcomes_at_thresholds(
    class_map: Tensor,
    boxes_xyxy: Tensor,
    size_hw: SizeHW,
    iou_thresholds: Sequence[float],
    iou_threshold: float = 0.5,
) -> Outcomes:
    """Whether boxes of a class map hit any truth box, at each of the benchmark's thresholds.

    The first arguments are those of ``MaxBoxAcc.update``, for one picture with boxes on the CPU;
    ``iou_threshold`` is that of the kinds of misses.
    """
    scores = score_map(class_map)
    contours = contour_boxes(scores)
    boxes, truth = torch.from_numpy(contours.boxes_xyxy), inclusive_boxes(boxes_xyxy, size_hw)
    parts = torch.split(truth, _TRUTHS_AT_ONCE)
    best_of_parts = [box_iou_inclusive(boxes, part).max(dim=1) for part in parts]
    iou, best_part = torch.stack([best.values for best in best_of_parts]).max(dim=0)
    # The largest and the best contour of each foreground: (2, F).
    best = np.stack((iou[contours.largest], np.maximum.reduceat(iou.numpy(), contours.starts)))
    hits = best[:, None] >= np.array(iou_thresholds)[:, None]

    largest = torch.from_numpy(contours.largest)
    places = torch.stack([best.indices for best in best_of_parts])[best_part[largest], largest]
    nearest = truth[best_part[largest] * _TRUTHS_AT_ONCE + places]
    hull = torch.cat((truth[:, :2].amin(0), truth[:, 2:].amax(0))) if len(truth) > 1 else None
    misses = kinds_of_misses(boxes[largest], nearest, hull, iou_threshold)

    levels = levels_of_thresholds(int(scores.max() * 255))
    # Above a level lies the foreground of the next higher value.
    foregrounds = np.searchsorted(contours.values, levels, side="right")
    every_hit = torch.from_numpy(hits[..., foregrounds])
    return Outcomes(every_hit, misses[foregrounds], _nearest(otsu_part(scores)))


class _BoxHits(ClassMapMetric):
    """Counts hits of both kinds of boxes; each of the two public metrics reads one kind."""

    _contours: int  # the row of ``hits`` to read, 0: the largest contour, 1: all contours

    def __init__(self, iou_threshold: float = 0.5) -> None:
        super().__init__()
        self.iou_threshold = check_iou_threshold(iou_threshold)
        is_usual = iou_threshold in IOU_THRESHOLDS
        self.iou_thresholds = IOU_THRESHOLDS if is_usual else (iou_threshold,)
        shape = (2, len(self.iou_thresholds), len(THRESHOLDS))
        self.add_sums("hits", shape=shape, dtype=torch.int64)
        self.add_sums("count", "auto", dtype=torch.int64)
        # Pictures by group, and those for which the box of the largest contour is right, the fixed
        # box, and both; misses by kind.
        groups = (len(NUMBERS), len(SIZES))
        self.add_sums("pictures", "centre", shape=groups, dtype=torch.int64)
        shape = (*groups, len(THRESHOLDS))
        self.add_sums("by_group", "with_centre", shape=shape, dtype=torch.int64)
        self.add_sums("misses", shape=(len(MISSES), len(THRESHOLDS)), dtype=torch.int64)

    def _count(self, pictures: list[tuple[Tensor, Tensor, SizeHW]]) -> None:
        """Count as many pictures at a time as torch uses threads."""

        def outcomes_of(picture: tuple[Tensor, Tensor, SizeHW]) -> Outcomes:
            return outcomes_at_thresholds(*picture, self.iou_thresholds, self.iou_threshold)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            outcomes = list(pool.map(outcomes_of, pictures))
        column, every = self.iou_thresholds.index(self.iou_threshold), range(len(THRESHOLDS))
        names = ("hits", "auto", "pictures", "centre", "by_group", "with_centre", "misses")
        sums = {name: torch.zeros_like(getattr(self, name), device="cpu") for name in names}
        for (hits, misses, auto), (_, boxes, size_hw) in zip(outcomes, pictures, strict=True):
            group, is_right = group_of(boxes, size_hw), hits[0, column]
            sums["hits"] += hits
            sums["auto"] += is_right[auto]
            sums["pictures"][group] += 1
            sums["by_group"][group] += is_right
            sums["misses"][misses, every] += ~is_right
            if centre_iou(boxes, size_hw) >= self.iou_threshold:
                sums["centre"][group] += 1
                sums["with_centre"][group] += is_right
        self.count += len(pictures)
        for name, value in sums.items():
            getattr(self, name).add_(value.to(self.hits.device))

    def _accuracies(self, iou_threshold: float | None = None) -> Tensor:
        """The accuracy at each threshold, (1000,) float64, from the counts of this process."""
        if iou_threshold is None:
            iou_threshold = self.iou_threshold
        if iou_threshold not in self.iou_thresholds:
            raise CamtrainValueError(
                f"iou_threshold must be one of those counted, {self.iou_thresholds}, got "
                f"{iou_threshold}."
            )
        column = self.iou_thresholds.index(iou_threshold)
        return self.hits[self._contours, column].double() / self.count

    def curve(self, iou_threshold: float | None = None) -> tuple[Tensor, Tensor]:
        """The accuracy at each threshold, over the pictures of all processes.

        Args:
            iou_threshold: One of ``iou_thresholds``, by default that of the metric; the same for
                the other methods.

        Returns:
            The thresholds 0, 0.001, ..., 0.999, parts of a map's maximum after min-max, and the
            accuracies, each (1000,) float64. Accuracies are NaN when nothing was counted.
        """
        with self.sync_context():
            return torch.from_numpy(THRESHOLDS.copy()), self._accuracies(iou_threshold).cpu()

    def best_threshold(self, iou_threshold: float | None = None) -> float:
        """The oracle threshold: the first with the best accuracy; NaN when nothing was counted.

        This is the benchmark's convention: the threshold is chosen on the pictures that it is
        scored on. For other pictures use ``calibrated_threshold``.
        """
        thresholds, accuracy = self.curve(iou_threshold)
        return float("nan") if accuracy.isnan().any() else float(thresholds[accuracy.argmax()])

    def calibrated_threshold(self, iou_threshold: float | None = None) -> float:
        """The threshold to use on other pictures: the middle of the best ones.

        The best accuracy is often reached in a whole range of thresholds. On other pictures the
        range shifts a little, and its middle is the most likely to stay in it. Of several ranges
        the widest is taken, of equally wide ones the first. NaN when nothing was counted.
        """
        thresholds, accuracy = self.curve(iou_threshold)
        if accuracy.isnan().any():
            return float("nan")
        return float(thresholds[_middle_of_longest_run((accuracy == accuracy.max()).numpy())])

    def accuracy_at(self, threshold: float, iou_threshold: float | None = None) -> Tensor:
        """The accuracy at a fixed threshold in [0, 1), such as 0.2 or a calibrated one.

        The threshold is rounded to thousandths. A float64 scalar; NaN when nothing was counted.
        """
        return self.curve(iou_threshold)[1][_nearest(threshold)]

    def accuracy_auto(self) -> Tensor:
        """The accuracy where each map has its own threshold, see ``auto_threshold``.

        That of the box around the largest contour, at the IoU threshold of the metric. The
        thresholds are rounded to thousandths. A float64 scalar; NaN when nothing was counted.
        """
        with self.sync_context():
            return self.auto.double().cpu() / self.count.cpu()

    def against_centre(self, threshold: float) -> dict[str, float]:
        """The accuracy at a threshold compared with that of a fixed box in the centre.

        Returns:
            What ``paired_comparison`` returns, of all pictures.
        """
        columns = [int(values.sum()) for values in self._at(threshold)]
        return paired_comparison(*columns)

    def breakdown(self, threshold: float) -> dict[str, Any]:
        """For what the boxes at a threshold hold, as plain values, over all processes.

        Returns:
            ``by_size`` and ``by_number``, the comparison with the centre box for each group of
            pictures that occurs (see ``group_of``), and ``misses``, pictures by kind (see
            ``kinds_of_misses``).
        """
        hits, centre, both, counts = self._at(threshold)
        with self.sync_context():
            misses = self.misses[:, _nearest(threshold)].tolist()
        rows = group_rows(counts, hits, centre, both)
        return {**rows, "misses": dict(zip(MISSES, misses, strict=True))}

    def _at(self, threshold: float) -> tuple[Tensor, ...]:
        """Hits of boxes, of the centre box and of both, and pictures, each (2, 5), by group."""
        with self.sync_context():
            place = _nearest(threshold)
            by_group, both = self.by_group[..., place], self.with_centre[..., place]
            return by_group.cpu(), self.centre.cpu(), both.cpu(), self.pictures.cpu()


def _nearest(threshold: float) -> int:
    """The index of the counted threshold that is nearest."""
    return int(np.abs(THRESHOLDS - check_threshold(threshold)).argmin())


class MaxBoxAcc(_BoxHits):
    """Part of the pictures whose one box is right, at the one threshold that is best for them all.

    max over 1,000 thresholds t of mean over pictures of [IoU(box at t, any truth box) >= the IoU
    threshold]. The box surrounds the largest contour above t x maximum. ``update(maps, boxes_xyxy,
    sizes_hw)`` takes (B, h, w) or B maps (h, w), per picture boxes (n, 4), half-open xyxy in its
    pixels, and (B, 2) of (H, W). A map of 224 x 224 is not resized. Pictures without boxes are not
    counted. Memory is constant.

    At the IoU thresholds 0.3, 0.5 and 0.7 it counts what ``MaxBoxAccV2`` counts, so torchmetrics'
    ``MetricCollection`` updates both in one pass over the maps.

    Args:
        iou_threshold: The least IoU of a hit, in (0, 1].

    Example:
        >>> class_map = torch.zeros(1, 14, 14)
        >>> class_map[0, 4:10, 2:8] = 1.0
        >>> boxes_xyxy, sizes_hw = [torch.tensor([[40, 60, 160, 140]])], torch.tensor([[200, 280]])
        >>> metric = MaxBoxAcc()
        >>> metric.update(class_map, boxes_xyxy, sizes_hw)
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
        >>> metric.best_threshold()
        0.091
    """

    _contours = 0

    def compute(self) -> Tensor:
        """The accuracy at the best threshold, a float64 scalar; NaN when nothing was counted."""
        return self._accuracies().amax()


class MaxBoxAccV2(_BoxHits):
    """MaxBoxAcc with all contours, at the mean over the IoU thresholds 0.3, 0.5 and 0.7.

    A picture is right when the box around *any* contour, including those of holes, has enough IoU
    with any truth box; each IoU threshold has its own best threshold. ``update`` is that of
    ``MaxBoxAcc``.

    Example:
        >>> class_map = torch.zeros(1, 14, 14)
        >>> class_map[0, 4:10, 2:8] = 1.0
        >>> boxes_xyxy, sizes_hw = [torch.tensor([[40, 60, 160, 110]])], torch.tensor([[200, 280]])
        >>> metric = MaxBoxAccV2()
        >>> metric.update(class_map, boxes_xyxy, sizes_hw)
        >>> metric.compute()
        tensor(0.6667, dtype=torch.float64)
        >>> metric.accuracy_at(0.2, iou_threshold=0.7)
        tensor(0., dtype=torch.float64)
    """

    _contours = 1

    def __init__(self) -> None:  # the IoU thresholds are fixed
        super().__init__()

    def compute(self) -> Tensor:
        """The mean of the three accuracies, a float64 scalar; NaN when nothing was counted."""
        return (self.hits[self._contours].amax(dim=-1).double() / self.count).mean()


def _middle_of_longest_run(is_best: NDArray[np.bool_]) -> int:
    """The middle index of the longest run of true values, the lower one of two."""
    framed = np.pad(is_best, 1)
    starts, ends = np.flatnonzero(framed[1:] != framed[:-1]).reshape(-1, 2).T
    longest = (ends - starts).argmax()
    return int(starts[longest] + ends[longest] - 1) // 2
