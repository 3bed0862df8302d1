"""Readers of box files: one function per format, all of them give half-open xyxy.

A reader turns the file's own convention into half-open boxes of pixels counted from 0, and refuses
boxes without area.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from camtrain.data.box_errors import refuse_box
from camtrain.data.paths import path_in, utf8_lines
from camtrain.errors import CamtrainValueError

_COLUMNS = ("path", "xmin", "ymin", "xmax", "ymax")


class Box(NamedTuple):
    """One box of a file: path relative to the data folder, half-open xyxy, class ("": not said)."""

    path: str
    box_xyxy: tuple[int, int, int, int]
    class_name: str


def from_csv(file: Path) -> Iterator[Box]:
    """Rows of ``path,xmin,ymin,xmax,ymax[,class]``, half-open already.

    Raises:
        CamtrainValueError: A column is missing, or a row is malformed or its box has no area; the
            line is named.
    """
    reader = csv.DictReader(utf8_lines(file))
    folder = os.path.abspath(file.parent)
    missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise CamtrainValueError(
            f"{file} must start with the line path,xmin,ymin,xmax,ymax,class, but it lacks "
            f"{', '.join(missing)}; add the header."
        )
    for row in reader:
        try:
            xmin, ymin, xmax, ymax = (int(row[column]) for column in _COLUMNS[1:])
        except (TypeError, ValueError):
            xmin = ymin = xmax = ymax = 0
        if not (0 <= xmin < xmax and 0 <= ymin < ymax):
            refuse_box(
                f"{file}, line {reader.line_num}: expected whole numbers, 0 <= xmin < xmax "
                f"and 0 <= ymin < ymax, got {','.join(str(value) for value in row.values())}; "
                "correct or delete the line.",
                row["path"] or "",
            )
            continue
        yield Box(
            path_in(folder, row["path"] or ""), (xmin, ymin, xmax, ymax), row.get("class") or ""
        )


def from_xml(file: Path, *, first: int, names: Collection[str]) -> Iterator[Box]:
    """The objects of some classes in an XML file of Pascal VOC or ILSVRC; corners are inclusive.

    Args:
        file: One picture's annotation: ``object/name`` and ``object/bndbox/xmin`` and so on.
        first: Number of the first pixel: 1 for Pascal VOC, 0 for ILSVRC.
        names: The classes; objects of others are passed over.

    Raises:
        CamtrainValueError: The file is no such XML, or a box has no area.
    """
    try:
        objects = list(ElementTree.parse(file).getroot().iter("object"))
    except ElementTree.ParseError as error:
        refuse_box(
            f"{file} must be the XML of a picture's boxes, but cannot be read ({error}); replace "
            "or delete it.",
            str(file),
        )
        return
    for each in objects:
        name = (each.findtext("name") or "").strip()
        if name not in names:
            continue
        corners = [each.findtext(f"bndbox/{column}") for column in _COLUMNS[1:]]
        try:
            xmin, ymin, xmax, ymax = (round(float(corner or "")) for corner in corners)
        except ValueError:
            xmin, ymin, xmax, ymax = 0, 0, -1, -1
        if xmin > xmax or ymin > ymax:
            refuse_box(
                f"{file}: expected numbers with xmin <= xmax and ymin <= ymax in the bndbox of "
                f"{name}, got {', '.join(str(corner) for corner in corners)}; correct or delete "
                "the object.",
                str(file),
            )
            continue
        # Some tools count Pascal's pixels from 0 after all.
        box_xyxy = (max(0, xmin - first), max(0, ymin - first), xmax - first + 1, ymax - first + 1)
        yield Box(str(file), box_xyxy, name)


def from_coco(file: Path, paths: Sequence[str]) -> Iterator[Box]:
    """The boxes of a COCO file (x, y, width, height; floats), without its crowd regions.

    The edges are rounded to whole pixels, and a box keeps at least one pixel.

    Args:
        file: With ``images``, ``annotations`` and ``categories``.
        paths: Of the pictures: a ``file_name`` is one of them, or the name of the only one so
            called.

    Raises:
        CamtrainValueError: The file is no such JSON, a box has no four numbers, or a name without
            folders is that of several pictures.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {each["id"]: str(each["name"]) for each in content["categories"]}
        places = {each["id"]: str(each["file_name"]) for each in content["images"]}
        found = [
            (places[each["image_id"]], tuple(map(float, each["bbox"])), names[each["category_id"]])
            for each in content["annotations"]
            if not each.get("iscrowd")
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CamtrainValueError(
            f"{file} must be a COCO file with images, annotations and categories, but cannot be "
            f"read ({type(error).__name__}: {error}); export it again, or use boxes.csv."
        ) from error
    path_of = _by_name(file, paths, {place for place, _, _ in found})
    for place, numbers, name in found:
        if len(numbers) != 4 or min(numbers[2:]) < 0:
            refuse_box(
                f"{file}: expected x, y, width, height in the bbox of {place}, got "
                f"{', '.join(f'{number:g}' for number in numbers)}; correct or delete it.",
                path_of.get(place, place),
            )
            continue
        if place in path_of:
            yield Box(path_of[place], from_xywh(*numbers), name)


def from_xywh(x: float, y: float, width: float, height: float) -> tuple[int, int, int, int]:
    """A box of COCO or CUB as half-open xyxy, its edges rounded, at least one pixel large.

    Example:
        >>> from_xywh(60.0, 27.0, 325.0, 304.0)
        (60, 27, 385, 331)
    """
    xmin, ymin = max(0, round(x)), max(0, round(y))
    return xmin, ymin, max(xmin + 1, round(x + width)), max(ymin + 1, round(y + height))


def _by_name(file: Path, paths: Sequence[str], places: set[str]) -> dict[str, str]:
    """The path of each picture that a COCO file names, with or without its folders."""
    full = places & set(paths)
    rest = places - full
    names = {path.rpartition("/")[2]: path for path in paths}
    counts: Counter[str] = Counter(
        name for path in paths if (name := path.rpartition("/")[2]) in rest
    )
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise CamtrainValueError(
            f"{file} names the picture {twice[0]}, and there are {counts[twice[0]]} of this name; "
            "write file_name with folders, relative to the data folder."
        )
    return {place: place for place in full} | {name: names[name] for name in counts}
