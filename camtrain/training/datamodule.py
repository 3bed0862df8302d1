"""Pictures for training: a source, its splits, and how they become batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from camtrain.data import (
    Batch,
    EpochSampler,
    PreparedDataset,
    ResumableLoader,
    SamplerName,
    Source,
    SourceOptions,
    Split,
    augmentation,
    collate,
    leave_signals_to_parent,
    make_source,
    source_splits,
)
from camtrain.errors import CamtrainValueError
from camtrain.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ChannelOrder,
    Interpolation,
    Preprocessing,
    ResizeMode,
)


class CAMDataModule(LightningDataModule):
    """Train, validation and test pictures of one source, with boxes where the source has them."""

    def __init__(
        self,
        source: str = "folder",
        root: str | Path | None = None,
        *,
        batch_size: int = 32,
        size: int | tuple[int, int] = 224,
        resize_mode: ResizeMode = "squash",
        crop_pct: float = 1.0,
        interpolation: Interpolation = "bilinear",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channel_order: ChannelOrder | None = None,
        augment: str = "light",
        sampler: SamplerName = "shuffle",
        workers: int = 2,
        seed: int = 0,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        class_names: Sequence[str] | None = None,
        lengths: tuple[int, int, int] = (6000, 1000, 1000),
    ) -> None:
        """Remember the settings; nothing is read yet.

        Args:
            source: ``folder``: ``root/{train,val,test}/CLASS/*``, or ``root/CLASS/*``, which is
                split; boxes from ``root/boxes.csv``. ``digits``: drawn, needs no folder.
            root: The data folder.
            batch_size: Pictures per step and process.
            size: Height and width of the network's input, in pixels, or (H, W).
            resize_mode: ``squash`` warps the whole picture, ``crop`` cuts the centre, ``pad`` fills
                up.
            crop_pct: Only for ``crop``: the part of the resized short side that is kept.
            interpolation: ``nearest``, ``bilinear`` or ``bicubic``.
            mean: Per channel, in units of [0, 1]; None means the network's own.
            std: Likewise.
            channel_order: Of the network's input, and so of ``mean`` and ``std``: ``rgb``, ``bgr``,
                or None for the network's own.
            augment: Of the training pictures: ``none``, ``flip``, ``light``, ``imagenet``,
                ``paper``.
            sampler: ``shuffle``: every training picture once per epoch; ``balanced``: as many,
                drawn with replacement so that every class is equally likely.
            workers: Processes that prepare batches; 0 means the training process itself.
            seed: Of the order, the augmentation, and the division into splits.
            val_fraction: Part of each class for validation, where the source has no such split.
            test_fraction: Part of each class for test, where the source has no splits.
            class_names: The class list of a trained network; None: that of the data.
            lengths: Numbers of drawn digits in train, val, test.
        """
        super().__init__()
        root = None if root is None else str(root)  # checkpoints hold plain values
        self.save_hyperparameters()
        if batch_size < 1 or workers < 0:
            raise CamtrainValueError(
                f"batch_size must be at least 1 and workers at least 0, got {batch_size} and "
                f"{workers}."
            )
        if sampler not in ("shuffle", "balanced"):
            raise CamtrainValueError(f"sampler must be shuffle or balanced, got {sampler!r}.")
        if (mean is None) != (std is None):
            raise CamtrainValueError(
                f"mean and std must be given together, got mean={mean}, std={std}."
            )
        self._options = SourceOptions(
            root=root,
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            lengths=lengths,
            class_names=class_names,
        )
        # The network's mean, std and channel order take their place once a trainer brings it.
        self._preprocessing = Preprocessing(
            size=(size, size) if isinstance(size, int) else (size[0], size[1]),
            mean=IMAGENET_MEAN if mean is None else tuple(mean),
            std=IMAGENET_STD if std is None else tuple(std),
            interpolation=interpolation,
            resize_mode=resize_mode,
            crop_pct=crop_pct,
            channel_order=channel_order or "rgb",
        )
        augmentation(augment, self._preprocessing)
        self.datasets: dict[str, PreparedDataset] = {}  # by split, once set up
        self._train_loader: ResumableLoader[Batch] | None = None
        self._train_state: dict[str, Any] | None = None  # of the loader, to go on with

    @cached_property
    def sources(self) -> dict[Split, Source]:
        """The splits there are; the folder is read, and refused if need be, on first use."""
        name = self.hparams["source"]
        return {
            split: make_source(name, split, self._options)
            for split in source_splits(name, self._options)
        }

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, the folders of the training split in order."""
        return next(iter(self.sources.values())).class_names

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def preprocessing(self) -> Preprocessing:
        """What happens to every picture; the network's mean, std, order where none were given."""
        net = getattr(getattr(self.trainer, "lightning_module", None), "net", None)
        own = getattr(net, "preprocessing", None)
        if own is None:
            return self._preprocessing
        names = ("mean", "std", "channel_order")
        taken = {name: getattr(own, name) for name in names if self.hparams[name] is None}
        return replace(self._preprocessing, **taken)

    def setup(self, stage: str) -> None:
        """Build the data sets of all splits."""
        for split, source in self.sources.items():
            self.datasets[split] = PreparedDataset(
                source,
                self.preprocessing,
                augment=self.hparams["augment"] if split == "train" else "none",
                seed=self.hparams["seed"],
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the training split, in an order that depends on seed and epoch alone."""
        self._train_loader = self._loader("train")
        if self._train_state is not None:
            self._train_loader.load_state_dict(self._train_state)
            self._train_state = None
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """How many batches of an epoch were trained on.

        Lightning keeps the state of the loader too, but forgets to load it where the optimizer has
        asked for the length of the training, which makes the loader before its time.
        """
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``state_dict``; called before the loader is made."""
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._train_state = state_dict["train"]

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Batches of the validation split."""
        return self._loader("val") if "val" in self.datasets else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test split."""
        return self._loader("test")

    def _loader(self, split: Split) -> ResumableLoader[Batch]:
        if split not in self.datasets:
            raise CamtrainValueError(
                f"{self.hparams['root']} has no {split} split, only {', '.join(self.datasets)}; "
                f"add the folder {split}/CLASS, or choose another verb."
            )
        dataset = self.datasets[split]
        workers, is_train = self.hparams["workers"], split == "train"
        is_balanced = is_train and self.hparams["sampler"] == "balanced"
        sampler = EpochSampler(
            len(dataset),
            shuffle=is_train,
            seed=self.hparams["seed"],
            labels=dataset.labels if is_balanced else None,
            **(getattr(self.trainer, "distributed_sampler_kwargs", None) or {}),
        )
        return ResumableLoader(
            dataset,  # type: ignore[arg-type]  # typeshed knows no keys but int
            batch_size=self.hparams["batch_size"],
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # or starting workers would use global random numbers
            collate_fn=collate,
            # BatchNorm cannot train on a last batch of one picture.
            drop_last=is_train and len(sampler) > 1 == len(sampler) % self.hparams["batch_size"],
        )
