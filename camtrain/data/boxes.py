"""Boxes beside the pictures: readers of their files, and tables by picture; half-open xyxy."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from camtrain.data.faults import refuse
from camtrain.data.lists import csv_reader, path_in
from camtrain.data.source import Listing, no_boxes
from camtrain.errors import CamtrainValueError, join_first, one_line, warn
from camtrain.labels import label_names, normal_form


class BoxError(CamtrainValueError):
    """An entry in a file of boxes that cannot be right.

    ``path`` is the picture of the entry, as the file spells it; "" where the file names none, or
    where the error comes from a worker.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


def refuse_box(message: str, path: str) -> None:
    """Raise a ``BoxError``, or list it; see ``refuse``."""
    refuse(BoxError(message, path))


_COLUMNS = ("path", "xmin", "ymin", "xmax", "ymax")


_FARTHEST = 2**31 - 1  # pixels, and larger than any picture


class Box(NamedTuple):
    """One box of a file: path relative to the data folder, half-open xyxy, class ("": unknown)."""

    path: str
    box_xyxy: tuple[int, int, int, int]
    class_name: str


def from_csv(file: Path) -> Iterator[Box]:
    """The boxes of a CSV file, ``path,xmin,ymin,xmax,ymax[,class]``, half-open already."""
    reader = csv_reader(file, _COLUMNS, header="path,xmin,ymin,xmax,ymax,class")
    folder = os.path.abspath(file.parent)
    for row in reader:
        path = (row["path"] or "").strip()
        try:
            xmin, ymin, xmax, ymax = (int(row[column]) for column in _COLUMNS[1:])
        except (TypeError, ValueError):
            xmin = ymin = xmax = ymax = 0
        if 0 <= xmin < xmax <= _FARTHEST and 0 <= ymin < ymax <= _FARTHEST:
            yield Box(
                path_in(folder, path), (xmin, ymin, xmax, ymax), (row.get("class") or "").strip()
            )
        else:
            refuse_box(
                f"{file}, line {reader.line_num}: expected whole numbers, 0 <= xmin < xmax "
                f"and 0 <= ymin < ymax, got {_shown(row.values(), ',')}; "
                "correct or delete the line.",
                path,
            )


def from_xml(file: Path, *, first_pixel: int, names: Collection[str]) -> Iterator[Box]:
    """The objects of some classes in the XML file of one picture; corners are inclusive there.

    ``first_pixel`` is the number of the first pixel: 1 for Pascal VOC, 0 for ILSVRC.
    """
    try:
        objects = list(ElementTree.parse(file).getroot().iter("object"))
    except Exception as error:  # what damaged XML makes its parser raise cannot be known
        refuse_box(
            f"{file} must be the XML of a picture's boxes, but cannot be read "
            f"({one_line(error, with_type=False)}); replace or delete it.",
            str(file),
        )
        return
    names = set(map(normal_form, names))
    for element in objects:
        name = (element.findtext("name") or "").strip()
        if normal_form(name) not in names:
            continue
        corners = [element.findtext(f"bndbox/{column}") for column in _COLUMNS[1:]]
        try:
            xmin, ymin, xmax, ymax = (round(float(corner or "")) for corner in corners)
        except (ValueError, OverflowError):
            xmin, ymin, xmax, ymax = 0, 0, -1, -1
        if xmin > xmax or ymin > ymax or max(map(abs, (xmin, ymin, xmax, ymax))) >= _FARTHEST:
            refuse_box(
                f"{file}: expected numbers with xmin <= xmax and ymin <= ymax in the bndbox of "
                f"{name:.50}, got {_shown(corners)}; correct or delete the object.",
                str(file),
            )
            continue
        # Some tools count Pascal's pixels from 0 after all.
        xmin, ymin = max(0, xmin - first_pixel), max(0, ymin - first_pixel)
        yield Box(str(file), (xmin, ymin, xmax - first_pixel + 1, ymax - first_pixel + 1), name)


def from_coco(file: Path, paths: Sequence[str]) -> Iterator[Box]:
    """The boxes of a COCO file (x, y, width, height; floats), without its crowd regions.

    The edges are rounded to whole pixels, and a box keeps at least one pixel. A ``file_name`` of
    the file is one of ``paths``, or the name of the only picture so called.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        files = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        boxes = [
            (files[box["image_id"]], tuple(map(float, box["bbox"])), names[box["category_id"]])
            for box in content["annotations"]
            if not box.get("iscrowd")
        ]
    except Exception as error:  # what damaged JSON makes its readers raise cannot be known
        raise CamtrainValueError(
            f"{file} must be a COCO file with images, annotations and categories, but cannot be "
            f"read ({one_line(error)}); export it again, or use boxes.csv."
        ) from error
    path_of = _paths_by_file_name(file, paths, {file_name for file_name, _, _ in boxes})
    for file_name, numbers, name in boxes:
        are_near = all(abs(number) < _FARTHEST / 2 for number in numbers)  # NaN is not
        if len(numbers) != 4 or not are_near or min(numbers[2:]) < 0:
            refuse_box(
                f"{file}: expected x, y, width, height in the bbox of {file_name:.200}, got "
                f"{_shown([f'{number:g}' for number in numbers])}; correct or delete it.",
                path_of.get(file_name, file_name),
            )
        else:
            yield Box(path_of.get(file_name, file_name), from_xywh(*numbers), name)


def _shown(values: Iterable[object], separator: str = ", ") -> str:
    """Values of a file for a message, which may be long and many."""
    return f"{separator.join(map(str, islice(values, 8))):.200}"


def from_xywh(x: float, y: float, width: float, height: float) -> tuple[int, int, int, int]:
    """A box of COCO or CUB as half-open xyxy, its edges rounded, at least one pixel large.

    Example:
        >>> from_xywh(60.0, 27.0, 325.0, 304.0)
        (60, 27, 385, 331)
    """
    xmin, ymin = max(0, round(x)), max(0, round(y))
    return xmin, ymin, max(xmin + 1, round(x + width)), max(ymin + 1, round(y + height))


def _paths_by_file_name(file: Path, paths: Sequence[str], file_names: set[str]) -> dict[str, str]:
    """The path of each picture that a COCO file names, with or without its folders."""
    with_folders = file_names & set(paths)
    bare_names = file_names - with_folders
    paths_of: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if (name := path.rpartition("/")[2]) in bare_names:
            paths_of[name].append(path)
    ambiguous = sorted(name for name, same_name in paths_of.items() if len(same_name) > 1)
    if ambiguous:
        raise CamtrainValueError(
            f"{file} names the picture {ambiguous[0]}, and there are "
            f"{len(paths_of[ambiguous[0]])} of this name; "
            "write file_name with folders, relative to the data folder."
        )
    return {name: name for name in with_folders} | {name: path for name, [path] in paths_of.items()}


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


@dataclass(frozen=True, eq=False)
class XmlBoxes:
    """Boxes in one XML file per picture, which is read when its boxes are asked for.

    Half a million files would take minutes, and a training looks at few of their boxes.
    """

    listing: Listing
    names: Sequence[str]  # of the K classes, as the files spell them
    # Where the file of a picture may be, relative to the data folder; the first that exists is
    # read. {parent} is the picture's folder, {stem} its name without ending, {name} its class.
    templates: Sequence[str]
    first_pixel: int  # number of the first pixel: 1 for Pascal VOC, 0 for ILSVRC

    def __call__(self, row: int) -> Tensor:
        """The boxes of the picture at ``row``."""
        file, names = self.file_of(row)
        if file is None:
            return no_boxes(row)
        boxes = [box.box_xyxy for box in from_xml(file, first_pixel=self.first_pixel, names=names)]
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
    ``root/annotations.json`` (COCO), or Pascal VOC XML files beside the pictures
    (``cat/1.jpg``: ``cat/1.xml``), if ``has_xml`` says that there are any.
    """
    root, names = listing.root, listing.class_names
    files = [file for name in (_CSV, *_COCO) if (file := root / name).is_file()]
    if len(files) + has_xml > 1:
        places = [file.name for file in files] + ["XML files beside the pictures"] * has_xml
        raise CamtrainValueError(
            f"{root} must hold its boxes in one place, but has {' and '.join(places)}; delete or "
            "rename all but one."
        )
    if has_xml:
        xml = XmlBoxes(listing, names, ["{parent}/{stem}.xml"], first_pixel=1)
        if all(xml.file_of(row)[0] is None for row in range(len(listing.paths))):
            reason = (
                "are in XML files that no picture is named like, as cat/1.jpg is like cat/1.xml"
            )
            _refuse_all(f"{reason}; rename them", listing)
        return replace(listing, boxes=xml)
    if not files:
        return listing
    [file] = files
    boxes = from_csv(file) if file.name == _CSV else from_coco(file, listing.paths)
    return replace(listing, boxes=match_boxes(boxes, listing, names))
