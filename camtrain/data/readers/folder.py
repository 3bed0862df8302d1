"""Pictures in folders named after their classes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from camtrain.data.boxes import with_boxes
from camtrain.data.classes import sort_class_names
from camtrain.data.decoding import IMAGE_SUFFIXES, read_mask
from camtrain.data.faults import refuse
from camtrain.data.lists import PathList
from camtrain.data.source import UNDECIDED, Listing, Split, no_mask, split_number
from camtrain.data.tree import scan, subfolders
from camtrain.errors import CamtrainFileNotFoundError


def data_folder(root: str | os.PathLike[str], *, or_file: bool = False) -> Path:
    """The absolute path of a data folder, or of a file if that may be instead."""
    folder = Path(root).expanduser().absolute()
    if not (folder.is_dir() or (or_file and folder.is_file())):
        raise CamtrainFileNotFoundError(
            f"The data folder {folder} does not exist; point --data.root at the folder of the data "
            "set, of photographs one that holds train/CLASS/* or CLASS/*."
        )
    return folder


def folder_listing(root: Path) -> Listing:
    """The pictures of ``root/{train,val,test}/CLASS/*``; or of ``root/CLASS/*``, without splits.

    A folder named after a split is one only if it holds folders: ``root/train/*.jpg`` are pictures
    of trains. Folders in a class folder belong to the class. Hidden files and folders are skipped.
    For boxes see ``with_boxes``; where there are splits, ``root/masks/PATH.png`` is the mask of
    ``root/PATH.jpg``.
    """
    on_disk = [split for split in get_args(Split) if subfolders(root / split)]
    for name in ("valid", "validation"):
        if "val" not in on_disk and on_disk and subfolders(root / name):
            warnings.warn(f"{root / name} is left out; rename it to val to use it.", stacklevel=2)
    tree = scan(root, on_disk or [""])
    classes, splits = [], []
    for folder in tree.folders:
        split, _, inner = folder.partition("/") if on_disk else (None, "", folder)
        classes.append(inner.partition("/")[0])
        splits.append(UNDECIDED if split is None else get_args(Split).index(split))
    # Class folders with pictures, and the empty ones of train, which are an error later.
    home = (split_number("train"), UNDECIDED)
    counted = zip(classes, splits, tree.counts, strict=True)
    names = sort_class_names({name for name, split, n in counted if name and (n or split in home)})
    number = {name: place for place, name in enumerate(names)}
    labels = np.repeat([number.get(name, -1) for name in classes], tree.counts).astype(np.int64)
    rows = np.flatnonzero(labels >= 0)
    split_of_rows = np.repeat(np.array(splits, np.int8), tree.counts)[rows]
    _check_has_pictures(root, on_disk, split_of_rows)
    if on_disk and len(rows) < len(labels):
        warnings.warn(
            f"{len(labels) - len(rows)} pictures lie in a split of {root}, but in no class folder, "
            "and are left out.",
            stacklevel=2,
        )
    paths = tree.paths.take(rows)
    has_masks = bool(on_disk) and (root / "masks").is_dir()
    listing = Listing(
        root=root,
        paths=paths,
        labels=labels[rows],
        splits=split_of_rows,
        class_names=names,
        masks=partial(_mask, root / "masks", paths) if has_masks else no_mask,
    )
    return with_boxes(listing, has_xml=tree.has_xml)


def _check_has_pictures(root: Path, on_disk: Sequence[Split], splits: np.ndarray) -> None:
    """Raise if there is no picture, or if one of the splits ``on_disk`` has none."""
    if not len(splits):
        raise CamtrainFileNotFoundError(
            f"The data folder {root} holds no images; expected train/CLASS/* or CLASS/* with "
            f"files of {' '.join(IMAGE_SUFFIXES)}; point --data.root at another folder."
        )
    for split in on_disk:
        if not (splits == split_number(split)).any():
            message = (
                f"The {split} split of {root} holds no images; add some, or remove the folder."
            )
            refuse(CamtrainFileNotFoundError(message))


def _mask(folder: Path, paths: PathList, row: int) -> Tensor | None:
    """The mask of a picture, (H, W) uint8, 1 where it is not black; None where there is no file."""
    file = (folder / paths[row]).with_suffix(".png")
    return torch.from_numpy(read_mask(file).astype(np.uint8)) if file.is_file() else None
