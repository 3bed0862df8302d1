"""What the records of all pictures say about a data set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from PIL import Image

from camtrain.data.checking.reading import Record
from camtrain.data.exclude import name_in
from camtrain.data.source import Split


class Kind(NamedTuple):
    """What can be wrong.

    Attributes:
        text: What it means and what to do.
        weight: ``error``: breaks a training, or its measurement of boxes. ``warning``: the scores
            mean less than they seem to. ``note``: worth a look.
    """

    text: str
    weight: str


KINDS = {
    "empty": Kind("files of 0 bytes", "error"),
    "unreadable": Kind("pictures that cannot be decoded", "error"),
    "bad_box": Kind("boxes that cannot be read, have no area, or lie outside", "error"),
    "leakage": Kind("same pixels in several splits: scores are too good", "warning"),
    "contradiction": Kind("same pixels under different labels", "warning"),
    "duplicate": Kind("same pixels more than once in a split", "note"),
    "complaint": Kind("damage that the decoder could patch", "note"),
    "edge_box": Kind("boxes 1 px outside: another convention?", "note"),
    "no_boxes": Kind("without boxes, while others of the split have some", "note"),
    "tiny": Kind("pictures smaller than --tiny", "note"),
    "suffix": Kind("content of another kind than the suffix says", "note"),
    "ignored": Kind("pictures in no split because of their suffix", "note"),
    "missing_class": Kind("classes without a picture", "note"),
}


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        kind: A key of ``KINDS``.
        paths: The pictures it concerns, relative to the data folder.
        detail: What was found.
        split: Where; "" for what concerns several splits or none.
    """

    kind: str
    paths: tuple[str, ...]
    detail: str
    split: str = ""


@dataclass(frozen=True)
class SplitSummary:
    """One split in numbers.

    Attributes:
        pictures: How many.
        classes: Pictures of every class, by name, 0 included.
        imbalance: Largest class / smallest class that has pictures.
        width: Smallest, median, largest, in pixels; None where nothing could be read.
        height: Likewise.
        aspect: Likewise, width / height.
        with_boxes: Pictures that have boxes.
        boxes: All their boxes.
    """

    pictures: int
    classes: dict[str, int]
    imbalance: float
    width: tuple[float, float, float] | None
    height: tuple[float, float, float] | None
    aspect: tuple[float, float, float] | None
    with_boxes: int
    boxes: int


class Checked(NamedTuple):
    """One split and what its pictures showed, all in the order of the source.

    Attributes:
        class_names: K names.
        paths: As ``SourcePicture.path``.
        labels: The class indices of each picture, one or several.
        records: What each showed.
    """

    class_names: Sequence[str]
    paths: Sequence[str]
    labels: Sequence[tuple[int, ...]]
    records: Sequence[Record]


def summarize(split: Checked) -> SplitSummary:
    """The numbers of a split."""
    counts = Counter(label for labels in split.labels for label in labels)
    sizes = [record.size_hw for record in split.records if record.pixels]
    present = [count for count in counts.values() if count]
    return SplitSummary(
        pictures=len(split.paths),
        classes={name: counts[label] for label, name in enumerate(split.class_names)},
        imbalance=max(present) / min(present) if present else 1.0,
        width=_spread([width for _, width in sizes]),
        height=_spread([height for height, _ in sizes]),
        aspect=_spread([width / height for height, width in sizes]),
        with_boxes=sum(record.boxes > 0 for record in split.records),
        boxes=sum(record.boxes for record in split.records),
    )


def _spread(values: Sequence[float]) -> tuple[float, float, float] | None:
    return (min(values), median(values), max(values)) if values else None


def find(splits: Mapping[Split, Checked], *, folder: str, tiny: int) -> list[Finding]:
    """All findings that the records hold, ordered by kind as in ``KINDS``.

    Args:
        splits: Every split by name, in the order train, val, test.
        folder: The data folder.
        tiny: Pixels of the shorter side below which a picture is reported.
    """
    findings = [
        finding
        for name, split in splits.items()
        for one_by_one in (_of_pictures(split, folder, tiny), _of_split(split, folder))
        for finding in (finding._replace(split=name) for finding in one_by_one)
    ]
    findings += _same_pixels(splits, folder)
    return in_order(findings)


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Sorted by kind, errors first; within a kind as found."""
    place = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda finding: place[finding.kind])


def _of_pictures(split: Checked, folder: str, tiny: int) -> Iterator[Finding]:
    """What one picture alone shows."""
    formats = Image.registered_extensions()
    for path, record in zip(split.paths, split.records, strict=True):
        paths = (name_in(folder, path),)
        if record.error:
            yield Finding("empty" if record.is_empty else "unreadable", paths, record.error)
        elif min(record.size_hw) < tiny:
            height, width = record.size_hw
            yield Finding("tiny", paths, f"{width}x{height}")
        for text, beyond in record.off_boxes:
            yield Finding("edge_box" if beyond == 1 else "bad_box", paths, text)
        if record.complaint:
            yield Finding("complaint", paths, record.complaint)
        expected = formats.get(Path(path).suffix.lower())
        # A photograph with a second picture in the same file: any JPEG decoder reads the first.
        content = "JPEG" if record.format == "MPO" else record.format
        if content and content != expected:
            yield Finding("suffix", paths, f"the content is {content}")


def _of_split(split: Checked, folder: str) -> Iterator[Finding]:
    """What is odd in comparison with the rest of the split."""
    counts = Counter(label for labels in split.labels for label in labels)
    with_boxes = Counter(
        label
        for labels, record in zip(split.labels, split.records, strict=True)
        for label in labels
        if record.boxes
    )
    for path, labels, record in zip(split.paths, split.labels, split.records, strict=True):
        if not (record.boxes or record.error) and any(with_boxes[label] for label in labels):
            yield Finding("no_boxes", (name_in(folder, path),), "")
    for label, name in enumerate(split.class_names):
        if not counts[label]:
            yield Finding("missing_class", (), name)
        elif with_boxes and not with_boxes[label]:
            yield Finding("no_boxes", (), f"the whole class {name}")


def _same_pixels(splits: Mapping[Split, Checked], folder: str) -> Iterator[Finding]:
    """Groups of pictures with the same pixels: one finding for each way in which that matters."""
    groups: dict[bytes, list[tuple[Split, int]]] = defaultdict(list)
    for name, split in splits.items():
        for place, record in enumerate(split.records):
            if record.pixels:
                groups[record.pixels].append((name, place))
    for group in groups.values():
        if len(group) > 1:
            yield from _of_group(group, splits, lambda path: name_in(folder, path))


def _of_group(
    group: Sequence[tuple[Split, int]],
    splits: Mapping[Split, Checked],
    naming: Callable[[str], str],
) -> Iterator[Finding]:
    paths = tuple(naming(splits[name].paths[place]) for name, place in group)
    by_split = Counter(name for name, _ in group)
    labels = {
        ";".join(splits[name].class_names[label] for label in splits[name].labels[place])
        for name, place in group
    }
    if len(by_split) > 1:
        counts = ", ".join(f"{count} in {name}" for name, count in by_split.items())
        yield Finding("leakage", paths, counts)
    if len(labels) > 1:
        yield Finding("contradiction", paths, ", ".join(sorted(labels)))
    for split in [name for name, count in by_split.items() if count > 1]:
        inside = tuple(path for path, (name, _) in zip(paths, group, strict=True) if name == split)
        yield Finding("duplicate", inside, f"{len(inside)} times", split)
