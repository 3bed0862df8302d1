"""The callback that shows the first training batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from camtrain.data import Batch, to_pixels
from camtrain.files import write_picture
from camtrain.labels import as_pair, label_names
from camtrain.maps import parts_of_range
from camtrain.preprocessing import Preprocessing
from camtrain.visualize import batch_sheet

MOST_PICTURES = 25  # of the first training batch


class BatchPicture(Callback):
    """Writes the first augmented batch, with boxes and class names, as a JPEG.

    It shows the batch that is trained on, from any data module, and changes neither order nor
    random numbers. Pixels are recovered with the ``preprocessing`` of the module's ``net``; without
    one, they are stretched from black to white.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Sequence[Any], batch_idx: int
    ) -> None:
        """Write the picture before the first step of a new training."""
        is_first = trainer.global_step == 0 and batch_idx == 0 and trainer.current_epoch == 0
        if not is_first or not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        images, labels = as_pair(batch)[:2]
        images = images[:MOST_PICTURES].detach().cpu().float()
        if not len(images) or images.shape[1] not in (1, 3):
            return  # all pictures are damaged, or they have no colours
        net = getattr(pl_module, "net", None)
        pixels = _pixels(images, getattr(net, "preprocessing", None))
        boxes = batch.input_boxes_xyxy if isinstance(batch, Batch) else []
        boxes = [*boxes, *[torch.zeros(0, 4)] * len(images)][: len(images)]
        names = class_names_of(trainer, net) or ()
        labels = labels[: len(images)]
        captions = [", ".join(label_names(label, names)) or "no class" for label in labels]
        height, width = images.shape[-2:]
        title = f"the first {len(images)} pictures of the first batch, {height} x {width} (H x W)"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(self.path, batch_sheet(pixels, boxes, captions, title=title))


def _pixels(images: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """Normalized images (B, C, h, w) as uint8; see ``BatchPicture``."""
    if preprocessing is not None and len(preprocessing.mean) == images.shape[1]:
        return to_pixels(images, preprocessing)
    return (parts_of_range(images, *images.aminmax()) * 255).round().byte()


def class_names_of(trainer: Trainer, net: object) -> Sequence[str] | None:
    """The class names of the network or else of the data module; None if neither has any."""
    owners = (net, getattr(trainer, "datamodule", None))
    return next((names for o in owners if (names := getattr(o, "class_names", None))), None)
