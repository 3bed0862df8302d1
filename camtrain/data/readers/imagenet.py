"""ImageNet in the layouts that people keep it in (ILSVRC2012; Russakovsky et al., IJCV 2015)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from camtrain.data.boxes import BoxTable, XmlBoxes, from_csv, match_boxes
from camtrain.data.classes import some
from camtrain.data.readers.imagenet_lists import (
    SOLUTION,
    WNID,
    read_solution,
    read_words,
    readable,
    validation_classes,
)
from camtrain.data.source import Listing, Split, no_boxes, split_number
from camtrain.data.tree import IMAGE_SUFFIXES, Tree, scan, subfolders
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError

_HOMES = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "")
_ANNOTATIONS = ("ILSVRC/Annotations/CLS-LOC", "Annotations/CLS-LOC", "Annotations", "Annotation")
_BOX_FOLDERS = (*_ANNOTATIONS, "bbox", "bboxes")
_XML = ("{name}/{stem}.xml", "train/{name}/{stem}.xml", "val/{stem}.xml", "{stem}.xml")


def imagenet_listing(root: Path) -> Listing:
    """The pictures of ``root/{train,val,test}/WNID/*``, or of a flat ``root/val/*``.

    The folders may lie in ``root/ILSVRC/Data/CLS-LOC``, as Kaggle has them. For the classes of a
    flat val see ``validation_classes``; a flat test has none and is left aside.

    The classes are those of ``synset_words.txt``, ``LOC_synset_mapping.txt`` or the devkit's
    ``meta.mat``, whether or not there are pictures, and go by their first word; without such a list
    they are the WNID folders. Either way they are sorted by WNID.

    Boxes come from the ILSVRC XML files (counted from 0, corners inclusive), ``WNID/NAME.xml``,
    ``train/WNID/NAME.xml``, ``val/NAME.xml`` or ``NAME.xml`` in ``ILSVRC/Annotations/CLS-LOC``,
    ``Annotations``, ``Annotation``, ``bbox`` or ``bboxes``, or beside the pictures; else from
    ``boxes.csv``, whose classes are WNIDs; else those of val from ``LOC_val_solution.csv``.

    Raises:
        CamtrainFileNotFoundError: There are no pictures, or no list of the classes of val.
        CamtrainValueError: A list is damaged, or a picture is of a class that no list has.
    """
    home = next(
        (h for h in _HOMES if any(_is_split(root / h / split) for split in get_args(Split))), None
    )
    if home is None:
        raise CamtrainFileNotFoundError(
            f"{root} must hold train/WNID/*.JPEG, val/WNID/*.JPEG or val/*.JPEG, or them in "
            "ILSVRC/Data/CLS-LOC, but holds none; point --data.root at the folder of ImageNet."
        )
    tops: dict[str, Split] = {
        f"{home}/{split}".lstrip("/"): split
        for split in get_args(Split)
        if _is_split(root / home / split)
    }
    tree = scan(root, list(tops))
    words = read_words(root)
    classes = _classes(root, tree, words)
    wnids = sorted(set(classes)) if words is None else list(words)
    number = {wnid: place for place, wnid in enumerate(wnids)}
    unknown = sorted(set(classes) - set(number))
    if unknown:
        raise CamtrainValueError(
            f"{root} has pictures of the class {some(unknown)}, which its list of {len(wnids)} "
            "classes lacks; correct the list, or remove the pictures."
        )
    labels = np.array([number[wnid] for wnid in classes], np.int64)
    return Listing(
        root=root,
        paths=tree.paths,
        labels=labels,
        splits=_splits(tree, tops),
        class_names=tuple(wnids) if words is None else readable(words),
        has_class_list=words is not None,
        boxes=_boxes(root, tree, labels, wnids),
    )


def _is_split(folder: Path) -> bool:
    """Whether a folder holds WNID folders, or is val and holds pictures."""
    if any(WNID.fullmatch(name) for name in subfolders(folder)):
        return True
    is_val = folder.name == "val" and folder.is_dir()
    return is_val and any(name.lower().endswith(IMAGE_SUFFIXES) for name in os.listdir(folder))


def _classes(root: Path, tree: Tree, words: Mapping[str, str] | None) -> list[str]:
    """The WNID of every picture: that of its folder, or what a list says."""
    inside = [
        next((part for part in folder.split("/") if WNID.fullmatch(part)), None)
        for folder in tree.folders
    ]
    listed: dict[str, str] = {}
    if any(count and not wnid for wnid, count in zip(inside, tree.counts, strict=True)):
        known = sorted({wnid for wnid in inside if wnid}) if words is None else list(words)
        listed = validation_classes(root, known, is_whole=words is not None)
    classes, row = [], 0
    for wnid, count in zip(inside, tree.counts.tolist(), strict=True):
        classes += (
            [wnid] * count
            if wnid
            else [_listed(tree, n, listed, root) for n in range(row, row + count)]
        )
        row += count
    return classes


def _listed(tree: Tree, row: int, listed: Mapping[str, str], root: Path) -> str:
    path = tree.paths[row]
    name = path.rpartition("/")[2].partition(".")[0]
    if name not in listed:
        raise CamtrainValueError(
            f"The list of validation classes has {len(listed)} pictures, but not {name}, which is "
            f"{root / path}; complete the list, or move the picture into the folder of its WNID."
        )
    return listed[name]


def _splits(tree: Tree, tops: Mapping[str, Split]) -> NDArray[np.int8]:
    numbers = [
        next(
            split_number(split) for top, split in tops.items() if f"{folder}/".startswith(f"{top}/")
        )
        for folder in tree.folders
    ]
    return np.repeat(np.array(numbers, np.int8), tree.counts)


def _boxes(
    root: Path, tree: Tree, labels: NDArray[np.int64], wnids: Sequence[str]
) -> Callable[[int], Tensor]:
    folders = [name for name in _BOX_FOLDERS if (root / name).is_dir()]
    templates = [f"{folder}/{form}" for folder in folders for form in _XML]
    if tree.has_xml:
        templates.append("{parent}/{stem}.xml")
    if templates:
        return XmlBoxes(root, tree.paths, labels, wnids, templates=templates, first=0)
    if (root / "boxes.csv").is_file():
        return match_boxes(from_csv(root / "boxes.csv"), tree.paths, labels, wnids)
    if not (root / SOLUTION).is_file():
        return no_boxes
    solution = read_solution(root / SOLUTION)
    stems = (path.rpartition("/")[2].partition(".")[0] for path in tree.paths)
    found = [
        (row, box)
        for row, stem in enumerate(stems)
        if stem in solution
        for box in solution[stem][1]
    ]
    return BoxTable(len(tree.paths), [row for row, _ in found], [box for _, box in found])
