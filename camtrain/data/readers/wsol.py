"""The metadata folders of the WSOL benchmark (Choe et al., arXiv 2007.04178)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtrain.data.box_files import refuse_box
from camtrain.data.boxes import BoxTable
from camtrain.data.decoding import read_mask
from camtrain.data.lists import Line, PathList, check_first_picture, find_one_of, lines_of
from camtrain.data.source import Listing, Split, no_mask, split_number
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError

_BOX_FORM = "path,x0,y0,x1,y1"
_MASK_FORM = "path,mask,ignore"
_UNKNOWN = 255  # in a mask: neither object nor background


def wsol_listing(
    root: Path,
    metadata: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Listing:
    """The pictures that ``metadata/{train,val,test}/image_ids.txt`` name, in that order.

    Beside it ``class_labels.txt`` (``path,0``), and perhaps ``localization.txt``: boxes
    (``path,x0,y0,x1,y1``, counted from 0, corners inclusive, several lines per picture), or masks
    (``path,mask,ignore``: several masks per picture, the ignore mask in the first line).
    ``image_sizes.txt`` is not needed. Paths are relative to ``root``, or to ``root/images``. The
    lists have no class names: the classes are called by their numbers, which for ILSVRC are the
    places in the sorted list of WordNet ids.

    Args:
        root: The folder of the pictures and masks.
        metadata: The folder of the lists; None means ``root/metadata``, or ``root`` itself.
        class_names: Names of the classes in the order of their numbers.
    """
    folder = Path(metadata).expanduser().absolute() if metadata else root / "metadata"
    if not metadata and not folder.is_dir():
        folder = root
    splits = [split for split in get_args(Split) if (folder / split / "image_ids.txt").is_file()]
    if not splits:
        raise CamtrainFileNotFoundError(
            f"{folder} must hold train, val or test with image_ids.txt, but holds none of them; "
            "give the folder of the lists with --data.metadata."
        )
    ids: list[str] = []
    labels: list[int] = []
    numbers: list[int] = []
    boxes: list[tuple[int, tuple[int, ...]]] = []
    masks: dict[int, tuple[list[str], str]] = {}
    for split in splits:
        lines = lines_of(folder / split / "image_ids.txt", "path", separator=",")
        paths = [line.fields[0] for line in lines]
        rows = {path: row for row, path in enumerate(paths, start=len(ids))}
        _add_localization(folder / split / "localization.txt", rows, boxes, masks)
        ids += paths
        labels += _labels(folder / split, paths)
        numbers += [split_number(split)] * len(paths)
    base = root if (root / ids[0]).is_file() or not (root / "images").is_dir() else root / "images"
    check_first_picture(base / ids[0], folder / splits[0] / "image_ids.txt")
    count = max(labels) + 1
    if class_names is not None and count > len(class_names):
        raise CamtrainValueError(
            f"class_labels.txt in {folder} numbers {count} classes, and class_names has "
            f"{len(class_names)}; give the names of all, in order."
        )
    return Listing(
        root=base,
        paths=PathList.of(ids),
        labels=np.array(labels, np.int64),
        splits=np.array(numbers, np.int8),
        class_names=tuple(class_names or (str(number) for number in range(count))),
        has_class_list=True,
        boxes=BoxTable(len(ids), [row for row, _ in boxes], [box for _, box in boxes]),
        masks=partial(_mask, base, masks) if masks else no_mask,
    )


def _labels(folder: Path, ids: Sequence[str]) -> list[int]:
    """The class numbers of a split, in the order of its pictures."""
    file = find_one_of(folder, ["class_labels.txt"], "the list path,class")
    label_of = {
        line.fields[0]: line.integer(1) for line in lines_of(file, "path,class", separator=",")
    }
    missing_paths = [path for path in ids if path not in label_of]
    if missing_paths:
        raise CamtrainValueError(
            f"{file} must have a line for every picture of image_ids.txt, but lacks "
            f"{len(missing_paths)} of them, first {missing_paths[0]}; download the lists again."
        )
    return [label_of[path] for path in ids]


def _add_localization(
    file: Path,
    rows: Mapping[str, int],
    boxes: list[tuple[int, tuple[int, ...]]],
    masks: dict[int, tuple[list[str], str]],
) -> None:
    """Add the boxes or masks of one split to ``boxes`` or ``masks``; its list need not exist.

    Args:
        file: The list.
        rows: The row of each picture, by path.
        boxes: The row and the half-open box.
        masks: By row, the files of the masks, and that of the ignore mask.
    """
    if not file.is_file():
        return
    form = _MASK_FORM if _has_masks(file) else _BOX_FORM
    for line in lines_of(file, form, separator=","):
        row = rows.get(line.fields[0])
        if row is None:
            raise CamtrainValueError(
                f"{line.place}: {line.fields[0]} is not in image_ids.txt; expected {form} of "
                "one of its pictures; download the lists again."
            )
        if form == _BOX_FORM:
            boxes += [(row, box) for box in _read_box(line)]
        else:
            masks.setdefault(row, ([], line.fields[2]))[0].append(line.fields[1])


def _has_masks(file: Path) -> bool:
    """Whether a list of localization lists masks, not boxes."""
    with file.open(encoding="utf-8-sig") as lines:
        return lines.readline().count(",") == _MASK_FORM.count(",")


def _read_box(line: Line) -> list[tuple[int, ...]]:
    """The half-open box of a line, whose corners are inclusive; no box if it is refused."""
    xmin, ymin, xmax, ymax = (line.integer(column) for column in (1, 2, 3, 4))
    if xmin > xmax or ymin > ymax:
        refuse_box(
            f"{line.place}: expected x0 <= x1 and y0 <= y1, got {','.join(line.fields[1:])}; "
            "correct or delete the line.",
            line.fields[0],
        )
        return []
    return [(xmin, ymin, xmax + 1, ymax + 1)]


def _mask(root: Path, files: Mapping[int, tuple[Sequence[str], str]], row: int) -> Tensor | None:
    """The mask of the picture at ``row``, (H, W) uint8 of 0, 1 and 255, if there is one.

    A pixel is 1 if it belongs to the object in any of the masks, else 255 if the ignore mask covers
    it (the benchmark's evaluation.py, ``get_mask``). ``files`` holds by row the files of the masks,
    and that of the ignore mask or "".
    """
    if row not in files:
        return None
    names, ignore = files[row]
    mask = np.logical_or.reduce(_read_masks(root, names)).astype(np.uint8)
    if ignore:
        *_, is_unknown = _read_masks(root, [names[0], ignore])
        mask[is_unknown & (mask == 0)] = _UNKNOWN
    return torch.from_numpy(mask)


def _read_masks(root: Path, names: Sequence[str]) -> list[NDArray[np.bool_]]:
    """The masks in some files; raises if their sizes differ."""
    masks = [read_mask(root / name) for name in names]
    if len({mask.shape for mask in masks}) > 1:
        sizes = ", ".join(
            f"{name}: {mask.shape[1]} x {mask.shape[0]}"
            for name, mask in zip(names, masks, strict=True)
        )
        raise CamtrainValueError(
            f"The masks of one picture must have one size, but those in {root} have {sizes}; "
            "replace the wrong one."
        )
    return masks
