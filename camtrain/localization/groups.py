"""Pictures by the size and the number of their things, and why boxes miss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtrain.localization.boxes import box_iou_inclusive
from camtrain.localization.metric import SizeHW

SIZES = ("below 5 %", "5 to 15 %", "15 to 30 %", "30 to 60 %", "60 % and more")
NUMBERS = ("one thing", "several things")
MISSES = ("too large", "too small", "beside", "several in one box")
_EDGES = torch.tensor([0.05, 0.15, 0.3, 0.6], dtype=torch.float64)  # of SIZES
_HOLDS, _FILLS = 0.8, 0.6  # least part that is held, largest part that is filled


def group_of(boxes_xyxy: Tensor, size_hw: SizeHW) -> tuple[int, int]:
    """The group of a picture: its row in ``NUMBERS`` and its column in ``SIZES``.

    The size is that of the largest truth box, as a part of the picture.

    Args:
        boxes_xyxy: (n, 4) with n > 0, half-open xyxy in pixels of the picture.
        size_hw: (H, W) of the picture.

    Example:
        >>> group_of(torch.tensor([[0, 0, 10, 10], [50, 0, 100, 30]]), (100, 100))
        (1, 2)
    """
    width, height = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).double().unbind(1)
    share = (width * height).max() / (size_hw[0] * size_hw[1])
    return int(len(boxes_xyxy) > 1), int(torch.bucketize(share, _EDGES, right=True))


def kinds_of_misses(
    boxes_xyxy: Tensor, nearest_xyxy: Tensor, hull_xyxy: Tensor | None, iou_threshold: float
) -> NDArray[np.int64]:
    """Why each box of a picture would miss, (n,), numbers into ``MISSES``.

    A miss is of the first kind that fits:

    * *several in one box*: the picture has several truth boxes, and the box is right around all of
      them (its IoU with the box around them reaches the threshold);
    * *too large*: the box holds at least 80 % of the thing, which fills at most 60 % of the box;
    * *too small*: the thing holds at least 80 % of the box, which fills at most 60 % of the thing;
    * *beside*: all else.

    The thing is the truth box with the largest IoU, of equal ones the first. All boxes are
    inclusive xyxy.

    Args:
        boxes_xyxy: (n, 4), the boxes.
        nearest_xyxy: (n, 4), the thing for each box.
        hull_xyxy: (4,), the box around all truth boxes; None if there is only one.
        iou_threshold: The least IoU of a right box.

    Example:
        >>> boxes = torch.tensor([[0, 0, 99, 99], [0, 0, 9, 9], [30, 30, 79, 79]])
        >>> thing = torch.tensor([[0, 0, 49, 49]]).expand(3, 4)
        >>> [MISSES[kind] for kind in kinds_of_misses(boxes, thing, None, 0.5)]
        ['too large', 'too small', 'beside']
    """
    corners = torch.maximum(boxes_xyxy[:, :2], nearest_xyxy[:, :2])
    ends = torch.minimum(boxes_xyxy[:, 2:], nearest_xyxy[:, 2:])
    common = (ends - corners + 1).clamp_min(0).double().prod(1)
    of_box, of_thing = (
        common / (boxes[:, 2:] - boxes[:, :2] + 1).double().prod(1)
        for boxes in (boxes_xyxy, nearest_xyxy)
    )
    kinds = torch.full((len(boxes_xyxy),), MISSES.index("beside"))
    kinds[(of_box >= _HOLDS) & (of_thing <= _FILLS)] = MISSES.index("too small")
    kinds[(of_thing >= _HOLDS) & (of_box <= _FILLS)] = MISSES.index("too large")
    if hull_xyxy is not None:
        is_around_all = box_iou_inclusive(boxes_xyxy, hull_xyxy[None])[:, 0] >= iou_threshold
        kinds[is_around_all] = MISSES.index("several in one box")
    return kinds.numpy()


def paired_comparison(hits: int, centre: int, both: int, count: int) -> dict[str, float]:
    """Two accuracies on the same pictures, and the interval of their difference.

    It is the adjusted Wald interval of Agresti and Min (Statistics in Medicine, 2005) for paired
    differences, which adds half a picture to each of the four cases.

    Args:
        hits: Pictures for which the box is right.
        centre: Those for which the fixed box in the centre is.
        both: Those for which both are.
        count: All pictures.

    Returns:
        ``boxes`` and ``centre``, the accuracies; ``low`` and ``high``, the ends of the 95 %
        interval of boxes - centre. NaN when nothing was counted.

    Example:
        >>> values = paired_comparison(80, 60, 50, 100)
        >>> {name: round(value, 3) for name, value in values.items()}
        {'boxes': 0.8, 'centre': 0.6, 'low': 0.079, 'high': 0.313}
    """
    if not count:
        return dict.fromkeys(("boxes", "centre", "low", "high"), float("nan"))
    more, fewer, total = hits - both + 0.5, centre - both + 0.5, count + 2
    middle = (more - fewer) / total
    reach = 1.96 * ((more + fewer) / total - middle**2) ** 0.5 / total**0.5
    low, high = max(-1.0, middle - reach), min(1.0, middle + reach)
    return {"boxes": hits / count, "centre": centre / count, "low": low, "high": high}


def group_rows(counts: Tensor, hits: Tensor, centre: Tensor, both: Tensor) -> dict[str, Any]:
    """The comparison with the centre box for each group that has pictures, as plain values.

    All arguments are (2, 5) int64, by ``NUMBERS`` and ``SIZES``, as in ``paired_comparison``.

    Returns:
        ``by_size`` and ``by_number``; by the name of the group ``pictures`` and the comparison.
    """
    tables = {}
    for table, names, other in (("by_size", SIZES, 0), ("by_number", NUMBERS, 1)):
        columns = [values.sum(other).tolist() for values in (hits, centre, both, counts)]
        rows = zip(names, *columns, strict=True)
        tables[table] = {
            name: {"pictures": numbers[-1], **paired_comparison(*numbers)}
            for name, *numbers in rows
            if numbers[-1]
        }
    return tables
