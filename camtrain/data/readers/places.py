"""Places365-Standard and Places205: scenes, named by lists (Zhou et al., TPAMI 2018; NIPS 2014)."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from camtrain.data.lists import PathList, check_first_picture, find_one_of, lines_of
from camtrain.data.source import Listing, Split, split_number
from camtrain.errors import CamtrainValueError

_LISTS_365 = ("", "filelist_places365-standard/")
_LISTS_205 = ("", "trainvalsplit_places205/", "trainvalsplit/")
_IMAGES_205 = (
    "data/vision/torralba/deeplearning/images256",
    "images256",
    "imagesPlaces205_resize",
    "images",
)


def places365_listing(root: Path) -> Listing:
    """Places365-Standard: train and val; its test pictures have no labels.

    Lists in ``root`` or ``root/filelist_places365-standard``: ``places365_train_standard.txt``
    (``/a/abbey/00000001.jpg 0``, below ``data_256`` or ``data_large``, as downloaded or as
    torchvision renames them, ``data_256_standard``), ``places365_val.txt``
    (``Places365_val_00000001.jpg 165``, below ``val_256`` or ``val_large``; may be missing),
    ``categories_places365.txt`` (``/a/abbey 0``). Where both sizes are there, the small one is
    taken. For the "easy format", ``train/CLASS/*``, use the source ``folder``.
    """
    train = ("data_256_standard", "data_256", "data_large_standard", "data_large")
    parts: dict[Split, tuple[str, Sequence[str]]] = {
        "train": ("places365_train_standard.txt", train),
        "val": ("places365_val.txt", ("val_256", "val_large")),
    }
    return _listing(root, _LISTS_365, "categories_places365.txt", parts)


def places205_listing(root: Path) -> Listing:
    """Places205: train and val; its test pictures have no labels.

    Lists in ``root``, ``root/trainvalsplit_places205`` or ``root/trainvalsplit``:
    ``train_places205.csv`` and ``val_places205.csv`` (``a/abbey/gsun_0a.jpg 0``, separated by a
    blank whatever the ending; val may be missing), ``categoryIndex_places205.csv``
    (``/a/abbey 0``). The pictures lie below ``data/vision/torralba/deeplearning/images256``, as the
    archive has it, or below ``images256``, ``imagesPlaces205_resize`` or ``images``.
    """
    parts: dict[Split, tuple[str, Sequence[str]]] = {
        "train": ("train_places205.csv", _IMAGES_205),
        "val": ("val_places205.csv", _IMAGES_205),
    }
    return _listing(root, _LISTS_205, "categoryIndex_places205.csv", parts)


def _listing(
    root: Path,
    folders: Sequence[str],
    categories: str,
    parts: dict[Split, tuple[str, Sequence[str]]],
) -> Listing:
    """The pictures of some splits, whose lists lie in one of the folders.

    ``parts`` holds for each split its list, and the folders in which its pictures may lie.
    """
    names = [folder + categories for folder in folders]
    class_names = _class_names(find_one_of(root, names, "the list of the classes"))
    paths: list[str] = []
    labels, splits = array("q"), array("b")
    for split, (name, images) in parts.items():
        lists = [folder + name for folder in folders]
        if split == "val" and not any((root / place).is_file() for place in lists):
            continue
        file = find_one_of(root, lists, f"the list of the {split} pictures")
        folder = find_one_of(root, images, f"the folder of the {split} pictures").relative_to(root)
        start = len(paths)
        for line in lines_of(file, "path label"):
            paths.append(f"{folder.as_posix()}/{line.fields[0].lstrip('/')}")
            labels.append(line.integer(1, below=len(class_names)))
            splits.append(split_number(split))
        check_first_picture(root / paths[start], file)
    return Listing(
        root=root,
        paths=PathList.of(paths),
        labels=np.array(labels, np.int64),
        splits=np.array(splits, np.int8),
        class_names=class_names,
        has_class_list=True,
    )


def _class_names(file: Path) -> tuple[str, ...]:
    """The names in order of number; ``/a/abbey/outdoor 8`` is the class abbey/outdoor, number 8."""
    names = {
        line.integer(1): re.sub(r"^/?[a-z]/", "", line.fields[0])
        for line in lines_of(file, "/letter/name number")
    }
    if sorted(names) != list(range(len(names))):
        raise CamtrainValueError(
            f"{file} must number its {len(names)} classes from 0 without gaps, but does not; "
            "download it again."
        )
    return tuple(names[number] for number in range(len(names)))
