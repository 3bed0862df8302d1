"""Pictures for training: a source, its splits, and how they become batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from camtrain.data.augment import Augmentation, AutoAugment
from camtrain.data.dataset import Batch, DamagedFiles, PreparedDataset, collate
from camtrain.data.exclude import make_sources_without, read_exclude
from camtrain.data.loading import EpochSampler, ResumableLoader, SamplerName
from camtrain.data.source import Source, Split
from camtrain.data.sources import SourceOptions, is_divided
from camtrain.data.splits import write_split
from camtrain.data.workers import leave_signals_to_parent
from camtrain.errors import CamtrainValueError, check_choice
from camtrain.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ChannelOrder,
    Interpolation,
    Preprocessing,
    ResizeMode,
)
from camtrain.training import cache
from camtrain.training.lightnings import is_on_gpu, refuse_mixed_packages


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
        auto_augment: AutoAugment | None = None,
        hide_and_seek: float = 0.0,
        reduced_decoding: bool = True,
        exif: bool = True,
        max_damaged: int = 100,
        allow_damaged: bool = False,
        sampler: SamplerName = "shuffle",
        workers: int = 2,
        seed: int = 0,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_file: str | Path | None = None,
        metadata: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        lengths: tuple[int, int, int] = (6000, 1000, 1000),
        exclude: str | Path | Sequence[str] | None = None,
        path_column: str = "path",
        label_column: str = "label",
        objects_column: str | None = None,
        head_boxes: bool = False,
        shards_cache: str | Path | None = None,
        shards_cache_gb: float = 100.0,
        cache_features: bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        """Remember the settings; nothing is read yet.

        Args:
            source: ``folder``: ``root/{train,val,test}/CLASS/*``, or ``root/CLASS/*``, which is
                split; boxes from ``boxes.csv``, COCO, Pascal VOC or YOLO files. ``csv``:
                ``labels.csv`` with ``path,label[,split]``; labels ``a;b`` are several, and an empty
                one is none. ``imagenet``, ``places365``, ``places205``, ``cub``, ``inria``,
                ``mnist``, ``pets`` (both fetched if need be), ``wsol`` (metadata of the benchmark):
                as published. ``hf``: ``ORG/NAME`` of the Hugging Face Hub, or a folder of parquet
                files. ``shards``: what ``camtrain shards`` has written, a folder or a URL.
                ``digits``: drawn.
            root: The data folder, for ``csv`` perhaps the file.
            batch_size: Pictures per step and process.
            size: Height and width of the network's input, in pixels, or (H, W).
            resize_mode: ``squash`` warps the picture, ``crop`` cuts the centre, ``pad`` fills up.
            crop_pct: Part of the resized short side that ``crop`` keeps.
            interpolation: Filter of the resize: ``nearest``, ``bilinear`` or ``bicubic``.
            mean: Mean of each channel, in units of [0, 1]; None means the network's own.
            std: Standard deviation of each channel; None means the network's own.
            channel_order: Order of the channels of the network's input, ``mean`` and ``std``:
                ``rgb``, ``bgr``, or None for the network's own.
            augment: Random changes of training pictures: ``none``, ``flip``, ``light``,
                ``imagenet``, ``paper``, ``wsol``; see ``camtrain.data.Augmentation``.
            auto_augment: Further random changes: ``randaugment`` or ``trivialaugment``.
            hide_and_seek: Probability that a cell of a training picture's 4 x 4 grid is hidden.
            reduced_decoding: Decode large training JPEGs at 1/2, 1/4 or 1/8 where the network's
                input needs no more; evaluation and prediction decode them whole.
            exif: Turn pictures upright as their EXIF says; false: boxes are those of stored pixels.
            max_damaged: Damaged training files that each process skips; one more ends the training.
            allow_damaged: Skip damaged files in evaluation too, where they are errors otherwise.
            sampler: ``shuffle``: every training picture once per epoch; ``balanced``: as many,
                drawn with replacement so that every class is equally likely.
            workers: Processes that prepare batches; 0 means the training process itself.
            seed: Seed of the order, the augmentation, and the division into splits.
            val_fraction: Part of each class for validation, where the source has no such split.
            test_fraction: Part of each class for test, where the source has no splits.
            split_file: ``split.csv`` of an earlier run, which says the split of each picture; None
                means by ``seed``. ``--ckpt_path`` brings that of its run.
            metadata: Folder of the lists of ``wsol``; None means ``root/metadata``.
            class_names: Class list of a trained network, in its order; None: that of the data.
            lengths: Numbers of digits that are drawn for train, val and test.
            exclude: Pictures to leave out of every split: a text file with one path per line, such
                as ``camtrain check-data`` writes, or the paths, relative to ``root``.
            path_column: Name of the column of paths of ``csv``, or of pictures of ``hf``.
            label_column: Name of the column of labels of ``csv`` and ``hf``.
            objects_column: Name of the column of objects with boxes of ``hf``; None: by its type.
            head_boxes: Measure boxes of heads, not of whole animals, in ``pets``.
            shards_cache: Folder that keeps the ``shards`` of a URL; None: in the user's cache.
            shards_cache_gb: The most it holds, in 10^9 bytes; beyond it, the oldest are deleted.
            cache_features: Compute the features of a frozen backbone once for every picture (and
                its mirror image), so that epochs run only neck and head; None means wherever it can
                be done, which takes ``augment`` ``none`` or ``flip``.
            cache_dir: Folder of cached features (None: user's cache); unused, they last 30 days.
        """
        super().__init__()
        refuse_mixed_packages()
        # Checkpoints hold plain values.
        root, split_file, metadata, shards_cache, cache_dir = (
            None if path is None else str(path)
            for path in (root, split_file, metadata, shards_cache, cache_dir)
        )
        exclude = read_exclude(exclude) if isinstance(exclude, str | Path) else exclude
        self.save_hyperparameters()
        self.save_hyperparameters({"exclude": None if exclude is None else list(exclude)})
        if batch_size < 1 or workers < 0:
            raise CamtrainValueError(
                f"batch_size must be at least 1 and workers at least 0, got {batch_size} and "
                f"{workers}."
            )
        if max_damaged < 0:
            raise CamtrainValueError(f"max_damaged must be at least 0 files, got {max_damaged}.")
        check_choice("sampler", sampler, get_args(SamplerName))
        if (mean is None) != (std is None):
            raise CamtrainValueError(f"mean and std must be given together, got {mean} and {std}.")
        arguments = locals()  # not the hparams, which may be those of a subclass
        self._options = SourceOptions(**{o.name: arguments[o.name] for o in fields(SourceOptions)})
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
        Augmentation(augment, self._preprocessing, auto_augment, hide_and_seek)  # checks them
        self.datasets: dict[str, PreparedDataset] = {}  # by split, once set up
        self.damaged = DamagedFiles(max_damaged, allow_damaged=allow_damaged)
        self._cached: dict[str, cache.FeatureDataset | None] = {}
        self._train_loader: ResumableLoader[Batch] | None = None
        self._train_state: dict[str, Any] | None = None  # of the loader, to go on with

    @cached_property
    def sources(self) -> dict[Split, Source]:
        """The splits of the data by name; the data folder is read on first use, which may raise."""
        name, exclude = self.hparams["source"], self.hparams["exclude"] or ()
        self._all_sources, sources = make_sources_without(name, self._options, exclude)
        return sources

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
        of_network = getattr(self._net, "preprocessing", None)
        if of_network is None:
            return self._preprocessing
        names = ("mean", "std", "channel_order")
        values = {name: getattr(of_network, name) for name in names if self.hparams[name] is None}
        return replace(self._preprocessing, **values)

    @property
    def _net(self) -> object:
        """The network of the trainer's module; None without a trainer."""
        return getattr(getattr(self.trainer, "lightning_module", None), "net", None)

    @property
    def is_divided_by_seed(self) -> bool:
        """Whether splits were decided by the seed, and not by the data or a file."""
        is_read = self.hparams["split_file"] is not None
        return not is_read and bool(self.sources) and is_divided(self._all_sources)

    def follow_split(self, file: str | None) -> None:
        """Divide the pictures as ``split.csv`` of an earlier run does; None changes nothing."""
        if file not in (None, self.hparams["split_file"]):
            self.hparams["split_file"] = file
            self._options = replace(self._options, split_file=file)
            self.__dict__.pop("sources", None)  # read anew on next use

    def write_split(self, file: Path) -> None:
        """Write which picture is in which split, where that was decided by the seed.

        Args:
            file: ``split.csv``, for ``split_file`` to read; left alone if it exists.
        """
        if self.sources and is_divided(self._all_sources) and not file.exists():
            write_split(file, self._all_sources)

    def setup(self, stage: str) -> None:
        """Build the data sets of all splits."""
        self._check_task()
        self._cached = {}
        for split in self.sources:
            augment = self.hparams["augment"] if split == "train" else "none"
            self.datasets[split] = self._prepared(split, augment)
        cache.announce_missing_cache(self.trainer, self.hparams)

    def _prepared(self, split: Split, augment: str) -> PreparedDataset:
        names = ["seed", "exif"]
        if split == "train":
            names += ["auto_augment", "hide_and_seek"]
        settings = {name: self.hparams[name] for name in names}
        settings["reduced"] = split == "train" and self.hparams["reduced_decoding"]
        return PreparedDataset(self.sources[split], self.preprocessing, augment=augment, **settings)

    def cached(self, split: Split) -> cache.FeatureDataset | None:
        """The cached features of a split, where a training runs on them; else None.

        Raises:
            CamtrainValueError: ``cache_features`` asks for them and they cannot be computed.
        """
        if split not in self._cached and cache.uses_cache(self.trainer, self.hparams):
            assert self.trainer is not None
            pictures, bare = self.datasets[split], self._prepared(split, "none")
            self._cached[split] = cache.cached_split(
                self.trainer, pictures, bare, split, self.hparams
            )
        return self._cached.setdefault(split, None)

    def check_cache(self) -> None:
        """Check, before a training begins, whether features can be cached.

        Raises:
            CamtrainValueError: ``cache_features`` asks for it and it cannot be done, or the disk is
                too small.
        """
        if cache.uses_cache(self.trainer, self.hparams):
            assert self.trainer is not None
            for split in set(self.sources) - {"test"}:
                cache.check_disk(self.trainer, self._prepared(split, "none"), split, self.hparams)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Warn of the damaged files of a batch, and raise where there may be none, or no more."""
        is_training = self.trainer is not None and self.trainer.training
        processes = 1 if self.trainer is None else self.trainer.world_size
        self.damaged.record(batch, is_training=is_training, processes=processes)
        return batch

    def _check_task(self) -> None:
        if not any(isinstance(source.labels, Tensor) for source in self.sources.values()):
            return
        if getattr(self._net, "task", "multilabel") != "multilabel":
            raise CamtrainValueError(
                f"The pictures of {self.hparams['root']} have several labels each, or none, and "
                "the network expects one; give --model.task multilabel."
            )
        if self.hparams["sampler"] == "balanced":
            raise CamtrainValueError(
                "sampler must be shuffle where pictures have several labels or none, got balanced, "
                "which draws every class equally often and needs one label each."
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

        Lightning saves the state of the loader too, but does not load it if the loader exists
        already, since the optimizer has asked for the length of the training.
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
        dataset, is_train = self.datasets[split], split == "train"
        features = self.cached(split) if split != "test" else None
        workers = self.hparams["workers"] if features is None else 0  # they would cost more
        is_balanced = is_train and self.hparams["sampler"] == "balanced"
        sampler = EpochSampler(
            len(dataset),
            shuffle=is_train,
            seed=self.hparams["seed"],
            labels=dataset.labels if is_balanced else None,
            groups=dataset.groups if features is None else None,
            **(getattr(self.trainer, "distributed_sampler_kwargs", None) or {}),
        )
        return ResumableLoader(
            dataset if features is None else features,  # type: ignore[arg-type]  # typeshed knows no keys but int
            batch_size=self.hparams["batch_size"],
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=is_on_gpu(self.trainer),  # so that nothing waits for a copy to it
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # or starting workers would use global random numbers
            collate_fn=partial(collate, is_cached=features is not None),
            # BatchNorm cannot train on a last batch of one picture.
            drop_last=is_train and len(sampler) > 1 == len(sampler) % self.hparams["batch_size"],
        )
