"""Whether a training uses the feature cache, and what the cache of a split holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from camtrain.arguments import print_paragraph
from camtrain.data import (
    Damaged,
    PreparedDataset,
    Sample,
    Split,
    leave_signals_to_parent,
    usable_workers,
)
from camtrain.errors import CamtrainValueError, one_line
from camtrain.files import check_writable, format_bytes, free_bytes
from camtrain.model.camnet import CAMNet
from camtrain.training.cache.store import ArraySpec, remove_unused

# How many different pictures an augmentation makes of one picture.
VIEWS = {"none": 1, "flip": 2}


def uses_cache(trainer: Trainer | None, settings: Mapping[str, Any]) -> bool:
    """Whether a training reads cached features instead of pictures.

    Args:
        trainer: The trainer with its module, or None.
        settings: The settings of the data module.

    Raises:
        CamtrainValueError: The cache is required and cannot be used.
    """
    if trainer is None or trainer.state.fn not in (None, TrainerFn.FITTING):
        return False
    module: LightningModule | None = getattr(trainer, "lightning_module", None)
    if not check_cache(module, settings) or getattr(trainer, "fast_dev_run", False):
        return False
    if is_required(module, settings):
        return True
    # Filling must cost fewer runs of the backbone than it saves.
    limit, epochs = trainer.limit_train_batches, trainer.max_epochs
    is_whole = isinstance(limit, float) and limit == 1.0  # the int 1 means one batch
    if getattr(trainer, "overfit_batches", 0) or not is_whole:
        return False
    return epochs is None or epochs < 0 or epochs > VIEWS[settings["augment"]]


def announce_missing_cache(trainer: Trainer | None, settings: Mapping[str, Any]) -> None:
    """Print why a training does not cache the features of its frozen backbone, and what to give.

    Nothing is printed where they are cached, or where nobody expects it: without a frozen backbone,
    or with ``cache_features`` False.

    Raises:
        CamtrainValueError: The cache is required and cannot be used.
    """
    is_used = uses_cache(trainer, settings)
    if trainer is None or trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
        return
    module: Any = trainer.lightning_module
    is_trial = bool(getattr(trainer, "fast_dev_run", False))
    is_expected = settings["cache_features"] is not False and not is_trial
    if is_expected and not is_used and getattr(module, "hparams", {}).get("freeze_backbone"):
        reason = _obstacle(module, settings) or (
            "the training is too short for that to save time; give --data.cache_features true to "
            "cache them all the same"
        )
        print_paragraph(f"The features of the frozen backbone are not cached, since {reason}.")


def check_cache(module: LightningModule | None, settings: Mapping[str, Any]) -> bool:
    """Whether a module and the data allow the cache, and ``cache_features`` is not False.

    Raises:
        CamtrainValueError: The cache is required and cannot be used.
    """
    requested, obstacle = settings["cache_features"], _obstacle(module, settings)
    solver = _solver(module)
    if solver != "sgd":
        if requested is False:
            obstacle = "cache_features is false; leave it out"
        if obstacle:
            raise CamtrainValueError(
                f"head_solver {solver} works on kept features of a frozen backbone, but {obstacle}."
            )
        return True
    if requested and obstacle:
        raise CamtrainValueError(
            f"cache_features keeps what a frozen backbone makes of every picture, but {obstacle}, "
            "or leave cache_features out."
        )
    return obstacle is None and requested is not False


def is_required(module: LightningModule | None, settings: Mapping[str, Any]) -> bool:
    """Whether a training must not run without the cache: the user or a solver demands it."""
    return bool(settings["cache_features"]) or _solver(module) != "sgd"


def _solver(module: LightningModule | None) -> str:
    return str(getattr(module, "hparams", {}).get("head_solver", "sgd"))


def _obstacle(module: LightningModule | None, settings: Mapping[str, Any]) -> str | None:
    """Why features cannot be cached, and what to change; None if they can."""
    if os.name != "posix":
        return "this system lacks the file locks that it needs; use Linux or macOS"
    net = getattr(module, "net", None)
    if module is None or not isinstance(net, CAMNet):
        return "the module has no .net that is a CAMNet; use CAMModule"
    hparams = module.hparams
    is_frozen = not any(parameter.requires_grad for parameter in net.backbone.parameters())
    if not hparams.get("freeze_backbone") or not is_frozen:
        return "the backbone is trained; give --model.freeze_backbone true"
    if hparams.get("unfreeze_at_epoch") is not None:
        return "the backbone is trained later; leave out --model.unfreeze_at_epoch"
    for name in ("mixup", "cutmix"):
        if hparams.get(name):
            return f"{name} mixes pictures anew in every step; leave out --model.{name}"
    teacher = getattr(module, "teacher", None)
    if teacher is not None and not teacher.has_backbone_of(net):
        return (
            "the teacher has another backbone; give it the weights and the stride of the teacher's"
        )
    if settings["augment"] not in VIEWS:
        return (
            f"augment {settings['augment']} makes other pictures in every epoch; give "
            f"--data.augment {' or '.join(reversed(VIEWS))}"
        )
    for name in ("auto_augment", "hide_and_seek"):
        if settings.get(name):
            return f"{name} makes other pictures in every epoch; leave out --data.{name}"
    return None


class Plan:
    """What the feature cache of a split holds.

    It holds feature maps. Without a neck the pooled vectors are enough, unless the pool follows
    the head; then only the val pictures with boxes or masks have maps too.

    Args:
        trainer: The trainer; its module is on its device.
        pictures: The split without augmentation.
        split: ``train`` or ``val``.
        settings: The settings of the data module.

    Attributes:
        refining_net: The network whose shown maps the features must allow to compute: in val the
            network itself, in train the teacher, a network with a foreground head, or None.
        views: 2 if mirror images are cached too, else 1.
        shape: (C, h, w) of a feature map.
        dtype: The type in which the backbone computes.
        has_vectors: Whether the pooled vectors of all pictures are cached.
        places_with_maps: The places of the pictures whose feature maps are cached.
        annotations: Samples without pixels by place, as far as planning has read them.
    """

    def __init__(
        self, trainer: Trainer, pictures: PreparedDataset, split: Split, settings: Mapping[str, Any]
    ) -> None:
        self.trainer = trainer
        self.pictures = pictures
        self.split = split
        self.settings = settings
        self.is_train = split == "train"
        module: Any = trainer.lightning_module
        self.net: CAMNet = module.net
        teacher = getattr(module, "teacher", None)
        self.refining_net: CAMNet | None = self.net
        if self.is_train:
            learner = self.net if self.net.foreground is not None else None
            self.refining_net = learner if teacher is None else teacher.net
        self.views = VIEWS[settings["augment"]] if self.is_train else 1
        preprocessing = pictures.preprocessing
        blank = torch.zeros(1, len(preprocessing.mean), *preprocessing.size)
        features = self.features(blank.to(module.device))
        self.shape = (features.shape[1], features.shape[2], features.shape[3])
        self.dtype = features.dtype
        self.has_vectors = isinstance(self.net.neck, nn.Identity) and self.net.pool in (
            "avg",
            "gmp",
        )
        has_teacher = self.is_train and self.refining_net is not None  # which compares maps
        if has_teacher or self.net.foreground is not None:  # the loss is that of parts of maps
            self.has_vectors = False
        self.places_with_maps: list[int] = []
        self.annotations: dict[int, Sample] = {}
        if not self.has_vectors:
            self.places_with_maps = list(range(len(pictures)))
        elif not self.is_train:
            if trainer.is_global_zero:
                self._read_annotations()
            self.places_with_maps = trainer.strategy.broadcast(self.places_with_maps)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """The backbone's feature maps (B, C, h, w) of images, as the training would compute them.

        In train they have the precision of the training, in val float32. They are packed with the
        vectors that ``refining_net`` needs.
        """
        images = images.contiguous(memory_format=torch.channels_last)
        precision: AbstractContextManager[object] = (
            self.trainer.precision_plugin.forward_context()
            if self.is_train
            else torch.autocast(images.device.type, enabled=False)
        )
        with precision:
            if self.refining_net is not None:  # a teacher's backbone is equal to the network's
                return self.refining_net.backbone_output(images).packed()
            features: Tensor = self.net.backbone(images)
            return features

    @cached_property
    def row_of(self) -> dict[int, int]:
        """The row in the array of maps, by the place of the picture."""
        return {place: row for row, place in enumerate(self.places_with_maps)}

    def specs(self, dtype: torch.dtype) -> dict[str, ArraySpec]:
        """The arrays by name, with maps of type ``dtype``; int16 stands for bfloat16 in NumPy."""
        specs = {"kept": ArraySpec((len(self.pictures),), "bool")}
        if self.has_vectors:
            shape = (len(self.pictures), self.views, self.shape[0])
            specs["vectors"] = ArraySpec(shape, "float32")
        if self.places_with_maps:
            map_type = "int16" if dtype == torch.bfloat16 else "float16"
            specs["maps"] = ArraySpec(
                (len(self.places_with_maps), self.views, *self.shape), map_type
            )
        return specs

    @property
    def nbytes(self) -> int:
        """The size of the arrays, in bytes."""
        return sum(spec.nbytes for spec in self.specs(torch.float16).values())

    def estimate(self, root: Path) -> str:
        """A sentence about what is going to be written.

        Example:
            ``Feature cache of train: 330 pictures x 2 views x 1280 channels x 4 bytes = 3.4 MB in
            /home/me/.cache/camtrain/features, 62.0 GB free``
        """
        terms = []
        for name, spec in self.specs(torch.float16).items():
            if name == "kept":
                continue
            count, views, channels, *map_hw = spec.shape
            factors = [f"{count} pictures", *([f"{views} views"] if views > 1 else [])]
            factors += [f"{channels} channels", *map(str, map_hw)]
            terms.append(" x ".join([*factors, f"{4 if spec.dtype == 'float32' else 2} bytes"]))
        return (
            f"Feature cache of {self.split}: {' + '.join(terms)} = {format_bytes(self.nbytes)} in "
            f"{root}, {format_bytes(free_bytes(root))} free"
        )

    def refusal(self, folder: Path) -> str | None:
        """Why the cache cannot be written, or the disk is too small for it; None if neither.

        Unused caches are deleted first. A cache that is not required leaves half of the space free.

        Args:
            folder: Of the cache; its parent is that of all caches.

        Raises:
            CamtrainValueError: The cache is required.
        """
        root = folder.parent
        try:
            if self.trainer.local_rank == 0:
                remove_unused(root)
            check_writable(folder, "The feature cache (data.cache_dir)")
            free = free_bytes(root)
        except (OSError, CamtrainValueError) as error:
            return self.refuse(one_line(error, with_type=False).removesuffix("; choose another."))
        if self.nbytes <= free * (0.95 if self._is_required else 0.5):
            return None
        return self.refuse(
            f"The feature cache of {self.split} takes {format_bytes(self.nbytes)}, and the disk of "
            f"{root} has {format_bytes(free)} free; make the maps smaller (--data.size, "
            "--model.stride)"
        )

    @property
    def _is_required(self) -> bool:
        return is_required(self.trainer.lightning_module, self.settings)

    def refuse(self, reason: str) -> str:
        """The message about a cache that cannot be written.

        Raises:
            CamtrainValueError: The cache is required.
        """
        message = (
            f"{reason}; give --data.cache_dir on another disk, or --data.cache_features false."
        )
        if self._is_required:
            raise CamtrainValueError(message)
        return message

    def _read_annotations(self) -> None:
        """Find the pictures with boxes or masks, and remember all samples without masks."""
        with torch.random.fork_rng(devices=[]):  # a loader draws a number
            loader = DataLoader(
                self.pictures,
                batch_size=64,
                num_workers=usable_workers(self.settings["workers"]),
                worker_init_fn=leave_signals_to_parent,
                collate_fn=_annotations,
            )
            for sample, has_mask in (entry for batch in loader for entry in batch):
                if has_mask or len(sample.boxes_xyxy):
                    self.places_with_maps.append(sample.index)
                if not has_mask:
                    self.annotations[sample.index] = sample


def _annotations(samples: Sequence[Sample | Damaged]) -> list[tuple[Sample, bool]]:
    """The readable samples without pixels and masks, each with whether it has a mask."""
    no_image, no_mask = torch.zeros(0), torch.zeros(0, 0, dtype=torch.uint8)
    return [
        (replace(sample, image=no_image, mask=no_mask), sample.mask.numel() > 0)
        for sample in samples
        if isinstance(sample, Sample)
    ]
