"""``camtrain check-data``: every picture is read once, before a training stumbles over it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from camtrain.data.arguments import add_source_arguments, source_options
from camtrain.data.checking.check import check_data
from camtrain.data.exclude import write_exclude
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError

_HEADER = "Pictures that `camtrain check-data` would leave out; each check writes it anew."


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
        console=Console(stderr=True),
    )
    if table is not None:
        table.write_text(json.dumps(report.as_json(), indent=1))
    excluded = report.excluded()
    is_listed = bool(excluded) or listed.is_file()
    if is_listed:
        write_exclude(listed, excluded, [_HEADER])
    report.show(Console())
    if is_listed:
        print(
            f"{len(excluded)} paths written to {listed}; leave them out with "
            f"--data.exclude {listed}"
        )
    return report.status


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
    parser.add_argument(
        "--exclude",
        default="exclude.txt",
        metavar="FILE",
        help="where to write the list of pictures to leave out (exclude.txt in the current folder)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write everything found as JSON")
    parser.add_argument(
        "--tiny", type=int, default=32, help="report pictures with a side below this, in px (32)"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="same pixels in several splits or under several labels are errors, and listed too",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (one per core)"
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
    if listed.exists() and not (
        listed.is_file() and listed.read_bytes().startswith(f"# {_HEADER}".encode())
    ):
        raise CamtrainValueError(
            f"{listed} was not written by camtrain check-data and would be overwritten; "
            "name another file with --exclude FILE."
        )
