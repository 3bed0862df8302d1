"""Pictures named by a CSV file: ``path,label`` or ``path,label,split``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from camtrain.data.boxes import with_boxes
from camtrain.data.classes import sort_class_names
from camtrain.data.lists import PathList, check_first_picture, csv_reader, find_one_of, path_in
from camtrain.data.source import UNDECIDED, Labels, Listing, Split, split_number
from camtrain.errors import CamtrainValueError

_SEPARATOR = ";"


def csv_listing(root: Path, path_column: str = "path", label_column: str = "label") -> Listing:
    """The pictures of ``root/labels.csv``, or of ``root`` itself if that is the file.

    Columns ``path``, relative to the file's folder or absolute, ``label``, the name of a class, and
    perhaps ``split``: train, val or test, in every row or in none. Labels of a picture separated by
    ``;`` make all labels multi-hot; then, and in a list of one class, a label may be empty, which
    means of no class. For boxes see ``with_boxes``; for spellings of the file, ``csv_reader``.

    Args:
        root: The data folder, or the file.
        path_column: Another name of the column ``path``, in any case.
        label_column: Another name of the column ``label``.
    """
    file = (
        root if root.is_file() else find_one_of(root, ["labels.csv"], "the list path,label[,split]")
    )
    folder = os.path.abspath(file.parent)
    path_column, label_column = path_column.lower(), label_column.lower()
    header = f"{path_column},{label_column}"
    reader = csv_reader(
        file,
        (path_column, label_column),
        header=f"{header} or {header},split",
        advice="add the header, or name its columns with --data.path_column and "
        "--data.label_column",
    )
    has_splits = "split" in (reader.fieldnames or ())
    numbers: dict[str | None, int] = {split: split_number(split) for split in get_args(Split)}
    expected = f"a path, a label and a split ({' or '.join(get_args(Split))})"
    if not has_splits:
        numbers, expected = {None: UNDECIDED}, "a path, a label"
    lines: dict[str, int] = {}
    texts, splits = [], []
    for row in reader:
        place = f"{file}, line {reader.line_num}"
        path, label = path_in(folder, (row[path_column] or "").strip()), row[label_column]
        split = row["split"].strip() if row.get("split") else row.get("split")
        if not path or label is None or split not in numbers:
            raise CamtrainValueError(
                f"{place}: expected {expected}, got {path or ''},{label or ''},{split or ''}; "
                "correct or delete the line."
            )
        if path in lines:
            raise CamtrainValueError(
                f"{place}: {path} is named a second time; write several labels of a picture as "
                f"a{_SEPARATOR}b, or delete the line."
            )
        lines[path] = reader.line_num
        texts.append(label)
        splits.append(numbers[split])
    if not lines:
        raise CamtrainValueError(f"{file} names no pictures; add lines below the header.")
    paths = PathList.of(lines)
    labels, class_names = _labels(file, texts, list(lines.values()))
    check_first_picture(file.parent / paths[0], file)
    has_xml = _has_xml({os.path.dirname(file.parent / path) for path in lines})
    listing = Listing(
        root=file.parent,
        paths=paths,
        labels=labels,
        splits=np.array(splits, np.int8),
        class_names=class_names,
    )
    return with_boxes(listing, has_xml=has_xml)


def _labels(
    file: Path, texts: Sequence[str], lines: Sequence[int]
) -> tuple[Labels, tuple[str, ...]]:
    """Labels, class numbers or multi-hot, and the class names."""
    sets = [[name for part in text.split(_SEPARATOR) if (name := part.strip())] for text in texts]
    class_names = sort_class_names({name for names in sets for name in names})
    number = {name: place for place, name in enumerate(class_names)}
    if any(_SEPARATOR in text for text in texts) or (len(class_names) == 1 and not all(sets)):
        hot = np.zeros((len(sets), len(class_names)), np.bool_)
        for row, names in enumerate(sets):
            hot[row, [number[name] for name in names]] = True
        return hot, class_names
    for line, names in zip(lines, sets, strict=True):
        if not names:
            raise CamtrainValueError(
                f"{file}, line {line}: the label is empty; write the class, or delete the line. "
                f"Pictures of no class need a list of one class, or with several labels somewhere, "
                f"a{_SEPARATOR}b."
            )
    return np.array([number[name] for names in sets for name in names], np.int64), class_names


def _has_xml(folders: set[str]) -> bool:
    """Whether one of the folders, which need not exist, holds an XML file."""
    return any(
        name.endswith(".xml")
        for folder in folders
        if os.path.isdir(folder)
        for name in os.listdir(folder)
    )
