"""Pictures named by a CSV file: ``path,label`` or ``path,label,split``."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from camtrain.data.boxes import find_boxes
from camtrain.data.classes import in_order
from camtrain.data.lists import check_first, find
from camtrain.data.paths import PathList, path_in, utf8_lines
from camtrain.data.source import UNDECIDED, Labels, Listing, Split, split_number
from camtrain.errors import CamtrainValueError

_SEPARATOR = ";"


def csv_listing(root: Path) -> Listing:
    """The pictures of ``root/labels.csv``, or of ``root`` itself if that is the file.

    Columns ``path``, relative to the file's folder or absolute, ``label``, the name of a class, and
    perhaps ``split``: train, val or test, in every row or in none. Labels of a picture separated by
    ``;`` make all labels multi-hot; only then may one be empty, which means of no class. For boxes
    see ``find_boxes``.
    """
    file = root if root.is_file() else find(root, ["labels.csv"], "the list path,label[,split]")
    paths, names, splits = _rows(file)
    labels, class_names = _labels(file, names)
    listed = PathList.of(paths)
    check_first(file.parent / paths[0], file)
    return Listing(
        root=file.parent,
        paths=listed,
        labels=labels,
        splits=np.array(splits, np.int8),
        class_names=class_names,
        boxes=find_boxes(
            file.parent, listed, labels, class_names, has_xml=_has_xml(file.parent, paths)
        ),
    )


def _rows(file: Path) -> tuple[list[str], list[str], list[int]]:
    """Paths, labels as written, split numbers."""
    reader = csv.DictReader(utf8_lines(file))
    columns = reader.fieldnames or ()
    missing = [column for column in ("path", "label") if column not in columns]
    if missing:
        raise CamtrainValueError(
            f"{file} must start with the line path,label or path,label,split, but it lacks "
            f"{', '.join(missing)}; add the header."
        )
    folder = os.path.abspath(file.parent)
    table = [(path_in(folder, row["path"]), row["label"], row.get("split", "")) for row in reader]
    numbers: dict[str, int] = {split: split_number(split) for split in get_args(Split)}
    if "split" not in columns:
        numbers = {"": UNDECIDED}
    seen: set[str] = set()
    for line, (path, label, split) in enumerate(table, start=2):
        if not path or label is None or split not in numbers:
            expected = " or ".join(numbers) if "split" in columns else ""
            raise CamtrainValueError(
                f"{file}, line {line}: expected a path, a label"
                f"{f' and a split ({expected})' if expected else ''}, got "
                f"{path or ''},{label or ''},{split or ''}; correct or delete the line."
            )
        if path in seen:
            raise CamtrainValueError(
                f"{file}, line {line}: {path} is named a second time; write several labels of a "
                f"picture as a{_SEPARATOR}b, or delete the line."
            )
        seen.add(path)
    if not table:
        raise CamtrainValueError(f"{file} names no pictures; add lines below the header.")
    paths, labels, splits = zip(*table, strict=True)
    return list(paths), list(labels), [numbers[split] for split in splits]


def _labels(file: Path, texts: Sequence[str]) -> tuple[Labels, tuple[str, ...]]:
    """Labels, class numbers or multi-hot, and the class names."""
    sets = [[name for part in text.split(_SEPARATOR) if (name := part.strip())] for text in texts]
    class_names = in_order({name for names in sets for name in names})
    number = {name: place for place, name in enumerate(class_names)}
    if any(_SEPARATOR in text for text in texts):
        hot = np.zeros((len(sets), len(class_names)), np.bool_)
        for row, names in enumerate(sets):
            hot[row, [number[name] for name in names]] = True
        return hot, class_names
    for line, names in enumerate(sets, start=2):
        if not names:
            raise CamtrainValueError(
                f"{file}, line {line}: the label is empty; write the class, or delete the line. "
                f"Pictures of no class need a list with several labels somewhere, a{_SEPARATOR}b."
            )
    return np.array([number[name] for names in sets for name in names], np.int64), class_names


def _has_xml(folder: Path, paths: Sequence[str]) -> bool:
    """Whether XML files lie beside the pictures."""
    parents = {os.path.dirname(folder / path) for path in paths}
    return any(
        name.endswith(".xml")
        for parent in parents
        if os.path.isdir(parent)
        for name in os.listdir(parent)
    )
