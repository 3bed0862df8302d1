"""Data sets of the Hugging Face Hub, and folders of parquet files, by the `datasets` library."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camtrain.data.box_files import Box, xywh_boxes
from camtrain.data.boxes import match_boxes
from camtrain.data.classes import sort_class_names
from camtrain.data.lists import PathList, notice
from camtrain.data.source import UNDECIDED, Labels, Listing, Split, split_number
from camtrain.errors import CamtrainValueError, needs_extra, one_line, warn
from camtrain.files import open_regular

_SPLITS: dict[str, Split] = {"train": "train", "validation": "val", "test": "test"}
_BOXES = ("bbox", "bboxes", "boxes")
_CATEGORIES = ("category", "categories", "label", "labels")


def hf_listing(
    place: str | Path,
    path_column: str = "path",
    label_column: str = "label",
    objects_column: str | None = None,
) -> Listing:
    """The pictures of ``ORG/NAME`` or ``ORG/NAME:CONFIG``, or of a folder of parquet files.

    The splits are train, validation and test, where there is one of them; else all are divided.
    Columns are found by their types: a picture; a class, or a list of classes, which makes the
    labels multi-hot; and objects, whose ``bbox`` are x, y, width, height in pixels and whose
    ``category`` are classes. Pictures without a class (-1) are left out. Nothing is streamed.

    Args:
        place: The name, or the folder.
        path_column: The column of the pictures, if several may be it.
        label_column: The column of the labels, which may also be texts or numbers.
        objects_column: The column of the objects.
    """
    parts = _load(place)
    columns = _Columns(next(iter(parts.values())).features, str(place))
    image = columns.find("path_column", path_column, _is_picture)
    label = columns.find("label_column", label_column, _is_class)
    objects = columns.find("objects_column", objects_column, _has_boxes, is_optional=True)
    splits: dict[str, Split] = {name: _SPLITS[name] for name in parts if name in _SPLITS}
    chosen = {name: part for name, part in parts.items() if name in splits or not splits}
    if skipped := parts.keys() - chosen.keys():
        notice(f"{place}: left out {', '.join(sorted(skipped))}, which is no split of training.")
    values = [value for part in chosen.values() for value in part[label]]
    labels, names, is_labelled = _labels(values, columns.features[label])
    rows = np.flatnonzero(is_labelled)
    if not len(rows):
        raise CamtrainValueError(
            f"The column {label} of {place} must hold classes, and no picture has one; name "
            "another with --data.label_column."
        )
    if len(rows) < len(values):
        warn(f"{len(values) - len(rows)} pictures of {place} have no class, and are left out.")
    paths = [f"{name}/{row:07d}" for name, part in chosen.items() for row in range(len(part))]
    numbers = [
        split_number(splits[name]) if splits else UNDECIDED
        for name, part in chosen.items()
        for _ in range(len(part))
    ]
    listing = Listing(
        root=Path(place).absolute(),
        paths=PathList.of(paths[row] for row in rows),
        labels=labels[rows],
        splits=np.array(numbers, np.int8)[rows],
        class_names=names,
        has_class_list=True,
        contents=_Contents([_undecoded(p, image) for p in chosen.values()], image, rows),
    )
    if objects is None:
        return listing
    entries = (entry for part in chosen.values() for entry in part[objects])
    boxes = _boxes(entries, _inner(columns.features[objects]), paths, str(place))
    return replace(listing, boxes=match_boxes(boxes, listing, names))


def _load(place: str | Path) -> dict[str, Any]:
    """The parts of a data set, of the type ``datasets.Dataset``, by name."""
    with needs_extra("The source hf", extra="hf"):
        import datasets
    name, _, config = (
        str(place).partition(":") if not os.path.isdir(place) else (str(place), "", "")
    )
    try:
        parts = dict(datasets.load_dataset(name, config or None))
    except Exception as error:  # of datasets, of the hub, of HTTP, of damaged files
        raise CamtrainValueError(
            f"The data set {place} cannot be read ({one_line(error)}); --data.root must be "
            "ORG/NAME of the Hugging Face Hub (private: run `hf auth login`), or a folder of "
            "parquet files."
        ) from error
    return {name: part for name, part in parts.items() if len(part)}


@dataclass(frozen=True)
class _Columns:
    features: Mapping[str, Any]
    place: str

    def find(
        self,
        option: str,
        name: str | None,
        fits: Callable[[Any], bool],
        *,
        is_optional: bool = False,
    ) -> Any:  # noqa: ANN401
        """The column of this name, else the only one whose type fits; None if it is optional.

        Raises:
            CamtrainValueError: There is none, or there are several.
        """
        columns = [column for column, feature in self.features.items() if fits(feature)]
        if name in self.features and (name in columns or name != "path"):
            return name
        is_default = name in (None, "path", "label")
        if is_default and (len(columns) == 1 or (is_optional and not columns)):
            return columns[0] if columns else None
        expected = "name one" if is_default else f"got {name!r}"
        raise CamtrainValueError(
            f"{self.place} has the columns {', '.join(self.features)}, of which "
            f"{', '.join(columns) or 'none'} may be meant by --data.{option}; {expected}."
        )


def _is_picture(feature: Any) -> bool:  # noqa: ANN401
    """Whether a column holds pictures, also where a file does not call them so."""
    import datasets

    is_struct = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or is_struct


def _is_class(feature: Any) -> bool:  # noqa: ANN401
    """Whether a column holds classes, or lists of them."""
    return hasattr(_inner(feature), "names")


def _has_boxes(feature: Any) -> bool:  # noqa: ANN401
    """Whether a column holds objects: a list of records, or a record of lists."""
    inner = _inner(feature)
    return isinstance(inner, dict) and not inner.keys().isdisjoint(_BOXES)


def _inner(feature: Any) -> Any:  # noqa: ANN401
    """The type of the items of a list; of anything else its own."""
    return getattr(feature, "feature", feature)


def _labels(
    values: Sequence[Any],
    feature: Any,  # noqa: ANN401
) -> tuple[Labels, tuple[str, ...], NDArray[np.bool_]]:
    """Labels, class numbers or multi-hot, the class names, and which pictures have a label."""
    lists = [value if isinstance(value, list) else [value] for value in values]
    lists = [[item for item in items if item not in (None, -1)] for items in lists]
    names = getattr(_inner(feature), "names", None)
    if names is None:
        lists = [list(map(str, items)) for items in lists]
        names = sort_class_names({name for items in lists for name in items})
        number = {name: place for place, name in enumerate(names)}
        lists = [[number[name] for name in items] for items in lists]
    if _inner(feature) is feature:
        is_labelled = np.array([len(items) > 0 for items in lists], np.bool_)
        return np.array([[*items, -1][0] for items in lists], np.int64), tuple(names), is_labelled
    hot = np.zeros((len(lists), len(names)), np.bool_)
    for row, items in enumerate(lists):
        hot[row, items] = True
    return hot, tuple(names), np.ones(len(lists), np.bool_)


def _boxes(
    entries: Iterable[Any], fields: Mapping[str, Any], paths: Sequence[str], place: str
) -> Iterator[Box]:
    """The boxes of the objects of each picture."""
    box_name = next(name for name in _BOXES if name in fields)
    category = next((name for name in _CATEGORIES if name in fields), None)
    names = getattr(_inner(fields[category]), "names", None) if category else None
    for path, entry in zip(paths, entries, strict=True):
        records = entry or []
        if isinstance(records, dict):
            lists = [records[box_name] or [], (category and records[category]) or []]
            records = [{box_name: box, category: label} for box, label in zip_longest(*lists)]
        for record in filter(None, records):
            label = record.get(category)
            name = "" if label in (None, -1) else str(label)
            if names and isinstance(label, int) and 0 <= label < len(names):
                name = names[label]
            numbers = (nan if number is None else number for number in record[box_name] or ())
            yield from xywh_boxes(place, path, map(float, numbers), name)


def _undecoded(part: Any, column: str) -> Any:  # noqa: ANN401
    """A part whose pictures are given as they are stored."""
    import datasets

    return part.select_columns([column]).cast_column(column, datasets.Image(decode=False))


@dataclass(frozen=True, eq=False)
class _Contents:
    """The files of the pictures, as they are stored in the parts of a data set."""

    parts: Sequence[Any]  # of the type datasets.Dataset
    column: str
    rows: NDArray[np.int64]  # (N,), of each picture in all parts together

    def __call__(self, row: int) -> bytes:
        """The file of the picture at ``row``."""
        place = int(self.rows[row])
        for part in self.parts:
            if place < len(part):
                break
            place -= len(part)
        entry = part[place][self.column] or {"bytes": b"", "path": None}  # no picture: damaged
        if entry["bytes"] is not None:
            return bytes(entry["bytes"])
        with open_regular(entry["path"]) as file:
            return file.read()
