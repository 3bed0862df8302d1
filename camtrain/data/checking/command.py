"""``camtrain check-data``: every picture is read once, before a training stumbles over it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from camtrain.data.checking.check import check_data
from camtrain.data.exclude import folder_of, write_exclude
from camtrain.data.sources import add_source_arguments, source_options
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError

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
    kept = {path: reason for path, reason in reasons.items() if "\n" not in path}
    if kept or listed.is_file():
        write_exclude(listed, kept, header)
        print(f"{len(kept)} paths written to {listed}; leave them out with --data.exclude {listed}")
    for path in reasons.keys() - kept.keys():
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
