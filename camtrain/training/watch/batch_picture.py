"""A picture of the first training batch, as the network gets it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from camtrain.data import Batch, to_pixels
from camtrain.files import replacing
from camtrain.labels import label_names
from camtrain.maps import parts_of_range
from camtrain.preprocessing import Preprocessing
from camtrain.visualize import batch_sheet

MOST_PICTURES = 25


class BatchPicture(Callback):
    """Writes the first augmented batch, with boxes and class names, as a JPEG.

    It shows the batch that is trained on, from any data module, and changes neither order nor
    random numbers. Pixels are recovered with the ``preprocessing`` of the module's ``net``; without
    one, they are stretched from black to white.
    """

    def __init__(self, path: str | Path) -> None:
        """Nothing is written before the training starts.

        Args:
            path: The JPEG to write.
        """
        self.path = Path(path)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Sequence[Any], batch_idx: int
    ) -> None:
        """Write the picture before the first step; a continued training has it already."""
        is_first = trainer.global_step == 0 and batch_idx == 0 and trainer.current_epoch == 0
        if not is_first or not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        images = batch[0][:MOST_PICTURES].detach().cpu().float()
        if not len(images) or images.shape[1] not in (1, 3):  # all are damaged, or no colours
            return
        net = getattr(pl_module, "net", None)
        pixels = _pixels(images, getattr(net, "preprocessing", None))
        boxes = batch.input_boxes_xyxy if isinstance(batch, Batch) else []
        boxes = [*boxes, *[torch.zeros(0, 4)] * len(images)][: len(images)]
        names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        names = getattr(net, "class_names", None) or names or ()
        captions = [
            ", ".join(label_names(label, names)) or "no class" for label in batch[1][: len(images)]
        ]
        height, width = images.shape[-2:]
        title = f"the first {len(images)} pictures of the first batch, {height} x {width} (H x W)"
        sheet = batch_sheet(pixels, boxes, [c or "no class" for c in captions], title=title)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as part:
            sheet.save(part, format="JPEG", quality=90)


def _pixels(images: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """(B, C, h, w) uint8 of normalized images."""
    if preprocessing is not None and len(preprocessing.mean) == images.shape[1]:
        return to_pixels(images, preprocessing)
    return (parts_of_range(images, *images.aminmax()) * 255).round().byte()
