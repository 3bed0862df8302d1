"""ImageNet in the layouts that people keep it in (ILSVRC2012; Russakovsky et al., IJCV 2015).

Two orders of the 1,000 classes are in use: sorted by WordNet id (WNID), 0..999, as networks count;
and the devkit's ILSVRC2012_ID, 1..1000. Each list says here which one it has.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from camtrain.data.boxes import BoxTable, XmlBoxes, from_csv, match_boxes
from camtrain.data.classes import text_of
from camtrain.data.lists import Line, lines_of
from camtrain.data.source import Listing, Split, no_boxes, split_number
from camtrain.data.tree import IMAGE_SUFFIXES, Tree, scan, subfolders
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError, one_line

WNID = re.compile(r"n\d{8}")

_WORDS = ("synset_words.txt", "caffe_ilsvrc12/synset_words.txt", "LOC_synset_mapping.txt")
_DEVKITS = ("ILSVRC2012_devkit_t12/data", "devkit/data", "data", "ILSVRC2012_devkit_t12")
_LABELS = ("val.txt", "caffe_ilsvrc12/val.txt", "val_list.txt")
_SYNSETS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
SOLUTION = "LOC_val_solution.csv"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def read_words(root: Path) -> dict[str, str] | None:
    """WNID to its words, sorted by WNID; None where no list has them.

    From ``synset_words.txt`` or ``LOC_synset_mapping.txt`` (``n01440764 tench, Tinca tinca``), else
    from the devkit's ``meta.mat``.
    """
    file = _first(root, _WORDS)
    if file is not None:
        words = {
            _wnid(line, 0): line.fields[1]
            for line in lines_of(file, "wnid words", from_right=False)
        }
    else:
        meta = _first(root, [f"{folder}/meta.mat" for folder in _DEVKITS])
        if meta is None:
            return None
        words = {wnid: text for wnid, text in _devkit_classes(meta).values()}
    return dict(sorted(words.items()))


def readable(words: Mapping[str, str]) -> tuple[str, ...]:
    """The first word of each class, with the WNID where two would be called the same.

    Example:
        >>> readable({"n02012849": "crane", "n02110341": "dalmatian, coach dog",
        ...           "n03126707": "crane"})
        ('crane (n02012849)', 'dalmatian', 'crane (n03126707)')
    """
    short = {wnid: text.split(",")[0].strip() for wnid, text in words.items()}
    counts = Counter(short.values())
    return tuple(name if counts[name] == 1 else f"{name} ({id_})" for id_, name in short.items())


def validation_classes(root: Path, wnids: Sequence[str], *, is_whole: bool) -> dict[str, str]:
    """The WNID of each validation picture, by its name without ending.

    From the first that exists, below ``root``:

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
        is_whole: They are all classes of the data set, and not only those with a folder.
    """
    if (root / SOLUTION).is_file():
        return {name: wnid for name, (wnid, _) in read_solution(root / SOLUTION).items()}
    labels, synsets = _first(root, _LABELS), _first(root, _SYNSETS)
    truth = _first(root, [f"{folder}/{_TRUTH}" for folder in _DEVKITS])
    if labels is not None:
        return _numbered(labels, wnids, is_whole)
    if synsets is not None:
        return {
            _name(number): _wnid(line, 0)
            for number, line in enumerate(lines_of(synsets, "wnid"), start=1)
        }
    if truth is None:
        raise CamtrainFileNotFoundError(
            f"The validation pictures of {root} lie in no class folders, and no list names their "
            f"classes; put one of {SOLUTION}, val.txt, {_SYNSETS[0]} or the devkit's "
            f"data/{_TRUTH} with meta.mat into {root}."
        )
    meta = truth.with_name("meta.mat")
    if not meta.is_file():
        raise CamtrainFileNotFoundError(
            f"{truth} numbers the classes as the devkit does, and {meta}, which says what they "
            "are, does not exist; put it there, or use val.txt."
        )
    classes = _devkit_classes(meta)
    return {
        _name(number): classes[line.integer(0, first=1, below=len(classes) + 1)][0]
        for number, line in enumerate(lines_of(truth, "ILSVRC2012_ID"), start=1)
    }


def read_solution(file: Path) -> dict[str, tuple[str, list[tuple[int, int, int, int]]]]:
    """WNID and boxes of each picture in ``LOC_val_solution.csv``; the boxes half-open.

    The file repeats ``WNID x0 y0 x1 y1`` for every box, counted from 0, corners inclusive.
    """
    row_boxes = {}
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            words = (row.get("PredictionString") or "").split()
            wnids, numbers = set(words[::5]), [word for n, word in enumerate(words) if n % 5]
            is_good = len(wnids) == 1 and len(words) % 5 == 0 and "ImageId" in row
            if not is_good or not all(word.isdecimal() for word in numbers):
                raise CamtrainValueError(
                    f"{file}, line {reader.line_num}: expected ImageId,PredictionString with "
                    f"WNID x0 y0 x1 y1 of one class, got {','.join(str(v) for v in row.values())}; "
                    "download the list again."
                )
            corners = list(map(int, numbers))
            boxes = [
                (corners[n], corners[n + 1], corners[n + 2] + 1, corners[n + 3] + 1)
                for n in range(0, len(corners), 4)
            ]
            row_boxes[row["ImageId"]] = (wnids.pop(), boxes)
    return row_boxes


def _numbered(file: Path, wnids: Sequence[str], is_whole: bool) -> dict[str, str]:
    """``ILSVRC2012_val_00000001.JPEG 65``, places in the sorted WNIDs, or WNIDs."""
    classes, last = {}, -1
    for line in lines_of(file, "picture label"):
        name = line.fields[0].rpartition("/")[2].partition(".")[0]
        if WNID.fullmatch(line.fields[1]):
            classes[name] = line.fields[1]
            continue
        number = line.integer(1)
        last = max(last, number)
        classes[name] = wnids[number] if number < len(wnids) else ""
    if last >= len(wnids) or (last >= 0 and not is_whole and last != len(wnids) - 1):
        raise CamtrainValueError(
            f"{file} numbers the sorted classes up to {last}, but {len(wnids)} are known; put "
            f"{_WORDS[0]}, which lists all of them, beside it."
        )
    return classes


def _devkit_classes(file: Path) -> dict[int, tuple[str, str]]:
    """ILSVRC2012_ID to WNID and words, of the synsets without children, from ``meta.mat``."""
    from scipy.io import loadmat  # comes with scikit-learn; only who has a devkit pays for it
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


def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


def _name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def _wnid(line: Line, column: int) -> str:
    if not WNID.fullmatch(line.fields[column]):
        raise CamtrainValueError(
            f"{line.place}: expected a WordNet id such as n01440764, got "
            f"{line.fields[column]!r}; correct the line, or download the list again."
        )
    return line.fields[column]


_HOMES = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "")
_ANNOTATIONS = ("ILSVRC/Annotations/CLS-LOC", "Annotations/CLS-LOC", "Annotations", "Annotation")
_BOX_FOLDERS = (*_ANNOTATIONS, "bbox", "bboxes")
_XML = ("{name}/{stem}.xml", "train/{name}/{stem}.xml", "val/{stem}.xml", "{stem}.xml")


def imagenet_listing(root: Path) -> Listing:
    """The pictures of ``root/{train,val,test}/WNID/*``, or of a flat ``root/val/*``.

    The folders may lie in ``root/ILSVRC/Data/CLS-LOC``, as Kaggle has them. For the classes of a
    flat val see ``validation_classes``; a flat test has none and is left aside.

    The classes are those of ``synset_words.txt``, ``LOC_synset_mapping.txt`` or the devkit's
    ``meta.mat``, whether or not there are pictures, and go by their first word; without such a list
    they are the WNID folders. Either way they are sorted by WNID.

    Boxes come from the ILSVRC XML files (counted from 0, corners inclusive), ``WNID/NAME.xml``,
    ``train/WNID/NAME.xml``, ``val/NAME.xml`` or ``NAME.xml`` in ``ILSVRC/Annotations/CLS-LOC``,
    ``Annotations``, ``Annotation``, ``bbox`` or ``bboxes``, or beside the pictures; else from
    ``boxes.csv``, whose classes are WNIDs; else those of val from ``LOC_val_solution.csv``.
    """
    home = next(
        (h for h in _HOMES if any(_is_split(root / h / split) for split in get_args(Split))), None
    )
    if home is None:
        raise CamtrainFileNotFoundError(
            f"{root} must hold train/WNID/*.JPEG, val/WNID/*.JPEG or val/*.JPEG, or them in "
            "ILSVRC/Data/CLS-LOC, but holds none; point --data.root at the folder of ImageNet."
        )
    tops: dict[str, Split] = {
        f"{home}/{split}".lstrip("/"): split
        for split in get_args(Split)
        if _is_split(root / home / split)
    }
    tree = scan(root, list(tops))
    words = read_words(root)
    classes = _classes(root, tree, words)
    wnids = sorted(set(classes)) if words is None else list(words)
    number = {wnid: place for place, wnid in enumerate(wnids)}
    unknown = sorted(set(classes) - set(number))
    if unknown:
        raise CamtrainValueError(
            f"{root} has pictures of the class {text_of(unknown)}, which its list of {len(wnids)} "
            "classes lacks; correct the list, or remove the pictures."
        )
    labels = np.array([number[wnid] for wnid in classes], np.int64)
    return Listing(
        root=root,
        paths=tree.paths,
        labels=labels,
        splits=_splits(tree, tops),
        class_names=tuple(wnids) if words is None else readable(words),
        has_class_list=words is not None,
        boxes=_boxes(root, tree, labels, wnids),
    )


def _is_split(folder: Path) -> bool:
    """Whether a folder holds WNID folders, or is val and holds pictures."""
    if any(WNID.fullmatch(name) for name in subfolders(folder)):
        return True
    is_val = folder.name == "val" and folder.is_dir()
    return is_val and any(name.lower().endswith(IMAGE_SUFFIXES) for name in os.listdir(folder))


def _classes(root: Path, tree: Tree, words: Mapping[str, str] | None) -> list[str]:
    """The WNID of every picture: that of its folder, or what a list says."""
    inside = [
        next((part for part in folder.split("/") if WNID.fullmatch(part)), None)
        for folder in tree.folders
    ]
    listed: dict[str, str] = {}
    if any(count and not wnid for wnid, count in zip(inside, tree.counts, strict=True)):
        known = sorted({wnid for wnid in inside if wnid}) if words is None else list(words)
        listed = validation_classes(root, known, is_whole=words is not None)
    classes, row = [], 0
    for wnid, count in zip(inside, tree.counts.tolist(), strict=True):
        classes += (
            [wnid] * count
            if wnid
            else [_listed(tree, n, listed, root) for n in range(row, row + count)]
        )
        row += count
    return classes


def _listed(tree: Tree, row: int, listed: Mapping[str, str], root: Path) -> str:
    path = tree.paths[row]
    name = path.rpartition("/")[2].partition(".")[0]
    if name not in listed:
        raise CamtrainValueError(
            f"The list of validation classes has {len(listed)} pictures, but not {name}, which is "
            f"{root / path}; complete the list, or move the picture into the folder of its WNID."
        )
    return listed[name]


def _splits(tree: Tree, tops: Mapping[str, Split]) -> NDArray[np.int8]:
    numbers = [
        next(
            split_number(split) for top, split in tops.items() if f"{folder}/".startswith(f"{top}/")
        )
        for folder in tree.folders
    ]
    return np.repeat(np.array(numbers, np.int8), tree.counts)


def _boxes(
    root: Path, tree: Tree, labels: NDArray[np.int64], wnids: Sequence[str]
) -> Callable[[int], Tensor]:
    folders = [name for name in _BOX_FOLDERS if (root / name).is_dir()]
    templates = [f"{folder}/{form}" for folder in folders for form in _XML]
    if tree.has_xml:
        templates.append("{parent}/{stem}.xml")
    if templates:
        return XmlBoxes(root, tree.paths, labels, wnids, templates=templates, first=0)
    if (root / "boxes.csv").is_file():
        return match_boxes(from_csv(root / "boxes.csv"), tree.paths, labels, wnids)
    if not (root / SOLUTION).is_file():
        return no_boxes
    solution = read_solution(root / SOLUTION)
    stems = (path.rpartition("/")[2].partition(".")[0] for path in tree.paths)
    row_boxes = [
        (row, box)
        for row, stem in enumerate(stems)
        if stem in solution
        for box in solution[stem][1]
    ]
    return BoxTable(len(tree.paths), [row for row, _ in row_boxes], [box for _, box in row_boxes])
