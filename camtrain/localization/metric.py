"""What the metrics of this folder share: their states, and the checks of a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics import Metric

from camtrain.errors import CamtrainValueError

SizeHW = tuple[int, int]


class PictureMetric(Metric):
    """A metric that counts pictures: its states are sums over the pictures of all processes."""

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor:
            """A state."""

    def add_sums(self, *names: str, shape: tuple[int, ...] = (), dtype: torch.dtype) -> None:
        """Add states that begin at zero: int64 for counts, float64 for sums of fractions."""
        for name in names:
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")


class ClassMapMetric(PictureMetric):
    """A metric that compares class maps with boxes. Pictures without boxes are not counted."""

    def update(
        self, maps: Tensor | Sequence[Tensor], boxes_xyxy: Sequence[Tensor], sizes_hw: Tensor
    ) -> None:
        """Count a batch.

        Args:
            maps: (B, h, w), or B maps (h, w) of any sizes: the class map of each picture's true
                class, signed and unnormalized; it covers the whole picture.
            boxes_xyxy: Per picture (n, 4), half-open xyxy in pixels of the picture.
            sizes_hw: (B, 2) int, the pictures' (H, W), in pixels.

        Raises:
            CamtrainValueError: A shape is wrong, or the batch sizes differ.
        """
        maps = maps_on_cpu(maps, len(boxes_xyxy))
        pictures = pictures_with_boxes(boxes_xyxy, sizes_hw)
        self._count([(maps[index], boxes, size_hw) for index, boxes, size_hw in pictures])

    @abstractmethod
    def _count(self, pictures: list[tuple[Tensor, Tensor, SizeHW]]) -> None:
        """Count pictures, each given as class map (h, w), boxes (n, 4) with n > 0, and (H, W)."""


def pictures_with_boxes(
    boxes_xyxy: Sequence[Tensor], sizes_hw: Tensor
) -> list[tuple[int, Tensor, SizeHW]]:
    """Index, boxes (n, 4) on the CPU, and size (H, W) of each picture of a batch that has boxes.

    Raises:
        CamtrainValueError: ``sizes_hw`` is not (B, 2) for B entries of ``boxes_xyxy``, or the boxes
            of a picture are not (n, 4).
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


def maps_on_cpu(maps: Tensor | Sequence[Tensor], batch_size: int) -> Tensor | list[Tensor]:
    """The class maps of B pictures, detached and on the CPU; they may differ in size.

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
    """Raise CamtrainValueError unless a tensor has a shape such as "B h w", for B pictures.

    ``name``, and ``like``, the argument that has B entries, are for the message.
    """
    letters, known = shape.split(), {"B": batch_size, "2": 2}
    fits = tensor.ndim == len(letters) and all(
        side == known.get(letter, side) for letter, side in zip(letters, tensor.shape, strict=True)
    )
    if not fits:
        raise CamtrainValueError(
            f"{name} must be ({', '.join(letters)}) with B = {batch_size}, one entry per picture "
            f"as in {like}, got {tuple(tensor.shape)}."
        )


def check_iou_threshold(iou_threshold: float) -> float:
    """The threshold itself; raise CamtrainValueError unless it lies in (0, 1]."""
    if not 0 < iou_threshold <= 1:
        raise CamtrainValueError(f"iou_threshold must lie in (0, 1], got {iou_threshold}.")
    return iou_threshold
