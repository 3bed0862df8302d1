"""Which class an ImageNet id is, and which class a validation picture is of: lists of ILSVRC2012.

Two orders of the 1,000 classes are in use, and each list says here which one it has: sorted by
WordNet id (WNID), 0..999, as networks count; and the devkit's ILSVRC2012_ID, 1..1000.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from camtrain.data.lists import Line, lines_of
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

    Raises:
        CamtrainValueError: The list is damaged.
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

    Raises:
        CamtrainFileNotFoundError: There is none of these, or no ``meta.mat``.
        CamtrainValueError: A list is damaged, or numbers other classes than the known ones.
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

    Raises:
        CamtrainValueError: A line is malformed, or names two classes.
    """
    found = {}
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
            found[row["ImageId"]] = (wnids.pop(), boxes)
    return found


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
