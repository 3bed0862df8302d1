"""``camtrain check-data``: a data set is read once and held against what training needs."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import track

from camtrain.data.boxes import BoxError, listed_box_errors
from camtrain.data.checking.findings import Checked, Finding, find, in_order, summarize
from camtrain.data.checking.reading import examine_all, format_of
from camtrain.data.checking.report import Report
from camtrain.data.exclude import folder_of, name_in, write_exclude
from camtrain.data.source import FileSource, Source, Split
from camtrain.data.sources import SourceOptions, add_source_arguments, make_sources, source_options
from camtrain.data.tree import IMAGE_SUFFIXES
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.labels import classes_of

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
        used = {name_in(folder, path) for each in splits.values() for path in each.paths}
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
    return [classes_of(label) for label in source.labels]


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


_HEADER = "Pictures that `camtrain check-data` would leave out; each check writes it anew."
_DATA = "Relative to the data folder "


def main(args: Sequence[str]) -> int:
    """``camtrain check-data [PATH] [--source NAME] ...``.

    Returns:
        1 where something would break a training, else 0.
    """
    settings = _parser().parse_args(args[1:])
    listed = Path(settings.exclude).expanduser()
    table = Path(settings.json).expanduser() if settings.json else None
    _check_settings(settings, listed, table)
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
    if table is not None:
        table.write_text(json.dumps(report.as_json(), indent=1))
    _write_list(listed, report.excluded(), _header(settings.path))
    return report.status


def _write_list(listed: Path, reasons: dict[str, str], header: list[str]) -> None:
    """Write what is to be left out, if anything, and say so."""
    lines = {path: reason for path, reason in reasons.items() if "\n" not in path}
    if lines or listed.is_file():
        write_exclude(listed, lines, header)
        print(
            f"{len(lines)} paths written to {listed}; leave them out with --data.exclude {listed}"
        )
    for path in reasons.keys() - lines.keys():
        print(f"Not in the list, since its name has a line break: {path!r}; rename or delete it.")


def _header(path: str | None) -> list[str]:
    """The lines at the top of the list, with the data that it is about."""
    return [_HEADER, f"{_DATA}{folder_of(path).replace(chr(10), ' ')}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="camtrain check-data",
        description="Read every picture of every split once, as training would, and list what is "
        "wrong. The exit status is 1 where something would break a training: pictures that "
        "cannot be read, boxes that cannot be right.",
        epilog="Example: camtrain check-data photos; camtrain fit --data.root photos "
        "--data.exclude exclude.txt",
    )
    add_source_arguments(parser)
    looked_for = parser.add_argument_group("what is looked for")
    looked_for.add_argument(
        "--tiny",
        type=int,
        default=32,
        metavar="N",
        help="pictures with a side below this, in pixels (default 32)",
    )
    looked_for.add_argument(
        "--strict",
        action="store_true",
        help="same pixels in several splits or under several labels are errors, and listed too",
    )
    looked_for.add_argument(
        "--exif",
        choices=("true", "false"),
        default="true",
        help="turn pictures upright as their EXIF says (default true)",
    )
    written = parser.add_argument_group("what is written, and how fast")
    written.add_argument(
        "--exclude",
        default="exclude.txt",
        metavar="FILE",
        help="the list of pictures to leave out (default exclude.txt in the current folder)",
    )
    written.add_argument("--json", metavar="FILE", help="also everything found, as JSON")
    written.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes (default one per core)",
    )
    return parser


def _check_settings(settings: argparse.Namespace, listed: Path, table: Path | None) -> None:
    """Refuse, before hours of reading, what would fail after them."""
    if settings.workers < 0 or settings.tiny < 0:
        raise CamtrainValueError(
            f"--workers and --tiny must be at least 0, got {settings.workers} and {settings.tiny}."
        )
    for file in (listed, table):
        if file is not None and not file.absolute().parent.is_dir():
            raise CamtrainFileNotFoundError(
                f"{file} cannot be written, since its folder does not exist; make the folder."
            )
    if not listed.exists():
        return
    lines = listed.read_text("utf-8", "surrogateescape").split("\n") if listed.is_file() else []
    if lines[:1] != [f"# {_HEADER}"]:
        raise CamtrainValueError(
            f"{listed} was not written by camtrain check-data and would be overwritten; "
            "name another file with --exclude FILE."
        )
    about = [line for line in lines[1:2] if line.startswith(f"# {_DATA}")]
    if about and about != [f"# {_header(settings.path)[1]}"]:
        raise CamtrainValueError(
            f"{listed} is the list of {about[0].removeprefix(f'# {_DATA}')}, another data set, and "
            "would be overwritten; name another file with --exclude OTHER."
        )
