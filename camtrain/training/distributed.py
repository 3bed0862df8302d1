"""What changes when several processes share the pictures."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Trainer

from camtrain.data import Batch
from camtrain.localization.repeats import is_repeat


def without_repeats(trainer: Trainer, split: str, batch: Batch, batch_idx: int) -> Batch:
    """A batch of ``val`` or ``test`` without the pictures that another process counts too.

    To give every process as many pictures, the sampler repeats the first ones at the end.
    """
    if trainer.world_size == 1:
        return batch
    loader: Any = trainer.val_dataloaders if split == "val" else trainer.test_dataloaders
    repeated = is_repeat(
        batch_idx * loader.batch_size,
        len(batch.labels),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        length=len(loader.dataset),
    )
    kept = (~repeated).nonzero()[:, 0].tolist()
    return Batch._make(
        [values[place] for place in kept] if isinstance(values, list) else values[kept]
        for values in batch
    )
