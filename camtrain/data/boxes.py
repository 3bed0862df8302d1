"""Boxes that lie beside the pictures: one reader per format, all of them half-open xyxy."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from camtrain.data.box_errors import refuse_box
from camtrain.errors import CamtrainValueError

_COLUMNS = ("path", "xmin", "ymin", "xmax", "ymax")


class Box(NamedTuple):
    """One box of a file: path relative to the data folder, half-open xyxy, class ("": not said)."""

    path: str
    box_xyxy: tuple[int, int, int, int]
    class_name: str


def read_boxes(root: Path, class_of: Mapping[str, str]) -> dict[str, Tensor]:
    """The boxes of pictures, from ``root/boxes.csv``.

    Localization concerns the labelled class, so boxes of another class than the picture's are left
    out; boxes that name no class count.

    Args:
        root: The data folder; without a file of boxes there are none.
        class_of: The wanted pictures: path relative to ``root``, with forward slashes, to class.

    Returns:
        Path to (n, 4) int64, half-open xyxy in pixels of the picture; only pictures that have
        boxes.

    Raises:
        CamtrainValueError: A column is missing, or a row is malformed or its box has no area; the
            line is named.
    """
    file = root / "boxes.csv"
    if not file.is_file():
        return {}
    boxes = defaultdict(list)
    for path, box_xyxy, class_name in _from_csv(file):
        if path in class_of and class_name in ("", class_of[path]):
            boxes[path].append(box_xyxy)
    return {path: torch.tensor(rows, dtype=torch.int64) for path, rows in boxes.items()}


def _from_csv(file: Path) -> Iterator[Box]:
    """Rows of ``path,xmin,ymin,xmax,ymax[,class]``, half-open already."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
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
            yield Box(row["path"], (xmin, ymin, xmax, ymax), row.get("class") or "")
