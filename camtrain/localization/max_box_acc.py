"""MaxBoxAcc and MaxBoxAccV2, the scores of the WSOL benchmark, and baselines for them.

The protocol is that of Choe et al., arXiv 2007.04178, section 3.2. The tests compare every box with
the evaluator of its authors (github.com/clovaai/wsolevaluation, evaluation.py). Everything happens
at 224 x 224 with inclusive boxes, on score maps quantized to 8 bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.header import check_threshold
from camtrain.localization.boxes import box_iou, box_iou_inclusive, inclusive_boxes
from camtrain.localization.contours import THRESHOLDS, contour_boxes, levels_of_thresholds
from camtrain.localization.metric import (
    ClassMapMetric,
    PictureMetric,
    SizeHW,
    check_iou_threshold,
    pictures_with_boxes,
)
from camtrain.maps import score_map

IOU_THRESHOLDS = (0.3, 0.5, 0.7)


def hits_at_thresholds(
    class_map: Tensor, boxes_xyxy: Tensor, size_hw: SizeHW, iou_thresholds: Sequence[float]
) -> Tensor:
    """Whether boxes of a class map hit any truth box, at each of the benchmark's thresholds.

    The arguments are those of ``MaxBoxAcc.update``, for one picture with boxes on the CPU.

    Returns:
        (2, len(iou_thresholds), 1000) bool. First the hits of the one box around the largest
        contour, then those of any box around any contour.
    """
    scores = score_map(class_map)
    contours = contour_boxes(scores)
    boxes = torch.from_numpy(contours.boxes_xyxy)
    truths = torch.split(inclusive_boxes(boxes_xyxy, size_hw), 1000)  # 100,000 take gigabytes
    iou = torch.stack([box_iou_inclusive(boxes, truth).amax(dim=1) for truth in truths]).amax(dim=0)
    # The largest and the best contour of each foreground: (2, F).
    best = np.stack((iou[contours.largest], np.maximum.reduceat(iou.numpy(), contours.starts)))
    hits = best[:, None] >= np.array(iou_thresholds)[:, None]
    levels = levels_of_thresholds(int(scores.max() * 255))
    # Above a level lies the foreground of the next higher value.
    return torch.from_numpy(hits[..., np.searchsorted(contours.values, levels, side="right")])


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
        self.add_sums("count", "centre", dtype=torch.int64)
        # Pictures for which the box of the largest contour and the fixed box are right.
        self.add_sums("with_centre", shape=(len(THRESHOLDS),), dtype=torch.int64)

    def _count(self, pictures: list[tuple[Tensor, Tensor, SizeHW]]) -> None:
        """Count as many pictures at a time as torch uses threads."""

        def hits_of(picture: tuple[Tensor, Tensor, SizeHW]) -> Tensor:
            return hits_at_thresholds(*picture, self.iou_thresholds)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            hits = list(pool.map(hits_of, pictures))
        if hits:
            every = torch.stack(hits)  # (B, 2, IoU thresholds, 1000)
            self.hits += every.sum(dim=0).to(self.hits.device)
            self.count += len(hits)
            iou = torch.tensor([centre_iou(boxes, size_hw) for _, boxes, size_hw in pictures])
            centre = iou >= self.iou_threshold
            boxes_hit = every[:, 0, self.iou_thresholds.index(self.iou_threshold)]
            self.centre += centre.sum().to(self.centre.device)
            self.with_centre += boxes_hit[centre].sum(dim=0).to(self.with_centre.device)

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

    def against_centre(self, threshold: float) -> dict[str, float]:
        """The accuracy at a threshold compared with that of a fixed box in the centre.

        Both are measured on the same pictures, so the interval is one of a paired difference: the
        adjusted Wald interval of Agresti and Min (Statistics in Medicine, 2005), which adds half a
        picture to each of the four cases.

        Returns:
            ``boxes`` and ``centre``, the accuracies; ``low`` and ``high``, the ends of the 95 %
            interval of their difference. NaN when nothing was counted.
        """
        with self.sync_context():
            column, count = self.iou_thresholds.index(self.iou_threshold), int(self.count)
            hits = int(self.hits[0, column, _nearest(threshold)])
            centre, both = int(self.centre), int(self.with_centre[_nearest(threshold)])
        if not count:
            return dict.fromkeys(("boxes", "centre", "low", "high"), float("nan"))
        more, fewer, total = hits - both + 0.5, centre - both + 0.5, count + 2
        middle = (more - fewer) / total
        reach = 1.96 * ((more + fewer) / total - middle**2) ** 0.5 / total**0.5
        low, high = max(-1.0, middle - reach), min(1.0, middle + reach)
        return {"boxes": hits / count, "centre": centre / count, "low": low, "high": high}


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


def centre_iou(boxes_xyxy: Tensor, size_hw: SizeHW, side: float = 0.75) -> float:
    """The best IoU of truth boxes (n, 4) with the box in the centre of their picture."""
    (height, width), low, high = size_hw, (1 - side) / 2, (1 + side) / 2
    centre = [[low * width, low * height, high * width, high * height]]
    return float(box_iou(torch.tensor(centre, dtype=torch.float64), boxes_xyxy).max())


class CentreBoxAcc(PictureMetric):
    """Part of the pictures for which a fixed box in the centre is right: the baseline to beat.

    With one IoU threshold it is the baseline of ``MaxBoxAcc`` and of the GT-known localization of
    ``LocalizationAccuracy``; with three that of ``MaxBoxAccV2``:
    ``CentreBoxAcc(iou_threshold=(0.3, 0.5, 0.7))``. Boxes are compared in pixels of the picture,
    without the rounding to 224 x 224 of the benchmark. Pictures without boxes are not counted.

    Args:
        side: Part of the picture's width and of its height that the box takes, in (0, 1].
        iou_threshold: The least IoU with any truth box, in (0, 1]; of several thresholds, the mean
            of the accuracies is computed.

    Example:
        >>> metric = CentreBoxAcc()
        >>> metric.update([torch.tensor([[5, 10, 35, 70]])], torch.tensor([[80, 40]]))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    def __init__(self, side: float = 0.75, iou_threshold: float | Sequence[float] = 0.5) -> None:
        super().__init__()
        if not 0 < side <= 1:
            raise CamtrainValueError(f"side must lie in (0, 1], got {side}.")
        self.side = side
        thresholds = [iou_threshold] if isinstance(iou_threshold, (int, float)) else iou_threshold
        self.iou_thresholds = tuple(check_iou_threshold(threshold) for threshold in thresholds)
        if not self.iou_thresholds:
            raise CamtrainValueError("iou_threshold must lie in (0, 1], got none.")
        self.add_sums("hits", shape=(len(self.iou_thresholds),), dtype=torch.int64)
        self.add_sums("count", dtype=torch.int64)

    def update(self, boxes_xyxy: Sequence[Tensor], sizes_hw: Tensor) -> None:
        """Count a batch.

        Args:
            boxes_xyxy: Per picture (n, 4), half-open xyxy in pixels of the picture.
            sizes_hw: (B, 2) int, the pictures' (H, W), in pixels.
        """
        for _, boxes, size_hw in pictures_with_boxes(boxes_xyxy, sizes_hw):
            iou = centre_iou(boxes, size_hw, self.side)
            hits = [iou >= threshold for threshold in self.iou_thresholds]
            self.hits += torch.tensor(hits, device=self.hits.device)
            self.count += 1

    def compute(self) -> Tensor:
        """The fraction, a float64 scalar; NaN when nothing was counted."""
        return (self.hits.double() / self.count).mean()


def centre_map(height: int = 56, width: int = 56) -> Tensor:
    """A Gaussian in the centre: as the class map of every picture it is a baseline for metrics.

    This is the "center Gaussian" of the WSOL benchmark (Choe et al., section 5). Its score in
    ``PxAP``, ``MaxBoxAcc`` or ``MaxBoxAccV2``, at the best threshold, is what the place alone
    gives. The width of the Gaussian hardly matters, since these metrics see only which pixels
    exceed a level. (A *constant* map scores in ``PxAP`` the share of positive pixels.)

    Returns:
        (height, width) float32: exp(-(u^2 + v^2) / 2), u and v from -1 to 1 at the edges.

    Raises:
        CamtrainValueError: ``height`` or ``width`` is less than 1.

    Example:
        >>> centre_map(1, 3)
        tensor([[0.8007, 1.0000, 0.8007]])
    """
    if height < 1 or width < 1:
        raise CamtrainValueError(f"height and width must be at least 1, got {height}, {width}.")
    v, u = ((torch.arange(side).double() + 0.5) * 2 / side - 1 for side in (height, width))
    return torch.exp(-(v[:, None] ** 2 + u**2) / 2).float()
