"""What is wrong with a data set: findings, the numbers of its splits, and the report of both."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from camtrain.data.checking.reading import Record
from camtrain.data.source import Split


class Kind(NamedTuple):
    """What can be wrong."""

    text: str  # what it means and what to do
    weight: str  # "error": breaks a training or its boxes; "warning": scores mean less; "note"


KINDS = {
    "empty": Kind("files of 0 bytes", "error"),
    "unreadable": Kind("pictures that cannot be decoded", "error"),
    "bad_box": Kind("boxes that cannot be read, have no area, or lie outside", "error"),
    "layout": Kind("folders and classes that fit refuses", "error"),
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
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


class Finding(NamedTuple):
    """One thing that is wrong."""

    kind: str  # a key of KINDS
    paths: tuple[str, ...]  # the pictures it concerns, relative to the data folder
    detail: str  # what exactly is wrong
    split: str = ""  # "" for what concerns several splits or none


class CheckedSplit(NamedTuple):
    """One split after reading; all lists are in the order of the source."""

    class_names: Sequence[str]  # K
    paths: Sequence[str]  # relative to the data folder
    classes: Sequence[tuple[int, ...]]  # the class numbers of each picture, one or several
    records: Sequence[Record]  # what each picture showed


_Range = tuple[float, float, float] | None  # smallest, median, largest; None where there is none


@dataclass(frozen=True)
class SplitSummary:
    """One split in numbers."""

    pictures: int
    classes: dict[str, int]  # the pictures of every class by name, 0 included
    imbalance: float  # largest class / smallest class that has pictures
    width: _Range  # in pixels
    height: _Range
    aspect: _Range  # width / height
    with_boxes: int  # pictures that have boxes
    boxes: int  # all boxes


def summarize(split: CheckedSplit) -> SplitSummary:
    """The numbers of a split."""
    counts = Counter(number for numbers in split.classes for number in numbers)
    sizes = [record.size_hw for record in split.records if record.pixels]
    return SplitSummary(
        pictures=len(split.paths),
        classes={name: counts[number] for number, name in enumerate(split.class_names)},
        imbalance=max(counts.values()) / min(counts.values()) if counts else 1.0,
        width=_range([width for _, width in sizes]),
        height=_range([height for height, _ in sizes]),
        aspect=_range([width / height for height, width in sizes]),
        with_boxes=sum(record.boxes > 0 for record in split.records),
        boxes=sum(record.boxes for record in split.records),
    )


def _range(values: Sequence[float]) -> _Range:
    return (min(values), median(values), max(values)) if values else None


def find(splits: Mapping[Split, CheckedSplit], *, tiny: int) -> Iterator[Finding]:
    """All findings that the records hold.

    Args:
        splits: Every split by name, in the order train, val, test.
        tiny: Pixels of the shorter side below which a picture is reported.
    """
    for name, split in splits.items():
        for finding in (*_picture_findings(split, tiny), *_class_findings(split)):
            yield finding._replace(split=name)
    yield from _same_pixels(splits)


def _picture_findings(split: CheckedSplit, tiny: int) -> Iterator[Finding]:
    """Findings about single pictures."""
    formats = Image.registered_extensions()
    for path, record in zip(split.paths, split.records, strict=True):
        if record.error:
            yield Finding("empty" if record.is_empty else "unreadable", (path,), record.error)
        elif min(record.size_hw) < tiny:
            height, width = record.size_hw
            yield Finding("tiny", (path,), f"{width}x{height}")
        for text, beyond in record.off_boxes:
            yield Finding("edge_box" if beyond == 1 else "bad_box", (path,), text)
        if record.complaint:
            yield Finding("complaint", (path,), record.complaint)
        # A photograph with a second picture in the same file: any JPEG decoder reads the first.
        content = "JPEG" if record.format == "MPO" else record.format
        if content and content != formats.get(Path(path).suffix.lower()):
            yield Finding("suffix", (path,), f"the content is {content}")


def _class_findings(split: CheckedSplit) -> Iterator[Finding]:
    """Findings about missing classes, and about missing boxes where others have some."""
    counts: Counter[int] = Counter()
    with_boxes: Counter[int] = Counter()
    for numbers, record in zip(split.classes, split.records, strict=True):
        counts.update(numbers)
        with_boxes.update(numbers if record.boxes else ())
    for path, numbers, record in zip(split.paths, split.classes, split.records, strict=True):
        if not (record.boxes or record.error) and any(with_boxes[number] for number in numbers):
            yield Finding("no_boxes", (path,), "")
    for number, name in enumerate(split.class_names):
        if not counts[number]:
            yield Finding("missing_class", (), name)
        elif with_boxes and not with_boxes[number]:
            yield Finding("no_boxes", (), f"the whole class {name}")


def _same_pixels(splits: Mapping[Split, CheckedSplit]) -> Iterator[Finding]:
    """Findings about groups of pictures with the same pixels."""
    places: dict[bytes, list[tuple[Split, int]]] = defaultdict(list)
    for name, split in splits.items():
        for row, record in enumerate(split.records):
            if record.pixels:
                places[record.pixels].append((name, row))
    for group in places.values():
        if len(group) == 1:
            continue
        paths: dict[Split, list[str]] = defaultdict(list)
        labels = set()
        for name, row in group:
            split = splits[name]
            paths[name].append(split.paths[row])
            names = ";".join(split.class_names[number] for number in split.classes[row])
            labels.add(names or "no class")
        all_paths = tuple(path for of_split in paths.values() for path in of_split)
        if len(paths) > 1:
            counts = ", ".join(f"{len(of_split)} in {name}" for name, of_split in paths.items())
            yield Finding("leakage", all_paths, counts)
        if len(labels) > 1:
            yield Finding("contradiction", all_paths, ", ".join(sorted(labels)))
        for name, of_split in paths.items():
            if len(of_split) > 1:
                yield Finding("duplicate", tuple(of_split), f"{len(of_split)} times", name)


_EXAMPLES = 5  # findings of a kind that are printed
_CLASSES = 20  # up to here every class has a row
_ROWS = {
    "pictures": "pictures",
    "with boxes": "with_boxes",
    "boxes": "boxes",
    "width, px": "width",
    "height, px": "height",
    "width : height": "aspect",
}


@dataclass(frozen=True)
class Report:
    """The result of a check."""

    source: str  # its name
    root: str  # the data folder; "" where there is none
    splits: Mapping[Split, SplitSummary]
    findings: Sequence[Finding]  # errors first
    strict: bool = False  # leakage and contradictory labels count as errors
    unused: Mapping[str, int] | None = None  # files of the folder in no split, by suffix

    def _weight(self, kind: str) -> str:
        weight = KINDS[kind].weight
        return "error" if self.strict and weight == "warning" else weight

    @property
    def errors(self) -> list[Finding]:
        """The findings that would break a training."""
        return [finding for finding in self.findings if self._weight(finding.kind) == "error"]

    @property
    def status(self) -> int:
        """The exit status: 1 where something would break a training."""
        return 1 if self.errors else 0

    def excluded(self) -> dict[str, str]:
        """The pictures to leave out so that no error remains, each with its reason.

        Of pictures with the same pixels the last one stays, which is that of test where there is
        one; of those with contradictory labels none, since nothing says which label is right.
        """
        reasons: dict[str, str] = {}
        for kind, paths, detail, _ in self.errors:
            for path in paths[:-1] if kind == "leakage" else paths:
                reasons.setdefault(path, f"{kind}: {detail}")
        return reasons

    def as_json(self) -> dict[str, Any]:
        """The report in plain values."""
        return {
            "source": self.source,
            "root": self.root,
            "status": self.status,
            "splits": {name: asdict(summary) for name, summary in self.splits.items()},
            "unused": dict(self.unused or {}),
            "counts": dict(Counter(finding.kind for finding in self.findings)),
            "findings": [finding._asdict() for finding in self.findings],
        }

    def show(self, console: Console) -> None:
        """Print the numbers of the splits as a table, then what is wrong."""
        console.print(self._table())
        for kind, count in Counter(finding.kind for finding in self.findings).items():
            weight = self._weight(kind)
            console.print(f"[{_COLOURS[weight]}]{weight:8}[/] {KINDS[kind].text}: {count}")
            for line in _examples([entry for entry in self.findings if entry.kind == kind]):
                console.print(f"         {line}", markup=False, highlight=False, soft_wrap=True)
        if self.unused:
            files = ", ".join(f"{count} {suffix}" for suffix, count in self.unused.items())
            console.print(f"Files in no split: {files}", markup=False)
        pictures = sum(summary.pictures for summary in self.splits.values())
        errors = len(self.errors)
        remarks = len(self.findings) - errors
        console.print(f"{pictures} pictures, {errors} errors, {remarks} remarks")

    def _table(self) -> Table:
        """A column for every split; of many classes, the largest and the smallest."""
        table = Table("", *self.splits)
        summaries = list(self.splits.values())
        for title, attribute in _ROWS.items():
            table.add_row(title, *(_text(getattr(summary, attribute)) for summary in summaries))
        table.add_section()
        totals: Counter[str] = Counter()
        for summary in summaries:
            totals.update(summary.classes)
        names = list(totals)
        if len(totals) > _CLASSES:
            by_size = [name for name, _ in totals.most_common()]
            names = [*by_size[: _CLASSES // 2], "", *by_size[-_CLASSES // 2 :]]
        for name in names:
            counts = (str(summary.classes[name]) if name else "" for summary in summaries)
            table.add_row(escape(name) or "...", *counts)
        table.add_section()
        table.add_row("imbalance", *(f"{summary.imbalance:.1f}" for summary in summaries))
        table.caption = "sizes: min, median, max; imbalance: largest class / smallest"
        return table


def _examples(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each of the first findings of a kind, and how many more there are."""
    for finding in findings[:_EXAMPLES]:
        paths = finding.paths
        if len(paths) > 4:  # those of several splits are in their order
            paths = (*paths[:2], f"{len(paths) - 3} more", paths[-1])
        where = " = ".join(paths) or finding.split
        text = ": ".join(filter(None, (where, finding.detail)))
        yield text.encode(errors="replace").decode()  # no terminal shows every file name
    if len(findings) > _EXAMPLES:
        yield f"and {len(findings) - _EXAMPLES} more; --json FILE has them all"


def _text(value: int | _Range) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if value is None else " ".join(f"{number:.4g}" for number in value)
