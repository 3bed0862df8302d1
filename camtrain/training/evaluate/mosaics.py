"""Scoring a network on mosaics of the very pictures that it is evaluated on."""

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
    """Mosaics of four pictures of four classes: the image (C, H, W), the classes (4,).

    Args:
        pictures: Where the pictures come from.
        plan: (n, 4), which pictures, see ``mosaic_plan``.
        size_hw: (H, W) of a mosaic; None for twice that of a picture.
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
        """The mosaic at ``index``; None where a file of it is damaged."""
        try:
            samples = [self.pictures[place] for place in self.plan[index].tolist()]
        except DamagedImageError:  # the evaluation has named it
            return None
        images = torch.stack([sample.image for sample in samples])
        return mosaic(images, size=self.size_hw), torch.stack(
            [torch.as_tensor(s.label) for s in samples]
        )


def _collate(mosaics: list[tuple[Tensor, Tensor] | None]) -> list[Tensor] | None:
    """A batch of the mosaics that there are."""
    whole = [one for one in mosaics if one is not None]
    batch: list[Tensor] | None = default_collate(whole) if whole else None
    return batch


@torch.no_grad()
def mosaic_scores(net: CAMNet, trainer: Trainer, split: str) -> dict[str, Tensor]:
    """``mosaic_peak`` and ``mosaic_energy`` of a split, of all processes; see ``MosaicScore``.

    Empty where no mosaic can be made, where only a part of the split was evaluated, and for another
    data module than camtrain's.
    """
    data = getattr(trainer, "datamodule", None)
    limit = trainer.limit_val_batches if split == "val" else trainer.limit_test_batches
    is_whole = isinstance(limit, float) and limit == 1.0  # 1 is a number of batches
    if not isinstance(data, CAMDataModule) or not is_whole:
        return {}
    pictures = data.datasets[split]
    labels = torch.as_tensor(pictures.labels)
    plan = mosaic_plan(labels) if labels.ndim == 1 else labels[:0]  # of one class each
    if not len(plan):
        return {}
    channels, (height, width) = len(data.preprocessing.mean), data.preprocessing.size
    # At twice the size, so that the pictures keep theirs, where the network takes it.
    is_free = takes(net.backbone, channels, (2 * height, 2 * width))
    own = plan[trainer.global_rank :: trainer.world_size]
    loader = DataLoader(
        Mosaics(pictures, own, None if is_free else (height, width)),
        batch_size=max(1, data.hparams["batch_size"] // 4),
        num_workers=data.hparams["workers"],
        collate_fn=_collate,
    )
    device = net.head.weight.device
    metric = MosaicScore().to(device)
    metric.update(torch.zeros(0, 4, 1, 1))  # of fewer mosaics than processes one may get none
    for images, classes in filter(None, loader):
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        metric.update(net.display_maps(images, classes=classes.to(device)).maps)
    return {f"mosaic_{name}": value for name, value in metric.compute().items()}
