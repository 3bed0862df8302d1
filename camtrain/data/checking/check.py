"""``camtrain check-data``: a data set is read once, and what would harm a training is reported."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import track

from camtrain.arguments import VerbParser, announce
from camtrain.data.box_files import BoxError
from camtrain.data.checking.reading import examine_all, format_of
from camtrain.data.checking.report import KINDS, CheckedSplit, Finding, Report, find, summarize
from camtrain.data.decoding import IMAGE_SUFFIXES
from camtrain.data.exclude import absolute_data_folder, name_in, write_exclude
from camtrain.data.faults import listed_faults
from camtrain.data.source import FileSource
from camtrain.data.sources import (
    SourceOptions,
    add_source_arguments,
    make_sources,
    naming_arguments_of,
    source_options,
)
from camtrain.data.tree import OTHER_SUFFIXES, files_below
from camtrain.errors import CamtrainError, CamtrainFileNotFoundError, CamtrainValueError
from camtrain.files import write_text
from camtrain.labels import classes_of


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
    folder = absolute_data_folder(options.root)
    reading = announce(f"Reading the folders of {options.root or source}")
    with reading, warnings.catch_warnings(), listed_faults(CamtrainError) as faults:
        warnings.simplefilter("ignore")  # of missing classes, which are reported
        sources = make_sources(source, options)
    if not exif and not all(isinstance(split, FileSource) for split in sources.values()):
        raise CamtrainValueError(
            f"exif must be true for {source}, which reads its pictures itself."
        )
    total = sum(map(len, sources.values()))
    records = iter(
        track(
            examine_all(list(sources.values()), processes, exif=exif),
            f"Reading {total} pictures",
            total=total,
            console=console,
            disable=console is None,
        )
    )
    splits = {
        name: CheckedSplit(
            split.class_names,
            [name_in(folder, path) for path in split.paths],
            [classes_of(label) for label in split.labels],
            list(islice(records, len(split))),
        )
        for name, split in sources.items()
    }
    findings = list(find(splits, tiny=tiny))
    findings += [
        Finding("bad_box", (fault.path,) if fault.path else (), message)
        if isinstance(fault, BoxError)
        else Finding("layout", (), message)
        for message, fault in {str(fault): fault for fault in faults}.items()
    ]
    unused: Counter[str] = Counter()
    used = {path for split in splits.values() for path in split.paths}
    for path in files_below(folder) if folder else ():
        suffix = Path(path).suffix.lower()
        if path in used:
            continue
        if suffix not in (*IMAGE_SUFFIXES, *OTHER_SUFFIXES) and format_of(Path(folder, path)):
            findings.append(Finding("ignored", (path,), ""))
        else:
            unused[suffix or "without suffix"] += 1
    findings.sort(key=lambda finding: list(KINDS).index(finding.kind))
    summaries = {name: summarize(split) for name, split in splits.items()}
    return Report(source, folder, summaries, findings, strict, unused)


_HEADER = "# Pictures that `camtrain check-data` would leave out; each check writes it anew."
_DATA = "# Relative to the data folder "


def main(args: Sequence[str]) -> int:
    """``camtrain check-data [PATH] [--source NAME] ...``.

    Returns:
        1 where something would break a training, else 0.
    """
    settings = _parser().parse_args(args[1:])
    exclude_file = Path(settings.exclude).expanduser()
    json_file = Path(settings.json).expanduser() if settings.json else None
    header = [_HEADER, f"{_DATA}{absolute_data_folder(settings.path).replace(chr(10), ' ')}"]
    if settings.workers < 0 or settings.tiny < 0:
        raise CamtrainValueError(
            f"--workers and --tiny must be at least 0, got {settings.workers} and {settings.tiny}."
        )
    for file in (exclude_file, json_file):
        if file is not None and not file.absolute().parent.is_dir():
            raise CamtrainFileNotFoundError(
                f"{file} cannot be written, since its folder does not exist; make the folder."
            )
    _check_overwriting(exclude_file, header)
    with naming_arguments_of(args[0]):
        report = check_data(
            settings.source,
            source_options(settings),
            tiny=settings.tiny,
            processes=settings.workers,
            strict=settings.strict,
            exif=settings.exif == "true",
            console=Console(stderr=True),
        )
    report.show(Console())  # before anything that can fail
    if json_file is not None:
        write_text(json_file.resolve(), json.dumps(report.as_json(), indent=1))
    reasons = report.excluded()
    lines = {path: reason for path, reason in reasons.items() if "\n" not in path}
    if lines or exclude_file.is_file():
        write_exclude(exclude_file, lines, [line.removeprefix("# ") for line in header])
        print(
            f"{len(lines)} paths written to {exclude_file}; leave them out with "
            f"--data.exclude {exclude_file}"
        )
    for path in reasons.keys() - lines.keys():
        print(f"Not in the list, since its name has a line break: {path!r}; rename or delete it.")
    return report.status


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser(
        prog="camtrain check-data",
        description="Read every picture of every split once, as training would, and list what is "
        "wrong. The exit status is 1 where something would break a training: pictures that "
        "cannot be read, boxes that cannot be right.",
        epilog="Example: camtrain check-data photos; camtrain fit --data.root photos "
        "--data.exclude exclude.txt",
    )
    add_source_arguments(parser)
    add = parser.add_argument_group("what is looked for").add_argument
    text = "pictures with a side below this, in pixels (default 32)"
    add("--tiny", type=int, default=32, metavar="N", help=text)
    text = "same pixels in several splits or under several labels are errors, and listed too"
    add("--strict", action="store_true", help=text)
    text = "turn pictures upright as their EXIF says (default true)"
    add("--exif", choices=("true", "false"), default="true", help=text)
    add = parser.add_argument_group("what is written, and how fast").add_argument
    text = "the list of pictures to leave out (default exclude.txt in the current folder)"
    add("--exclude", default="exclude.txt", metavar="FILE", help=text)
    add("--json", metavar="FILE", help="also everything found, as JSON")
    cores = os.cpu_count() or 1
    text = "processes (default one per core)"
    add("--workers", type=int, default=cores, metavar="N", help=text)
    return parser


def _check_overwriting(file: Path, header: list[str]) -> None:
    """Raise, before hours of reading, if the file exists and is not an earlier list of the data."""
    if not file.exists():
        return
    lines = file.read_text("utf-8", "surrogateescape").split("\n") if file.is_file() else []
    if lines[:1] != header[:1]:
        raise CamtrainValueError(
            f"{file} was not written by camtrain check-data and would be overwritten; "
            "name another file with --exclude FILE."
        )
    about = lines[1] if len(lines) > 1 else ""
    if about.startswith(_DATA) and about != header[1]:
        raise CamtrainValueError(
            f"{file} is the list of {about.removeprefix(_DATA)}, another data set, and would be "
            "overwritten; name another file with --exclude OTHER."
        )
