"""What the feature cache of a split holds, how large it is, and whether the disk would hold it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from camtrain.data import DamagedImageError, PreparedDataset, Sample, Split
from camtrain.model.camnet import CAMNet
from camtrain.training.cache.choice import VIEWS
from camtrain.training.cache.store import ArraySpec, free_bytes
from camtrain.training.learn.teacher import Teacher


@dataclass(frozen=True)
class Plan:
    """What is kept of a split.

    Attributes:
        pictures: Without augmentation.
        split: ``train`` or ``val``.
        views: 2 where the mirror images are kept too, else 1.
        mapped: Places of the pictures whose feature map is kept.
        has_vectors: Whether the pooled vectors of all pictures are kept.
        shape: (C, h, w) of a feature map.
        dtype: What the backbone computes.
        known: Samples without pixels by place, as far as they had to be read for this.
    """

    pictures: PreparedDataset
    split: Split
    views: int
    mapped: list[int]
    has_vectors: bool
    shape: tuple[int, int, int]
    dtype: torch.dtype
    known: dict[int, Sample]

    def specs(self, dtype: torch.dtype) -> dict[str, ArraySpec]:
        """The arrays, maps being kept as ``dtype``; NumPy has int16 for bfloat16."""
        specs = {"kept": ArraySpec((len(self.pictures),), "bool")}
        if self.has_vectors:
            shape = (len(self.pictures), self.views, self.shape[0])
            specs["vectors"] = ArraySpec(shape, "float32")
        if self.mapped:
            kept = "int16" if dtype == torch.bfloat16 else "float16"
            specs["maps"] = ArraySpec((len(self.mapped), self.views, *self.shape), kept)
        return specs

    @property
    def nbytes(self) -> int:
        """The size of the arrays, in bytes."""
        return sum(spec.nbytes for spec in self.specs(torch.float16).values())


def plan_of(
    trainer: Trainer, pictures: PreparedDataset, split: Split, settings: Mapping[str, Any]
) -> Plan:
    """What has to be kept of a split.

    Without a neck the pooled vector of a picture says everything, unless the pooling comes after
    the head; the maps of validation pictures with boxes or masks are kept too.

    Args:
        trainer: With the module that it trains.
        pictures: Without augmentation.
        split: ``train`` or ``val``.
        settings: Those of the data module.
    """
    net = net_of(trainer)
    is_train = split == "train"
    preprocessing = pictures.preprocessing
    blank = torch.zeros(1, len(preprocessing.mean), *preprocessing.size)
    features = trunk_features(trainer, blank.to(trainer.lightning_module.device), is_train=is_train)
    has_vectors = isinstance(net.neck, nn.Identity) and net.pool in ("avg", "gmp")
    if is_train and refining_net(trainer, split) is not None:  # a teacher compares maps
        has_vectors = False
    mapped, known = list(range(len(pictures))), dict[int, Sample]()
    if has_vectors:
        mapped = []
        if not is_train:
            if trainer.is_global_zero:
                mapped, known = _annotated(pictures, settings["workers"])
            mapped = trainer.strategy.broadcast(mapped)
    return Plan(
        pictures=pictures,
        split=split,
        views=VIEWS[settings["augment"]] if is_train else 1,
        mapped=mapped,
        has_vectors=has_vectors,
        shape=(features.shape[1], features.shape[2], features.shape[3]),
        dtype=features.dtype,
        known=known,
    )


def net_of(trainer: Trainer) -> CAMNet:
    """The network that is trained."""
    net = trainer.lightning_module.net
    assert isinstance(net, CAMNet)
    return net


def refining_net(trainer: Trainer, split: str) -> CAMNet | None:
    """Whose refined maps features are kept for: a teacher's in train, the network's own in val."""
    if split != "train":
        return net_of(trainer)
    teacher: Teacher | None = getattr(trainer.lightning_module, "teacher", None)
    return None if teacher is None else teacher.net


@torch.inference_mode()
def trunk_features(trainer: Trainer, images: Tensor, *, is_train: bool) -> Tensor:
    """The backbone's feature maps (B, C, h, w) of images, as the network would compute them.

    For train in the precision of the training, packed with what a teacher's refined maps need; for
    val in float32, packed with what the network's own do.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    net = refining_net(trainer, "train" if is_train else "val")
    precision: AbstractContextManager[object] = (
        trainer.precision_plugin.forward_context()
        if is_train
        else torch.autocast(images.device.type, enabled=False)
    )
    with precision:
        if net is not None:  # a teacher's backbone is the network's own
            return net.backbone_output(images).packed()
        features: Tensor = net_of(trainer).backbone(images)
        return features


def estimate_of(plan: Plan, root: Path) -> str:
    """What is going to be written, for people to read before.

    Example:
        ``Feature cache of train: 330 pictures x 2 views x 1280 channels x 4 bytes = 3.4 MB in
        /home/me/.cache/camtrain/features, 62.0 GB free``
    """
    terms = []
    for name, spec in plan.specs(torch.float16).items():
        if name == "kept":
            continue
        count, views, channels, *map_hw = spec.shape
        factors = [f"{count} pictures", *([f"{views} views"] if views > 1 else [])]
        factors += [f"{channels} channels", *map(str, map_hw)]
        terms.append(" x ".join([*factors, f"{4 if spec.dtype == 'float32' else 2} bytes"]))
    return (
        f"Feature cache of {plan.split}: {' + '.join(terms)} = {as_size(plan.nbytes)} in {root}, "
        f"{as_size(free_bytes(root))} free"
    )


def refusal_of(plan: Plan, root: Path, *, is_required: bool) -> str | None:
    """What to say where the disk would not hold the cache; None where it would.

    One that nobody has asked for leaves half of the free space to others.
    """
    needed, free = plan.nbytes, free_bytes(root)
    if needed <= free * (0.95 if is_required else 0.5):
        return None
    return (
        f"The feature cache of {plan.split} takes {as_size(needed)}, and the disk of {root} has "
        f"{as_size(free)} free; give --data.cache_dir on a larger disk, make the maps smaller "
        "(--data.size, --model.stride), or give --data.cache_features false."
    )


def as_size(nbytes: int) -> str:
    """A number of bytes in decimal units.

    Example:
        >>> as_size(900), as_size(66_200_000), as_size(2_100_000_000)
        ('0.0 MB', '66.2 MB', '2.1 GB')
    """
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


class _Annotations(Dataset[tuple[Sample, bool] | None]):
    """The samples of a data set without pixels and masks, and whether there was a mask.

    None stands for a picture that cannot be read.
    """

    def __init__(self, pictures: PreparedDataset) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Sample, bool] | None:
        try:
            sample = self.pictures[index]
        except DamagedImageError:
            return None
        no_mask = sample.mask.new_zeros(0, 0)
        bare = replace(sample, image=torch.zeros(0), mask=no_mask)
        return bare, sample.mask.numel() > 0


def _annotated(pictures: PreparedDataset, workers: int) -> tuple[list[int], dict[int, Sample]]:
    """Places of the pictures with boxes or masks, and the samples of those without masks."""
    annotations = _Annotations(pictures)
    mapped, known = [], {}
    with torch.random.fork_rng(devices=[]):  # a loader draws a number
        loader = DataLoader(annotations, batch_size=64, num_workers=workers, collate_fn=list)
        for index, entry in enumerate(entry for batch in loader for entry in batch):
            if entry is None:
                continue
            sample, has_mask = entry
            if has_mask or len(sample.boxes_xyxy):
                mapped.append(index)
            if not has_mask:
                known[index] = sample
    return mapped, known
