"""Pictures in folders named after their classes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import torch

from camtrain.data.boxes import read_boxes
from camtrain.data.decoding import Decode, read_image
from camtrain.data.source import Picture
from camtrain.data.split import Split, check_fractions, divide
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")

_Classes = dict[str, list[str]]  # class name -> paths relative to the data folder, sorted


class ImageFolder:
    """One split of ``root/{train,val,test}/CLASS/*``, or of ``root/CLASS/*``, divided by a seed.

    Where ``root/train`` exists without ``root/val``, val is split off train, stratified and seeded.
    The classes are the folders of train (where there is no train, those of the split itself),
    sorted; purely numeric names sort as numbers. Hidden folders and files are ignored. Boxes are
    read from ``root/boxes.csv`` where it exists.

    Args:
        root: The data folder.
        split: Must be among ``available_splits(root)``.
        seed: Of the division into splits.
        val_fraction: Part of each class for val, where val is split off.
        test_fraction: Part of each class for test, for ``root/CLASS/*``.
        class_names: The class list of a trained network, for a folder that may lack some of its
            classes.

    Raises:
        CamtrainFileNotFoundError: No such folder, no images in it, or no such split.
        CamtrainValueError: Fewer than two classes, a class without images in train, or a class
            unknown to train.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Split,
        *,
        seed: int = 0,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """List the pictures and their boxes; no picture is read yet."""
        self.root = _data_folder(root)
        self.split = split
        splits = _splits(self.root, seed, val_fraction, test_fraction)
        if split not in splits:
            raise CamtrainFileNotFoundError(
                f"{self.root} has no {split} split, it has {', '.join(splits)}; add the folder "
                f"{self.root / split}, or choose another --data.root."
            )
        if class_names is None:
            self.class_names = _class_list(self.root, splits.get("train", splits[split]))
        else:
            self.class_names = tuple(class_names)
        class_of = {path: name for name, paths in splits[split].items() for path in paths}
        if not class_of:
            raise CamtrainFileNotFoundError(
                f"The {split} split of {self.root} holds no images; add some, or remove the folder."
            )
        _check_classes(self.root, split, splits[split], self.class_names, class_names is not None)
        label_of = {name: label for label, name in enumerate(self.class_names)}
        self.paths = sorted(class_of)
        self.labels = [label_of[class_of[path]] for path in self.paths]
        self._boxes = read_boxes(self.root, class_of)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.paths)

    def read(self, index: int) -> Picture:
        """The picture at ``index``; its path is the full one."""
        return self.read_with(index, read_image)

    def read_with(self, index: int, decode: Decode) -> Picture:
        """As ``read``, with another decoder."""
        path = self.paths[index]
        file = self.root / path
        boxes_xyxy = self._boxes.get(path, torch.zeros(0, 4, dtype=torch.int64))
        return Picture(decode(file), self.labels[index], boxes_xyxy.clone(), str(file))


def available_splits(
    root: str | os.PathLike[str], *, val_fraction: float = 0.15, test_fraction: float = 0.15
) -> tuple[Split, ...]:
    """The splits that ``ImageFolder`` can read from a data folder, in the order train, val, test.

    Raises:
        CamtrainFileNotFoundError: No such folder, or no images in it.
    """
    return tuple(_splits(_data_folder(root), 0, val_fraction, test_fraction))


def _data_folder(root: str | os.PathLike[str]) -> Path:
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        raise CamtrainFileNotFoundError(
            f"The data folder {folder} does not exist; point --data.root at a folder that "
            "holds train/CLASS/* or CLASS/*."
        )
    return folder


def _splits(
    root: Path, seed: int, val_fraction: float, test_fraction: float
) -> dict[Split, _Classes]:
    """The pictures of every split that exists, class by class, in the order train, val, test."""
    check_fractions(val_fraction, test_fraction)
    on_disk: dict[Split, _Classes] = {
        name: _scan(root, name) for name in get_args(Split) if _folders(root / name)
    }
    whole = on_disk or {"train": _scan(root, "")}
    if not any(paths for classes in whole.values() for paths in classes.values()):
        raise CamtrainFileNotFoundError(
            f"The data folder {root} holds no images; expected train/CLASS/* or CLASS/* with "
            f"files of {' '.join(IMAGE_SUFFIXES)}; point --data.root at another folder."
        )
    if "train" not in whole or "val" in whole:
        return whole
    if on_disk:
        test_fraction = 0.0
    divided = {
        name: divide(paths, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
        for name, paths in whole["train"].items()
    }
    new: dict[Split, _Classes] = {
        split: {name: parts[split] for name, parts in divided.items()}
        for split in get_args(Split)
        if any(parts[split] for parts in divided.values())
    }
    return {**new, **{name: classes for name, classes in on_disk.items() if name != "train"}}


def _scan(root: Path, split: str) -> _Classes:
    """The class folders of ``root/split`` and the pictures in each."""
    return {
        name: sorted(
            "/".join(filter(None, (split, name, file.name)))
            for file in os.scandir(root / split / name)
            if file.name.lower().endswith(IMAGE_SUFFIXES)
            and not file.name.startswith(".")
            and file.is_file()
        )
        for name in _folders(root / split)
    }


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, which need not exist, without the hidden ones."""
    if not folder.is_dir():
        return []
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if not entry.name.startswith(".") and entry.is_dir()
    )


def _class_list(root: Path, classes: Iterable[str]) -> tuple[str, ...]:
    """The class names in the order of their labels."""
    names = list(classes)
    if len(names) < 2:
        raise CamtrainValueError(
            f"A classifier needs at least 2 classes, but {root} has one, {names[0]!r}; "
            "add a folder with images of something else, or pass class_names."
        )
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numeric else 0, name)))


def _check_classes(
    root: Path, split: Split, classes: _Classes, known: tuple[str, ...], given: bool
) -> None:
    """Hold a split against the class list; a given list may have more classes than the split."""
    unknown = [name for name, paths in classes.items() if paths and name not in known]
    if unknown:
        raise CamtrainValueError(
            f"The {split} split of {root} has the class {_some(unknown)}, unknown to "
            f"{'class_names' if given else 'train'}, which has {_some(known)}; "
            "rename or remove the folder, or add it to train."
        )
    missing = [name for name in known if not classes.get(name)]
    if missing and split == "train":
        raise CamtrainValueError(
            f"The class {_some(missing)} has no image in the train split of {root}; "
            "add images or remove the folder."
        )
    if missing and not given:
        warnings.warn(
            f"The {split} split of {root} has no image of the class {_some(missing)}.", stacklevel=3
        )


def _some(names: Sequence[str], most: int = 10) -> str:
    """The names, or the first of them and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
