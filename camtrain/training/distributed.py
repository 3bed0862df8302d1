"""What changes when several processes share the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_lightning import Trainer
from torch.utils.data import DistributedSampler

from camtrain.data import Batch
from camtrain.localization.repeats import is_repeat


def without_repeats(
    trainer: Trainer, split: str, batch: Sequence[Any], batch_idx: int
) -> Sequence[Any]:
    """A batch of ``val`` or ``test`` without the pictures that another process counts too.

    To give every process as many pictures, torch's sampler repeats the first ones at the end.
    """
    loader: Any = trainer.val_dataloaders if split == "val" else trainer.test_dataloaders
    loader = loader[0] if isinstance(loader, list) else loader
    if trainer.world_size == 1 or not isinstance(loader.sampler, DistributedSampler):
        return batch
    repeated = is_repeat(
        batch_idx * loader.batch_size,
        len(batch[1]) + (len(batch.damaged) if isinstance(batch, Batch) else 0),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        length=len(loader.dataset),
    )
    if isinstance(batch, Batch):
        repeated = repeated[batch.places.cpu()]
    kept = (~repeated).nonzero()[:, 0].tolist()
    columns = [
        [values[place] for place in kept] if isinstance(values, list) else values[kept]
        for values in (batch[:-1] if isinstance(batch, Batch) else batch)  # the last is no column
    ]
    return type(batch)._make([*columns, batch.damaged]) if isinstance(batch, Batch) else columns
