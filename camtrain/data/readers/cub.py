"""CUB-200-2011: 200 kinds of birds with a box each (Wah et al., CNS-TR-2011-001)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from camtrain.data.box_files import from_xywh
from camtrain.data.boxes import BoxTable
from camtrain.data.lists import Line, PathList, check_first_picture, find_one_of, lines_of
from camtrain.data.source import Listing, split_number
from camtrain.errors import CamtrainValueError


def cub_listing(root: Path) -> Listing:
    """The pictures of ``CUB_200_2011``: the folder itself, or the one that holds it.

    It reads five lists, joined by the picture's number: ``images.txt`` (below ``images/``),
    ``image_class_labels.txt`` and ``classes.txt`` (classes from 1), ``train_test_split.txt`` (1 for
    train, 0 for test), and ``bounding_boxes.txt`` (x, y, width, height). There is no val: it is
    split off train.

    The field counts x and y from 0 and takes x + width for the right edge, as the WSOL benchmark's
    list does, which then calls that edge inclusive; here it is exclusive.
    """
    folder = root / "CUB_200_2011" if (root / "CUB_200_2011").is_dir() else root
    images = _lines(folder, "images.txt", "image_id path")
    classes = _lines(folder, "classes.txt", "class_id name").values()
    labels = _lines(folder, "image_class_labels.txt", "image_id class_id", images)
    sides = _lines(folder, "train_test_split.txt", "image_id is_train", images)
    boxes = _lines(folder, "bounding_boxes.txt", "image_id x y width height", images)
    splits = (split_number("test"), split_number("train"))
    paths = [f"images/{line.fields[1]}" for line in images.values()]
    numbers = [labels[key].integer(1, start=1, below=len(classes) + 1) - 1 for key in images]
    boxes_xyxy = [from_xywh(*boxes[key].numbers(1, 2, 3, 4)) for key in images]
    check_first_picture(folder / paths[0], folder / "images.txt")
    return Listing(
        root=folder,
        paths=PathList.of(paths),
        labels=np.array(numbers, np.int64),
        splits=np.array([splits[sides[key].integer(1, below=2)] for key in images], np.int8),
        class_names=tuple(_readable_name(line.fields[1]) for line in classes),
        has_class_list=True,
        boxes=BoxTable(len(paths), range(len(paths)), boxes_xyxy),
    )


def _lines(
    folder: Path, name: str, form: str, images: dict[str, Line] | None = None
) -> dict[str, Line]:
    """The lines of a list by their first field; raises if one of ``images`` has no line."""
    file = find_one_of(folder, [name], f"the list {form} of CUB-200-2011")
    lines = {line.fields[0]: line for line in lines_of(file, form, from_right=False)}
    missing_keys = [key for key in images or () if key not in lines]
    if missing_keys:
        raise CamtrainValueError(
            f"{file} must have a line for every picture of images.txt, but lacks "
            f"{len(missing_keys)} of them, first number {missing_keys[0]}; download the data set "
            "again."
        )
    return lines


def _readable_name(name: str) -> str:
    """``001.Black_footed_Albatross`` as people write it: Black footed Albatross."""
    number, _, words = name.partition(".")
    return (words if number.isdecimal() and words else name).replace("_", " ")
