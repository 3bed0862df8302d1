"""What all metrics of this folder share: their states, and the checks of what they are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from camtrain.errors import CamtrainValueError


class PictureMetric(Metric):
    """A metric that counts pictures: its states are sums over the pictures of all processes."""

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False

    def add_sums(self, *names: str, shape: tuple[int, ...] = (), dtype: torch.dtype) -> None:
        """Add states that begin at zero: int64 for counts, float64 for sums of fractions."""
        for name in names:
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")


def pictures_with_boxes(
    boxes_xyxy: Sequence[Tensor], sizes_hw: Tensor
) -> list[tuple[int, Tensor, tuple[int, int]]]:
    """Index, boxes (n, 4) on the CPU, and size (H, W) of each picture of a batch that has boxes.

    Raises:
        CamtrainValueError: ``sizes_hw`` is not (B, 2) for B entries of ``boxes_xyxy``.
        CamtrainValueError: The boxes of a picture are not (n, 4).
    """
    check_batch("sizes_hw", sizes_hw, "B 2", len(boxes_xyxy))
    pictures = []
    for index, (boxes, (height, width)) in enumerate(
        zip(boxes_xyxy, sizes_hw.tolist(), strict=True)
    ):
        if len(boxes) == 0:
            continue
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise CamtrainValueError(
                f"boxes_xyxy[{index}] must be (n, 4), got {tuple(boxes.shape)}."
            )
        pictures.append((index, boxes.cpu(), (height, width)))
    return pictures


def one_map_each(maps: Tensor | Sequence[Tensor], batch_size: int) -> Tensor | list[Tensor]:
    """The maps of B pictures on the CPU, of one size or each of its own.

    Raises:
        CamtrainValueError: They are not (B, h, w), nor B maps (h, w).
    """
    if isinstance(maps, Tensor):
        check_batch("maps", maps, "B h w", batch_size)
        return maps.detach().cpu()
    shapes = [tuple(class_map.shape) for class_map in maps]
    if len(shapes) != batch_size or any(len(shape) != 2 for shape in shapes):
        raise CamtrainValueError(
            f"maps must be (B, h, w), or B = {batch_size} maps (h, w), one per picture as in "
            f"boxes_xyxy, got {shapes}."
        )
    return [class_map.detach().cpu() for class_map in maps]


def check_batch(
    name: str, tensor: Tensor, shape: str, batch_size: int, like: str = "boxes_xyxy"
) -> None:
    """Raise CamtrainValueError unless a tensor has the shape, such as "B h w", for B pictures.

    Args:
        name: What the tensor is called.
        tensor: What is checked.
        shape: Its letters, parted by spaces.
        batch_size: B.
        like: What has B entries.
    """
    letters, known = shape.split(), {"B": batch_size, "2": 2}
    expected = [
        known.get(letter, side) for letter, side in zip(letters, tensor.shape, strict=False)
    ]
    if tensor.ndim != len(letters) or list(tensor.shape) != expected:
        raise CamtrainValueError(
            f"{name} must be ({', '.join(letters)}) with B = {batch_size}, one entry per picture "
            f"as in {like}, got {tuple(tensor.shape)}."
        )


def check_iou_threshold(iou_threshold: float) -> float:
    """The threshold itself; raise CamtrainValueError unless it lies in (0, 1]."""
    if not 0 < iou_threshold <= 1:
        raise CamtrainValueError(f"iou_threshold must lie in (0, 1], got {iou_threshold}.")
    return iou_threshold
