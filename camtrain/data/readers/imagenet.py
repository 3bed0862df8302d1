"""ImageNet in the layouts that people keep it in (ILSVRC2012; Russakovsky et al., IJCV 2015).

Two orders of the 1,000 classes are in use: sorted by WordNet id (WNID), 0..999, as networks count;
and the devkit's ILSVRC2012_ID, 1..1000. Each list says here which one it has.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from torch import Tensor

from camtrain.data.box_files import from_csv
from camtrain.data.boxes import BoxTable, XmlBoxes, match_boxes
from camtrain.data.decoding import IMAGE_SUFFIXES
from camtrain.data.lists import Line, csv_reader, lines_of
from camtrain.data.source import Listing, Split, no_boxes, split_number
from camtrain.data.tree import Tree, scan, subfolders, top_of
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError, join_first, one_line

_WNID = re.compile(r"n\d{8}")

_WORDS = ("synset_words.txt", "caffe_ilsvrc12/synset_words.txt", "LOC_synset_mapping.txt")
_DEVKITS = ("ILSVRC2012_devkit_t12/data", "devkit/data", "data", "ILSVRC2012_devkit_t12")
_LABELS = ("val.txt", "caffe_ilsvrc12/val.txt", "val_list.txt")
_SYNSETS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
_SOLUTION = "LOC_val_solution.csv"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"

_HOMES = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "")
_ANNOTATIONS = ("ILSVRC/Annotations/CLS-LOC", "Annotations/CLS-LOC", "Annotations", "Annotation")
_BOX_FOLDERS = (*_ANNOTATIONS, "bbox", "bboxes")
_XML = ("{name}/{stem}.xml", "train/{name}/{stem}.xml", "val/{stem}.xml", "{stem}.xml")


def imagenet_listing(root: Path) -> Listing:
    """The pictures of ``root/{train,val,test}/WNID/*``, or of a flat ``root/val/*``.

    The folders may lie in ``root/ILSVRC/Data/CLS-LOC``, as Kaggle has them. For the classes of a
    flat val see ``_validation_classes``; a flat test has none and is left aside.

    The classes are those of ``synset_words.txt``, ``LOC_synset_mapping.txt`` or the devkit's
    ``meta.mat``, whether or not there are pictures, and go by their first word; without such a list
    they are the WNID folders. Either way they are sorted by WNID.

    Boxes come from the ILSVRC XML files (counted from 0, corners inclusive), ``WNID/NAME.xml``,
    ``train/WNID/NAME.xml``, ``val/NAME.xml`` or ``NAME.xml`` in ``ILSVRC/Annotations/CLS-LOC``,
    ``Annotations``, ``Annotation``, ``bbox`` or ``bboxes``, or beside the pictures; else from
    ``boxes.csv``, whose classes are WNIDs; else those of val from ``LOC_val_solution.csv``.
    """
    on_disk = {
        home: [split for split in get_args(Split) if _is_split(root / home / split)]
        for home in _HOMES
    }
    home = next((home for home, splits in on_disk.items() if splits), None)
    if home is None:
        raise CamtrainFileNotFoundError(
            f"{root} must hold train/WNID/*.JPEG, val/WNID/*.JPEG or val/*.JPEG, or them in "
            "ILSVRC/Data/CLS-LOC, but holds none; point --data.root at the folder of ImageNet."
        )
    tops = {f"{home}/{split}".lstrip("/"): split_number(split) for split in on_disk[home]}
    tree = scan(root, list(tops))
    words = _read_words(root)
    classes = _classes(root, tree, words)
    wnids = sorted(set(classes)) if words is None else list(words)
    number = {wnid: place for place, wnid in enumerate(wnids)}
    unknown = sorted(set(classes) - set(number))
    if unknown:
        raise CamtrainValueError(
            f"{root} has pictures of the class {join_first(unknown)}, which its list of "
            f"{len(wnids)} classes lacks; correct the list, or remove the pictures."
        )
    labels = np.array([number[wnid] for wnid in classes], np.int64)
    splits = np.array([tops[top_of(folder, tops)] for folder in tree.folders], np.int8)
    listing = Listing(
        root=root,
        paths=tree.paths,
        labels=labels,
        splits=np.repeat(splits, tree.counts),
        class_names=tuple(wnids) if words is None else _readable_names(words),
        has_class_list=words is not None,
    )
    return replace(listing, boxes=_boxes(listing, wnids, has_xml=tree.has_xml))


def _is_split(folder: Path) -> bool:
    """Whether a folder holds WNID folders, or is val and holds pictures."""
    if any(_WNID.fullmatch(name) for name in subfolders(folder)):
        return True
    is_val = folder.name == "val" and folder.is_dir()
    return is_val and any(name.lower().endswith(IMAGE_SUFFIXES) for name in os.listdir(folder))


def _classes(root: Path, tree: Tree, words: Mapping[str, str] | None) -> list[str]:
    """The WNID of every picture: that of its folder, or that of a list."""
    folder_wnids = [
        next((part for part in folder.split("/") if _WNID.fullmatch(part)), "")
        for folder in tree.folders
    ]
    classes = [
        wnid
        for wnid, count in zip(folder_wnids, tree.counts.tolist(), strict=True)
        for _ in range(count)
    ]
    if all(classes):
        return classes
    wnids = sorted(set(folder_wnids) - {""}) if words is None else list(words)
    wnid_of = _validation_classes(root, wnids, is_whole=words is not None)
    for row, wnid in enumerate(classes):
        if wnid:
            continue
        name = _stem(tree.paths[row])
        if name not in wnid_of:
            raise CamtrainValueError(
                f"The list of validation classes has {len(wnid_of)} pictures, but not {name}, "
                f"which is {root / tree.paths[row]}; complete the list, or move the picture into "
                "the folder of its WNID."
            )
        classes[row] = wnid_of[name]
    return classes


def _boxes(listing: Listing, wnids: Sequence[str], *, has_xml: bool) -> Callable[[int], Tensor]:
    """The boxes in the first of the formats that is there, see ``imagenet_listing``."""
    root = listing.root
    folders = [name for name in _BOX_FOLDERS if (root / name).is_dir()]
    templates = [f"{folder}/{form}" for folder in folders for form in _XML]
    if has_xml:
        templates.append("{parent}/{stem}.xml")
    if templates:
        return XmlBoxes(listing, wnids, templates, first_pixel=0)
    if (root / "boxes.csv").is_file():
        return match_boxes(from_csv(root / "boxes.csv"), listing, wnids)
    if not (root / _SOLUTION).is_file():
        return no_boxes
    solution = _read_solution(root / _SOLUTION)
    rows, boxes_xyxy = [], []
    for row, path in enumerate(listing.paths):
        for box in solution.get(_stem(path), ("", []))[1]:
            rows.append(row)
            boxes_xyxy.append(box)
    return BoxTable(len(listing.paths), rows, boxes_xyxy)


def _read_words(root: Path) -> dict[str, str] | None:
    """The words of each class by WNID, sorted by WNID; None if there is no list of them.

    They come from ``synset_words.txt`` or ``LOC_synset_mapping.txt`` (``n01440764 tench, Tinca
    tinca``), else from the devkit's ``meta.mat``.
    """
    meta = _first_file(root, [f"{folder}/meta.mat" for folder in _DEVKITS])
    if file := _first_file(root, _WORDS):
        lines = lines_of(file, "wnid words", from_right=False)
        return dict(sorted((_wnid(line), line.fields[1]) for line in lines))
    return dict(sorted(_devkit_classes(meta).values())) if meta else None


def _readable_names(words: Mapping[str, str]) -> tuple[str, ...]:
    """The first word of each class, with the WNID where two would be called the same."""
    short = {wnid: text.split(",")[0].strip() for wnid, text in words.items()}
    counts = Counter(short.values())
    return tuple(name if counts[name] == 1 else f"{name} ({id_})" for id_, name in short.items())


def _validation_classes(root: Path, wnids: Sequence[str], *, is_whole: bool) -> dict[str, str]:
    """The WNID of each validation picture, by its name without ending.

    They come from the first of these files that ``root`` holds:

    1. ``LOC_val_solution.csv``: ``ILSVRC2012_val_00048981,n03995372 85 1 499 272``.
    2. ``val.txt`` or ``val_list.txt``: ``ILSVRC2012_val_00000001.JPEG 65``, the place in the sorted
       list of WNIDs; or a WNID instead of the number.
    3. ``imagenet_2012_validation_synset_labels.txt`` or ``synset_labels.txt``: one WNID per line,
       in the order of the pictures' numbers.
    4. ``data/ILSVRC2012_validation_ground_truth.txt`` of the devkit: one ILSVRC2012_ID per line, in
       the order of the pictures' numbers; ``meta.mat`` beside it says the WNID of each.

    Args:
        root: The data folder.
        wnids: The known classes, sorted.
        is_whole: Whether they are all classes of the data set, not only those with a folder.
    """
    if (root / _SOLUTION).is_file():
        return {name: wnid for name, (wnid, _) in _read_solution(root / _SOLUTION).items()}
    if labels := _first_file(root, _LABELS):
        return _read_labels(labels, wnids, is_whole)
    if synsets := _first_file(root, _SYNSETS):
        wnids_by_number = [_wnid(line) for line in lines_of(synsets, "wnid")]
    elif truth := _first_file(root, [f"{folder}/{_TRUTH}" for folder in _DEVKITS]):
        meta = truth.with_name("meta.mat")
        if not meta.is_file():
            raise CamtrainFileNotFoundError(
                f"{truth} numbers the classes as the devkit does, and {meta}, which says what they "
                "are, does not exist; put it there, or use val.txt."
            )
        classes = _devkit_classes(meta)
        numbers = (
            line.integer(0, start=1, below=len(classes) + 1)
            for line in lines_of(truth, "ILSVRC2012_ID")
        )
        wnids_by_number = [classes[number][0] for number in numbers]
    else:
        raise CamtrainFileNotFoundError(
            f"The validation pictures of {root} lie in no class folders, and no list names their "
            f"classes; put one of {_SOLUTION}, val.txt, {_SYNSETS[0]} or the devkit's "
            f"data/{_TRUTH} with meta.mat into {root}."
        )
    return {
        f"ILSVRC2012_val_{number:08d}": wnid for number, wnid in enumerate(wnids_by_number, start=1)
    }


def _read_solution(file: Path) -> dict[str, tuple[str, list[list[int]]]]:
    """WNID and boxes of each picture in ``LOC_val_solution.csv``; the boxes half-open.

    The file repeats ``WNID x0 y0 x1 y1`` for every box, counted from 0, corners inclusive.
    """
    solution = {}
    header = "ImageId,PredictionString"
    reader = csv_reader(file, header.split(","), header=header, advice="download the list again")
    for row in reader:
        words = (row["PredictionString"] or "").split()
        wnids, numbers = set(words[::5]), [word for n, word in enumerate(words) if n % 5]
        is_good = len(wnids) == 1 and len(words) % 5 == 0
        if not is_good or not all(word.isdecimal() for word in numbers):
            raise CamtrainValueError(
                f"{file}, line {reader.line_num}: expected {header} with WNID x0 y0 x1 y1 of one "
                f"class, got {','.join(str(value) for value in row.values())}; download the list "
                "again."
            )
        boxes = np.array(numbers, np.int64).reshape(-1, 4)
        boxes[:, 2:] += 1
        solution[row["ImageId"]] = (wnids.pop(), boxes.tolist())
    return solution


def _read_labels(file: Path, wnids: Sequence[str], is_whole: bool) -> dict[str, str]:
    """The WNID of each picture from a file of lines ``NAME.JPEG 65`` or ``NAME.JPEG WNID``.

    A number is a position in ``wnids``.
    """
    classes, largest = {}, -1
    for line in lines_of(file, "picture label"):
        name = _stem(line.fields[0])
        if _WNID.fullmatch(line.fields[1]):
            classes[name] = line.fields[1]
            continue
        number = line.integer(1)
        largest = max(largest, number)
        classes[name] = wnids[number] if number < len(wnids) else ""
    if largest >= len(wnids) or (largest >= 0 and not is_whole and largest != len(wnids) - 1):
        raise CamtrainValueError(
            f"{file} numbers the sorted classes up to {largest}, but {len(wnids)} are known; put "
            f"{_WORDS[0]}, which lists all of them, beside it."
        )
    return classes


def _devkit_classes(file: Path) -> dict[int, tuple[str, str]]:
    """WNID and words by ILSVRC2012_ID, from ``meta.mat``; synsets with children are left out."""
    from scipy.io import loadmat  # comes with scikit-learn; slow to import, and rarely needed
    from scipy.io.matlab import MatReadError

    damages = (MatReadError, ValueError, KeyError, TypeError, IndexError, NotImplementedError)
    try:
        synsets = loadmat(file, squeeze_me=True)["synsets"]
        fields = (synsets[name] for name in ("ILSVRC2012_ID", "WNID", "words", "num_children"))
        return {
            int(number): (str(wnid), str(words))
            for number, wnid, words, children in zip(*fields, strict=True)
            if int(children) == 0
        }
    except damages as error:
        raise CamtrainValueError(
            f"{file} must hold the synsets of ILSVRC2012, but cannot be read "
            f"({one_line(error)}); unpack the devkit again."
        ) from error


def _first_file(root: Path, names: Sequence[str]) -> Path | None:
    """The first of some files of ``root`` that exists."""
    return next((root / name for name in names if (root / name).is_file()), None)


def _stem(path: str) -> str:
    """The name of a file without its folders and endings."""
    return path.rpartition("/")[2].partition(".")[0]


def _wnid(line: Line) -> str:
    """The WNID in the first field of a line; raises if it is none."""
    if not _WNID.fullmatch(line.fields[0]):
        raise CamtrainValueError(
            f"{line.place}: expected a WordNet id such as n01440764, got "
            f"{line.fields[0]!r}; correct the line, or download the list again."
        )
    return line.fields[0]
