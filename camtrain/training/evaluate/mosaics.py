"""The scores of a network on mosaics of the evaluated pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from camtrain.data import Damaged, Sample, leave_signals_to_parent, usable_workers
from camtrain.localization import MosaicScore, mosaic, mosaic_plan
from camtrain.model.camnet import CAMNet
from camtrain.model.probe import takes
from camtrain.training.datamodule import CAMDataModule


def mosaic_batch(
    samples: Sequence[Sample | Damaged], *, size_hw: tuple[int, int] | None
) -> tuple[Tensor, Tensor] | None:
    """The mosaics of four samples each, (n, C, H, W), and their classes, (n, 4).

    Mosaics with a damaged file are left out; None if no mosaic is left.

    Args:
        samples: Four for each mosaic, in the order of ``mosaic_plan``.
        size_hw: (H, W) of a mosaic; None means twice that of a picture.
    """
    images, classes = [], []
    for start in range(0, len(samples), 4):
        quarters = [sample for sample in samples[start : start + 4] if isinstance(sample, Sample)]
        if len(quarters) == 4:
            images.append(mosaic(torch.stack([part.image for part in quarters]), size=size_hw))
            classes.append(torch.stack([torch.as_tensor(part.label) for part in quarters]))
    return (torch.stack(images), torch.stack(classes)) if images else None


def is_whole(trainer: Trainer, split: str) -> bool:
    """Whether a trainer measures all of ``val`` or ``test``."""
    limit = trainer.limit_val_batches if split == "val" else trainer.limit_test_batches
    return isinstance(limit, float) and limit == 1.0  # the int 1 means one batch


@torch.no_grad()
def mosaic_scores(net: CAMNet, trainer: Trainer, split: str) -> dict[str, Tensor]:
    """``mosaic_peak``, ``mosaic_energy`` and ``mosaic_chance`` of a split; see ``MosaicScore``.

    Empty if no mosaic can be made, if only a part of the split was evaluated, or if the data module
    is not a ``CAMDataModule``.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, CAMDataModule) or not is_whole(trainer, split):
        return {}
    pictures = data.datasets[split]
    labels = torch.as_tensor(pictures.labels)
    plan = mosaic_plan(labels) if labels.ndim == 1 else labels[:0]  # one class per picture
    if not len(plan):
        return {}
    channels, (height, width) = len(data.preprocessing.mean), data.preprocessing.size
    # Pictures keep their size if the network accepts images of twice the size.
    is_free = takes(net.backbone, channels, (2 * height, 2 * width))
    plan = plan[trainer.global_rank :: trainer.world_size]
    step = max(1, data.hparams["batch_size"] // 4)
    loader = DataLoader(
        pictures,
        batch_sampler=[plan[at : at + step].flatten().tolist() for at in range(0, len(plan), step)],
        num_workers=usable_workers(data.hparams["workers"]),
        worker_init_fn=leave_signals_to_parent,
        collate_fn=partial(mosaic_batch, size_hw=None if is_free else (height, width)),
    )
    device = net.head.weight.device
    metric = MosaicScore().to(device)
    metric.update(torch.zeros(0, 4, 1, 1))  # there may be more processes than mosaics
    for images, classes in filter(None, loader):
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        metric.update(net.display_maps(images, classes=classes.to(device)).maps, classes)
    return {f"mosaic_{name}": value for name, value in metric.compute().items()}
