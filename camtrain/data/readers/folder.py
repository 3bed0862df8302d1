"""Pictures in folders named after their classes."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path

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
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError, join_first, warn
from camtrain.labels import normal_form


def data_folder(root: str | os.PathLike[str], *, or_file: bool = False) -> Path:
    """The absolute path of a data folder, or of a file if that may be instead."""
    folder = Path(root).expanduser().absolute()
    if not (folder.is_dir() or (or_file and folder.is_file())):
        raise CamtrainFileNotFoundError(
            f"The data folder {folder} does not exist; point --data.root at the folder of the data "
            "set, of photographs one that holds train/CLASS/* or CLASS/*."
        )
    return folder


# Folders of splits in lower case.
_SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def _split_folders(root: Path) -> dict[str, Split]:
    """The folders of ``root`` that are splits, by their names.

    They hold folders. Under other names than ``train``, ``val`` and ``test`` they are splits where
    all hold the same ones; one of them among other folders is a class.

    Raises:
        CamtrainValueError: They may be splits or classes.
    """
    inner = {name: subfolders(root / name) for name in subfolders(root)}
    splits = {n: _SPLITS[n.lower()] for n, names in inner.items() if names and n.lower() in _SPLITS}
    if all(name == split for name, split in splits.items()):
        pass
    elif len(splits) == 1 and len(inner.keys() - {"masks"}) > 1:
        return {}
    else:
        classes: list[set[str]] = [set(map(normal_form, inner[name])) for name in splits]
        odd = sorted(set().union(*classes) - classes[0].intersection(*classes))
        if odd or len(set(splits.values())) < len(splits):
            reason = f"{join_first(odd, 3)} is not in each" if odd else "two are of the same split"
            raise CamtrainValueError(
                f"{root} holds the folders {', '.join(splits)}, which are splits where each holds "
                f"the same class folders, but {reason}; name splits train, val and test, and "
                "classes otherwise."
            )
    for name in inner.keys() - splits.keys():
        if splits and name.lower() in _SPLITS:
            warn(f"{root / name} is left out, since it holds no class folders.", stacklevel=3)
    return splits


def folder_listing(root: Path) -> Listing:
    """The pictures of ``root/{train,val,test}/CLASS/*``; or of ``root/CLASS/*``, without splits.

    A folder named after a split is one only if it holds folders: ``root/train/*.jpg`` are pictures
    of trains. For other spellings, such as ``Training`` and ``validation``, see ``_split_folders``.
    Folders in a class folder belong to the class. Hidden files and folders are skipped.
    For boxes see ``with_boxes``; where there are splits, ``root/masks/PATH.png`` is the mask of
    ``root/PATH.jpg``.
    """
    on_disk = _split_folders(root)
    tree = scan(root, list(on_disk) or [""])
    classes, splits = [], []
    for folder in tree.folders:
        top, _, inner = folder.partition("/") if on_disk else ("", "", folder)
        classes.append(inner.partition("/")[0])
        splits.append(split_number(on_disk[top]) if on_disk else UNDECIDED)
    # Class folders with pictures, and the empty ones of train, which are an error later.
    home = (split_number("train"), UNDECIDED)
    counted = zip(classes, splits, tree.counts, strict=True)
    names = sort_class_names({name for name, split, n in counted if name and (n or split in home)})
    number = {name: place for place, name in enumerate(names)}
    labels = np.repeat([number.get(name, -1) for name in classes], tree.counts).astype(np.int64)
    rows = np.flatnonzero(labels >= 0)
    split_of_rows = np.repeat(np.array(splits, np.int8), tree.counts)[rows]
    _check_has_pictures(root, on_disk.values(), split_of_rows, tree.skipped)
    if on_disk and len(rows) < len(labels):
        warn(
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


def _check_has_pictures(
    root: Path, on_disk: Collection[Split], splits: np.ndarray, skipped: str
) -> None:
    """Raise if there is no picture, or if one of the splits ``on_disk`` has none."""
    if not len(splits):
        instead = f", but {skipped}" if skipped else ""
        raise CamtrainFileNotFoundError(
            f"The data folder {root} holds no images{instead}; expected train/CLASS/* or CLASS/* "
            f"with files of {' '.join(IMAGE_SUFFIXES)}; point --data.root at another folder."
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
