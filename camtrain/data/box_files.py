"""Boxes in files: CSV, COCO, Pascal VOC and YOLO; half-open xyxy outside of them."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import yaml

from camtrain.data.faults import refuse
from camtrain.data.lists import csv_reader, path_in
from camtrain.errors import CamtrainValueError, one_line
from camtrain.files import check_nested, read_utf8, write_text
from camtrain.labels import normal_form


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
        yield from xywh_boxes(file, path_of.get(file_name, file_name), numbers, name)


def xywh_boxes(place: object, path: str, numbers: Iterable[float], name: str) -> Iterator[Box]:
    """A box of COCO of the picture ``path``; none if it is refused. ``place`` is of the message."""
    values = list(numbers)
    are_near = all(abs(number) < _FARTHEST / 2 for number in values)  # NaN is not
    if len(values) != 4 or not are_near or min(values[2:]) < 0:
        refuse_box(
            f"{place}: expected x, y, width, height in the bbox of {path:.200}, got "
            f"{_shown([f'{number:g}' for number in values])}; correct or delete it.",
            path,
        )
    else:
        yield Box(path, from_xywh(*values), name)


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


def yolo_names(file: Path) -> dict[int, str]:
    """The class names of a YOLO ``data.yaml`` by their numbers; it holds a list or a mapping."""
    try:
        names = yaml.safe_load(read_utf8(file))["names"]
        check_nested(names)
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(number): str(name) for number, name in pairs}
    except Exception as error:  # what damaged YAML makes its parser raise cannot be known
        raise CamtrainValueError(
            f"{file} must hold the names of the classes of YOLO boxes, but cannot be read "
            f"({one_line(error)}); write names: [NAME, ...] or delete it."
        ) from error


def from_yolo(
    file: Path, size_hw: tuple[int, int], classes: Mapping[int, str], names: Collection[str]
) -> Iterator[Box]:
    """The objects of some classes in the YOLO text file of one picture.

    Each line holds ``class x y width height``, and perhaps a score: the number of the class, and
    the centre and size of the box in parts of the picture. Edges are rounded to whole pixels.
    """
    height, width = size_hw
    forms = set(map(normal_form, names))
    for number, line in enumerate(read_utf8(file).splitlines(), start=1):
        fields = line.split()
        try:
            name = classes[int(fields[0])] if fields else ""
            x, y, w, h = map(float, fields[1:5] if len(fields) in (5, 6) else ())
            is_right = all(0 <= part <= 1 for part in (x, y, w, h))
        except (LookupError, ValueError):
            is_right = False
        if fields and not is_right:
            refuse_box(
                f"{file}, line {number}: expected the number of a class of data.yaml, 0 to "
                f"{len(classes) - 1}, and x, y, width, height from 0 to 1, got "
                f"{_shown(fields, ' ')}; correct or delete the line.",
                str(file),
            )
        elif fields and normal_form(name) in forms:
            corner = ((x - w / 2) * width, (y - h / 2) * height)
            yield Box(str(file), from_xywh(*corner, w * width, h * height), name)


class BoxedPicture(NamedTuple):
    """The boxes of one picture for a file: (number of the class, its score, half-open xyxy)."""

    path: str  # relative to the folder of the pictures, with forward slashes
    size_hw: tuple[int, int]
    boxes: Sequence[tuple[int, float, Sequence[int]]]


def write_coco(file: Path, pictures: Iterable[BoxedPicture], names: Sequence[str]) -> None:
    """Write boxes of K named classes as COCO, with scores; ids count from 1.

    Pictures without boxes are listed too, and ``iscrowd`` is 0.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (path, (height, width), boxes) in enumerate(pictures, start=1):
        images.append({"id": number, "file_name": path, "width": width, "height": height})
        for label, score, (x0, y0, x1, y1) in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    write_text(file, json.dumps(content))


def write_yolo(folder: Path, pictures: Iterable[BoxedPicture], names: Sequence[str]) -> None:
    """Write boxes of K named classes as YOLO text files, and ``data.yaml`` with the names.

    The file of ``cat/1.jpg`` is ``cat/1.txt``, also where the picture has no boxes.
    """
    for path, (height, width), boxes in pictures:
        file = (folder / path).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        scale = (1 / (2 * width), 1 / (2 * height), 1 / width, 1 / height)
        lines = []
        for label, _, (x0, y0, x1, y1) in boxes:
            numbers = zip((x0 + x1, y0 + y1, x1 - x0, y1 - y0), scale, strict=True)
            lines.append(f"{label} {' '.join(f'{value * part:.7f}' for value, part in numbers)}\n")
        write_text(file, "".join(lines))
    write_text(folder / "data.yaml", yaml.safe_dump({"names": dict(enumerate(names))}))
