"""INRIA person: pictures with and without people (Dalal and Triggs, CVPR 2005)."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from camtrain.data.lists import PathList
from camtrain.data.source import UNDECIDED, Labels, Listing, Split, no_boxes
from camtrain.data.tree import scan, subfolders, top_of
from camtrain.errors import CamtrainFileNotFoundError

_CLASSES = {"neg": "not_person", "pos": "person"}
_BOX = re.compile(
    r"^Bounding box for object \d+.*:\s*\((\d+),\s*(\d+)\)\s*-\s*\((\d+),\s*(\d+)\)", re.MULTILINE
)


def inria_listing(root: Path) -> Listing:
    """The pictures of ``INRIAPerson/{Train,Test}/{pos,neg}``; ``root`` or the folder in it.

    ``pos`` is the class person, ``neg`` not_person. Names of folders may be in capitals, ``val`` is
    read where it exists, and ``root/{pos,neg}`` alone is divided. The cut-out windows of
    ``train_64x128_H96`` are left aside. Boxes come from ``Train/annotations/NAME.txt``, whose
    corners are counted from 0 and inclusive.
    """
    folder = root / "INRIAPerson" if (root / "INRIAPerson").is_dir() else root
    names = get_args(Split)
    split_folders = [name for name in subfolders(folder) if name.lower() in names]
    kinds = {  # folder -> the numbers of its split and of its class
        f"{parent}/{name}".lstrip("/"): (
            names.index(parent.lower()) if parent else UNDECIDED,
            list(_CLASSES).index(name.lower()),
        )
        for parent in split_folders or [""]
        for name in subfolders(folder / parent)
        if name.lower() in _CLASSES
    }
    tree = scan(folder, list(kinds)) if kinds else None
    if tree is None or not len(tree.paths):
        raise CamtrainFileNotFoundError(
            f"{folder} must hold pictures in Train/pos, Train/neg, Test/pos and Test/neg, or in "
            "pos and neg, but has none; point --data.root at INRIAPerson."
        )
    of_folders = np.array([kinds[top_of(inner, kinds)] for inner in tree.folders], np.int64)
    splits, labels = np.repeat(of_folders, tree.counts, axis=0).T
    return Listing(
        root=folder,
        paths=tree.paths,
        labels=labels,
        splits=splits.astype(np.int8),
        class_names=tuple(_CLASSES.values()),
        has_class_list=True,
        boxes=partial(_boxes, folder, tree.paths, labels),
    )


def _boxes(folder: Path, paths: PathList, labels: Labels, row: int) -> Tensor:
    """The people in the picture at ``row``, from ``annotations/NAME.txt`` beside ``pos``."""
    picture = folder / paths[row]
    file = picture.parent.parent / "annotations" / f"{picture.stem}.txt"
    if not labels[row] or not file.is_file():
        return no_boxes(row)
    # Latin-1: the files name the INRIA Rhône-Alpes.
    corners = _BOX.findall(file.read_text(encoding="latin-1"))
    boxes = [[int(x0), int(y0), int(x1) + 1, int(y1) + 1] for x0, y0, x1, y1 in corners]
    return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)
