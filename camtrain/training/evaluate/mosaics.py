"""The scores of a network on mosaics of the evaluated pictures."""

from __future__ import annotations

import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from camtrain.data import DamagedImageError, PreparedDataset
from camtrain.localization import MosaicScore, mosaic, mosaic_plan
from camtrain.model.camnet import CAMNet
from camtrain.model.probe import takes
from camtrain.training.datamodule import CAMDataModule


class Mosaics(Dataset["tuple[Tensor, Tensor] | None"]):
    """Mosaics of four pictures of four classes: image (C, H, W) and classes (4,).

    Args:
        pictures: The data set of the pictures.
        plan: (n, 4), the places of the pictures of each mosaic, see ``mosaic_plan``.
        size_hw: (H, W) of a mosaic; None means twice that of a picture.
    """

    def __init__(
        self, pictures: PreparedDataset, plan: Tensor, size_hw: tuple[int, int] | None
    ) -> None:
        self.pictures = pictures
        self.plan = plan
        self.size_hw = size_hw

    def __len__(self) -> int:
        """The number of mosaics."""
        return len(self.plan)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | None:
        """The mosaic at ``index``; None if one of its files is damaged."""
        try:
            samples = [self.pictures[place] for place in self.plan[index].tolist()]
        except DamagedImageError:  # the evaluation has reported it already
            return None
        images = torch.stack([sample.image for sample in samples])
        classes = torch.stack([torch.as_tensor(sample.label) for sample in samples])
        return mosaic(images, size=self.size_hw), classes


def _collate(mosaics: list[tuple[Tensor, Tensor] | None]) -> list[Tensor] | None:
    """A batch of the mosaics without damaged files; None if there are none."""
    complete = [pair for pair in mosaics if pair is not None]
    batch: list[Tensor] | None = default_collate(complete) if complete else None
    return batch


@torch.no_grad()
def mosaic_scores(net: CAMNet, trainer: Trainer, split: str) -> dict[str, Tensor]:
    """``mosaic_peak`` and ``mosaic_energy`` of a split, over all processes; see ``MosaicScore``.

    Empty if no mosaic can be made, if only a part of the split was evaluated, or if the data module
    is not a ``CAMDataModule``.
    """
    data = getattr(trainer, "datamodule", None)
    limit = trainer.limit_val_batches if split == "val" else trainer.limit_test_batches
    is_whole = isinstance(limit, float) and limit == 1.0  # the int 1 means one batch
    if not isinstance(data, CAMDataModule) or not is_whole:
        return {}
    pictures = data.datasets[split]
    labels = torch.as_tensor(pictures.labels)
    plan = mosaic_plan(labels) if labels.ndim == 1 else labels[:0]  # one class per picture
    if not len(plan):
        return {}
    channels, (height, width) = len(data.preprocessing.mean), data.preprocessing.size
    # Pictures keep their size if the network accepts images of twice the size.
    is_free = takes(net.backbone, channels, (2 * height, 2 * width))
    loader = DataLoader(
        Mosaics(
            pictures,
            plan[trainer.global_rank :: trainer.world_size],
            None if is_free else (height, width),
        ),
        batch_size=max(1, data.hparams["batch_size"] // 4),
        num_workers=data.hparams["workers"],
        collate_fn=_collate,
    )
    device = net.head.weight.device
    metric = MosaicScore().to(device)
    metric.update(torch.zeros(0, 4, 1, 1))  # there may be more processes than mosaics
    for images, classes in filter(None, loader):
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        metric.update(net.display_maps(images, classes=classes.to(device)).maps)
    return {f"mosaic_{name}": value for name, value in metric.compute().items()}
