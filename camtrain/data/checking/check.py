"""A data set read once and held against what training needs."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import track
from torch import Tensor

from camtrain.data.boxes import BoxError, listed_box_errors
from camtrain.data.checking.findings import Checked, Finding, find, in_order, summarize
from camtrain.data.checking.reading import examine_all, format_of
from camtrain.data.checking.report import Report
from camtrain.data.exclude import folder_of, name_in
from camtrain.data.source import FileSource, Source, Split
from camtrain.data.sources import SourceOptions, make_sources
from camtrain.data.tree import IMAGE_SUFFIXES
from camtrain.errors import CamtrainValueError

# What lies beside pictures in many data sets, and need not be opened to know it is none.
_OTHER_SUFFIXES = (".csv", ".txt", ".xml", ".json", ".md", ".yaml", ".mat", ".npy", ".zip", ".tar")


def check_data(
    source: str = "folder",
    options: SourceOptions | None = None,
    *,
    tiny: int = 32,
    processes: int = 1,
    strict: bool = False,
    exif: bool = True,
    console: Console | None = None,
) -> Report:
    """Read every picture of a source once and report what is wrong.

    Args:
        source: A name of ``SOURCES``.
        options: Where the data lies, and how it is split.
        tiny: Pixels of the shorter side below which a picture is reported.
        processes: That read; 0 means this one alone.
        strict: Leakage and contradictory labels are errors too.
        exif: Turn pictures upright; see ``CAMDataModule``.
        console: For the progress bar; None: no bar.

    Raises:
        CamtrainError: The data cannot even be listed, or ``exif=False`` for a source that decodes
            its files itself.
    """
    options = options or SourceOptions()
    folder = folder_of(options.root)
    splits, box_errors = _listed(source, options, exif=exif)
    total = sum(map(len, splits.values()))
    records = iter(
        track(
            examine_all(
                list(splits.values()), partial(_sources, source, options), processes, exif=exif
            ),
            f"Reading {total} pictures",
            total=total,
            console=console,
            disable=console is None,
        )
    )
    checked = {
        name: Checked(one.class_names, one.paths, _label_sets(one), list(islice(records, len(one))))
        for name, one in splits.items()
    }
    findings = find(checked, folder=folder, tiny=tiny)
    findings += [
        Finding("bad_box", (error.path,) if error.path else (), message)
        for message, error in {str(error): error for error in box_errors}.items()
    ]
    unused: Counter[str] = Counter()
    if folder:
        used = {name_in(folder, path) for one in splits.values() for path in one.paths}
        ignored, unused = _unused_files(Path(folder), used)
        findings += [Finding("ignored", (path,), "") for path in ignored]
    summaries = {name: summarize(split) for name, split in checked.items()}
    return Report(source, folder, summaries, in_order(findings), strict, unused)


def _listed(
    name: str, options: SourceOptions, *, exif: bool
) -> tuple[dict[Split, Source], list[BoxError]]:
    """The splits of a data set, and the boxes that they had to pass over."""
    with warnings.catch_warnings(), listed_box_errors() as errors:
        warnings.simplefilter("ignore")  # of missing classes, which are reported
        splits = make_sources(name, options)
    if not exif and not all(isinstance(source, FileSource) for source in splits.values()):
        raise CamtrainValueError(f"exif must be true for {name}, which reads its pictures itself.")
    return splits, errors


def _sources(name: str, options: SourceOptions) -> list[Source]:
    return list(_listed(name, options, exif=True)[0].values())


def _label_sets(source: Source) -> list[tuple[int, ...]]:
    if isinstance(source.labels, Tensor):
        return [tuple(row.nonzero()[:, 0].tolist()) for row in source.labels]
    return [(label,) for label in source.labels]


def _unused_files(root: Path, used: set[str]) -> tuple[list[str], Counter[str]]:
    """The files below the data folder that are in no split, hidden ones aside.

    Returns:
        The paths of those that are pictures, but have no suffix of a picture; and the number of all
        others by suffix.
    """
    ignored: list[str] = []
    others: Counter[str] = Counter()
    for folder, inside, files in os.walk(root):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        below = Path(folder).relative_to(root).as_posix()
        for name in sorted(name for name in files if not name.startswith(".")):
            path = name if below == "." else f"{below}/{name}"
            if path in used:
                continue
            suffix = Path(name).suffix.lower()
            if suffix not in (*IMAGE_SUFFIXES, *_OTHER_SUFFIXES) and format_of(root / path):
                ignored.append(path)
            else:
                others[suffix or "without suffix"] += 1
    return ignored, others
