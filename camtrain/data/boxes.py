"""Boxes that lie beside the pictures, held ready by picture; all of them half-open xyxy."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from camtrain.data.box_files import Box, from_coco, from_csv, from_xml
from camtrain.data.listing import Labels, no_boxes
from camtrain.data.paths import PathList
from camtrain.errors import CamtrainValueError

_CSV = "boxes.csv"
_COCO = ("boxes.json", "annotations.json")


class BoxTable:
    """Boxes in memory: from the row of a picture to its boxes, (n, 4) int64.

    Args:
        count: N, the number of pictures.
        rows: The picture of each of the M boxes.
        boxes_xyxy: M boxes; those of a picture keep their order.
    """

    def __init__(
        self, count: int, rows: Sequence[int], boxes_xyxy: Sequence[Sequence[int]]
    ) -> None:
        order = np.argsort(np.asarray(rows, np.int64), kind="stable")
        self._boxes = np.asarray(boxes_xyxy, np.int32).reshape(-1, 4)[order]
        places = np.asarray(rows, np.int64)[order]
        self._starts = np.searchsorted(places, np.arange(count + 1))

    def __call__(self, row: int) -> Tensor:
        """The boxes of the picture at ``row``."""
        return torch.from_numpy(
            self._boxes[self._starts[row] : self._starts[row + 1]].astype(np.int64)
        )


class XmlBoxes:
    """Boxes in one XML file per picture, which is read when its boxes are asked for.

    Half a million files would take minutes, and a training looks at few of their boxes.

    Args:
        root: The data folder.
        paths: Of the N pictures, relative to it.
        labels: See ``Listing``.
        names: Of the K classes, as the files spell them.
        templates: Where the file of a picture may be, relative to ``root``; the first that exists
            is read. ``{parent}`` is the picture's folder, ``{stem}`` its name without ending, and
            ``{name}`` that of its class.
        first: Number of the first pixel: 1 for Pascal VOC, 0 for ILSVRC.
    """

    def __init__(
        self,
        root: Path,
        paths: PathList,
        labels: Labels,
        names: Sequence[str],
        *,
        templates: Sequence[str],
        first: int,
    ) -> None:
        self.root = root
        self.templates = tuple(templates)
        self.first = first
        self._paths = paths
        self._labels = labels
        self._names = tuple(names)

    def __call__(self, row: int) -> Tensor:
        """The boxes of the picture at ``row``."""
        names = classes_of(self._labels, self._names, row)
        parent, _, file_name = self._paths[row].rpartition("/")
        stem = os.path.splitext(file_name)[0]
        for template in self.templates:
            place = template.format(parent=parent, stem=stem, name=names[0] if names else "")
            file = self.root / (place if parent else place.lstrip("/"))
            if file.is_file():
                boxes = [box.box_xyxy for box in from_xml(file, first=self.first, names=names)]
                return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)
        return no_boxes(row)


def classes_of(labels: Labels, names: Sequence[str], row: int) -> list[str]:
    """The names of the classes of the picture at ``row``."""
    if labels.ndim == 2:
        return [names[number] for number in np.flatnonzero(labels[row]).tolist()]
    return [names[int(labels[row])]]


def match_boxes(
    boxes: Iterable[Box], paths: Sequence[str], labels: Labels, names: Sequence[str]
) -> BoxTable:
    """The boxes that belong to pictures.

    Localization concerns the labelled class, so boxes of another class than the picture's are left
    out; boxes that name no class count. Boxes of no picture are worth a warning.

    Args:
        boxes: By path, which is that of a picture as ``paths`` has it.
        paths: Of the N pictures.
        labels: See ``Listing``.
        names: Of the K classes, as the boxes spell them.
    """
    row_of = {path: row for row, path in enumerate(paths)}
    rows, kept, lost = [], [], []
    for box in boxes:
        row = row_of.get(box.path)
        if row is None:
            lost.append(box.path)
        elif box.class_name in ("", *classes_of(labels, names, row)):
            rows.append(row)
            kept.append(box.box_xyxy)
    if lost:
        warnings.warn(
            f"{len(lost)} boxes are of no picture of the data set, the first of {lost[0]}; paths "
            f"are relative to the data folder, such as {paths[0]}.",
            stacklevel=2,
        )
    return BoxTable(len(paths), rows, kept)


def find_boxes(
    root: Path, paths: PathList, labels: Labels, names: Sequence[str], *, has_xml: bool
) -> Callable[[int], Tensor]:
    """The boxes beside pictures in folders, in the one format that is there.

    ``root/boxes.csv`` (``path,xmin,ymin,xmax,ymax,class``, half-open), ``root/boxes.json`` or
    ``root/annotations.json`` (COCO), or Pascal VOC XML files beside the pictures
    (``cat/1.jpg``: ``cat/1.xml``).

    Args:
        root: The data folder.
        paths: Of the N pictures, relative to it.
        labels: See ``Listing``.
        names: Of the K classes.
        has_xml: Whether there are XML files beside the pictures.

    Raises:
        CamtrainValueError: There are boxes in two formats, or a file is damaged.
    """
    files = [file for name in (_CSV, *_COCO) if (file := root / name).is_file()]
    if len(files) + has_xml > 1:
        found = [file.name for file in files] + ["XML files beside the pictures"] * has_xml
        raise CamtrainValueError(
            f"{root} must hold its boxes in one place, but has {' and '.join(found)}; delete or "
            "rename all but one."
        )
    if has_xml:
        return XmlBoxes(root, paths, labels, names, templates=["{parent}/{stem}.xml"], first=1)
    if not files:
        return no_boxes
    [file] = files
    boxes = from_csv(file) if file.name == _CSV else from_coco(file, paths)
    return match_boxes(boxes, paths, labels, names)
