"""Boxes beside the pictures: from their files to tables by picture; half-open xyxy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from camtrain.data.box_files import Box, from_coco, from_csv, from_xml, from_yolo, yolo_names
from camtrain.data.decoding import upright_size
from camtrain.data.faults import refuse
from camtrain.data.source import Listing, no_boxes
from camtrain.errors import CamtrainValueError, join_first, warn
from camtrain.labels import label_names, normal_form

_CSV = "boxes.csv"
_COCO = ("boxes.json", "annotations.json")
_YOLO = "data.yaml"  # the names; other programs keep other things in a file of this name


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


@dataclass(frozen=True, eq=False)
class FileBoxes:
    """Boxes in one file per picture, which is read when its boxes are asked for.

    Half a million files would take minutes, and a training looks at few of their boxes.
    """

    listing: Listing
    names: Sequence[str]  # of the K classes, as the files spell them
    # Where the file of a picture may be, relative to the data folder; the first that exists is
    # read. {parent} is the picture's folder, {stem} its name without ending, {name} its class.
    templates: Sequence[str]

    def read(self, file: Path, row: int, names: Sequence[str]) -> Iterator[Box]:
        """The boxes that the file of the picture at ``row`` holds of the classes ``names``."""
        raise NotImplementedError

    def __call__(self, row: int) -> Tensor:
        """The boxes of the picture at ``row``."""
        file, names = self.file_of(row)
        if file is None:
            return no_boxes(row)
        boxes = [box.box_xyxy for box in self.read(file, row, names)]
        return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)

    def file_of(self, row: int) -> tuple[Path | None, list[str]]:
        """The file of the picture at ``row``, if there is one, and the picture's classes."""
        names = label_names(self.listing.labels[row], self.names)
        parent, _, file_name = self.listing.paths[row].rpartition("/")
        stem = os.path.splitext(file_name)[0]
        for template in self.templates:
            place = template.format(parent=parent, stem=stem, name=names[0] if names else "")
            file = self.listing.root / (place if parent else place.lstrip("/"))
            if file.is_file():
                return file, names
        return None, names

    def has_files(self) -> bool:
        """Whether any picture has a file."""
        return any(self.file_of(row)[0] for row in range(len(self.listing.paths)))


@dataclass(frozen=True, eq=False)
class XmlBoxes(FileBoxes):
    """Boxes in XML files, see ``from_xml``."""

    first_pixel: int  # number of the first pixel: 1 for Pascal VOC, 0 for ILSVRC

    def read(self, file: Path, row: int, names: Sequence[str]) -> Iterator[Box]:
        """The boxes of an XML file."""
        return from_xml(file, first_pixel=self.first_pixel, names=names)


@dataclass(frozen=True, eq=False)
class YoloBoxes(FileBoxes):
    """Boxes in text files, see ``from_yolo``."""

    numbered_names: dict[int, str]  # of the classes, as the lines number them

    def read(self, file: Path, row: int, names: Sequence[str]) -> Iterator[Box]:
        """The boxes of a text file; the header of the picture is read for its size."""
        size_hw = upright_size(self.listing.root / self.listing.paths[row])
        return from_yolo(file, size_hw, self.numbered_names, names)


def match_boxes(boxes: Iterable[Box], listing: Listing, names: Sequence[str]) -> BoxTable:
    """The boxes that belong to the pictures of a listing.

    Localization concerns the labelled class, so boxes of another class than the picture's are left
    out; boxes that name no class count. A warning tells of boxes of no picture and how many were
    matched. ``names`` are those of the K classes, as the boxes spell them.

    Raises:
        CamtrainValueError: There are boxes, and none belongs to a picture.
    """
    row_of = {path: row for row, path in enumerate(listing.paths)}
    rows, boxes_xyxy, unmatched_paths, other_names = [], [], [], []
    for path, box_xyxy, class_name in boxes:
        row = row_of.get(path, row_of.get(path.replace("\\", "/")))  # as Windows writes it
        if row is None:
            unmatched_paths.append(path)
        elif not class_name or normal_form(class_name) in map(
            normal_form, label_names(listing.labels[row], names)
        ):
            rows.append(row)
            boxes_xyxy.append(box_xyxy)
        else:
            other_names.append(class_name)
    if other_names and not rows:
        _refuse_all(
            f"are of another class than their picture, the first of {other_names[0]}; the classes "
            f"are {join_first(names, 3)}; spell them alike",
            listing,
        )
    elif unmatched_paths and not rows:
        _refuse_all(
            f"are of no picture, the first of {unmatched_paths[0]}; write paths relative to the "
            f"data folder, such as {listing.paths[0]}",
            listing,
        )
    elif unmatched_paths:
        warn(
            f"{len(unmatched_paths)} boxes are of no picture of the data set, the first of "
            f"{unmatched_paths[0]:.200}; {len(rows)} are of {len(set(rows))} pictures. Paths are "
            f"relative to the data folder, such as {listing.paths[0]}.",
            stacklevel=2,
        )
    return BoxTable(len(row_of), rows, boxes_xyxy)


def _refuse_all(reason: str, listing: Listing) -> None:
    """Raise, or list, that none of the boxes of a data set can be used."""
    message = f"All boxes of {listing.root} {reason}, or remove the boxes."
    refuse(CamtrainValueError(message))


def with_boxes(listing: Listing, *, has_xml: bool) -> Listing:
    """The listing with the boxes beside its pictures, in the one format that is there.

    ``root/boxes.csv`` (``path,xmin,ymin,xmax,ymax,class``, half-open), ``root/boxes.json`` or
    ``root/annotations.json`` (COCO), Pascal VOC XML files beside the pictures (``cat/1.jpg``:
    ``cat/1.xml``), if ``has_xml`` says that there are any, or YOLO text files beside them
    (``cat/1.txt``) with the names of their classes in ``root/data.yaml``.
    """
    root, names = listing.root, listing.class_names
    files = [file for name in (_CSV, *_COCO) if (file := root / name).is_file()]
    yolo = _yolo_boxes(listing)
    if len(files) + has_xml + (yolo is not None) > 1:
        places = [file.name for file in files] + ["XML files beside the pictures"] * has_xml
        places += [f"text files beside the pictures, with {_YOLO}"] * (yolo is not None)
        raise CamtrainValueError(
            f"{root} must hold its boxes in one place, but has {' and '.join(places)}; delete or "
            "rename all but one."
        )
    if has_xml:
        xml = XmlBoxes(listing, names, ["{parent}/{stem}.xml"], first_pixel=1)
        if not xml.has_files():
            reason = (
                "are in XML files that no picture is named like, as cat/1.jpg is like cat/1.xml"
            )
            _refuse_all(f"{reason}; rename them", listing)
        return replace(listing, boxes=xml)
    if yolo is not None:
        return replace(listing, boxes=yolo)
    if not files:
        return listing
    [file] = files
    boxes = from_csv(file) if file.name == _CSV else from_coco(file, listing.paths)
    return replace(listing, boxes=match_boxes(boxes, listing, names))


def _yolo_boxes(listing: Listing) -> YoloBoxes | None:
    """The boxes of YOLO text files beside the pictures; None where there are none."""
    file = listing.root / _YOLO
    boxes = YoloBoxes(listing, listing.class_names, ["{parent}/{stem}.txt"], {})
    if not file.is_file() or not boxes.has_files():
        return None
    return replace(boxes, numbered_names=yolo_names(file))
