"""INRIA person: pictures with and without people (Dalal and Triggs, CVPR 2005)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from camtrain.data.paths import PathList
from camtrain.data.source import UNDECIDED, Labels, Listing, Split, no_boxes, split_number
from camtrain.data.tree import scan, subfolders
from camtrain.errors import CamtrainFileNotFoundError

_CLASSES = {"neg": "not_person", "pos": "person"}
_SPLITS: dict[str, Split] = {"train": "train", "val": "val", "test": "test"}
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
    homes: dict[str, Split | None] = {
        name: _SPLITS[name.lower()] for name in subfolders(folder) if name.lower() in _SPLITS
    }
    tops = {
        (f"{home}/{name}" if home else name): (split, name.lower())
        for home, split in (homes or {"": None}).items()
        for name in subfolders(folder / home)
        if name.lower() in _CLASSES
    }
    tree = scan(folder, list(tops)) if tops else None
    if tree is None or not len(tree.paths):
        raise CamtrainFileNotFoundError(
            f"{folder} must hold pictures in Train/pos, Train/neg, Test/pos and Test/neg, or in "
            "pos and neg, but has none; point --data.root at INRIAPerson."
        )
    labels, splits = [], []
    for inner, count in zip(tree.folders, tree.counts, strict=True):
        split, name = next(kind for top, kind in tops.items() if f"{inner}/".startswith(f"{top}/"))
        labels += [list(_CLASSES).index(name)] * int(count)
        splits += [UNDECIDED if split is None else split_number(split)] * int(count)
    numbers = np.array(labels, np.int64)
    return Listing(
        root=folder,
        paths=tree.paths,
        labels=numbers,
        splits=np.array(splits, np.int8),
        class_names=tuple(_CLASSES.values()),
        has_class_list=True,
        boxes=_AnnotationBoxes(folder, tree.paths, numbers),
    )


class _AnnotationBoxes:
    """Boxes of people from ``annotations/NAME.txt`` beside ``pos``, read when asked for."""

    def __init__(self, root: Path, paths: PathList, labels: Labels) -> None:
        self._root = root
        self._paths = paths
        self._labels = labels

    def __call__(self, row: int) -> Tensor:
        """The boxes of the picture at ``row``, (n, 4) int64, half-open xyxy."""
        picture = self._root / self._paths[row]
        file = picture.parent.parent / "annotations" / f"{picture.stem}.txt"
        if not self._labels[row] or not file.is_file():
            return no_boxes(row)
        # Latin-1: the files name the INRIA Rhône-Alpes.
        corners = _BOX.findall(file.read_text(encoding="latin-1"))
        boxes = [[int(x0), int(y0), int(x1) + 1, int(y1) + 1] for x0, y0, x1, y1 in corners]
        return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)
