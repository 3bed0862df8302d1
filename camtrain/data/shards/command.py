"""``camtrain shards``: a data set becomes a few large tar files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from camtrain.data.arguments import add_source_arguments, source_options
from camtrain.data.exclude import make_sources_without, read_exclude
from camtrain.data.shards.write import write_shards


def main(args: Sequence[str]) -> None:
    """``camtrain shards [PATH] --to FOLDER [--source NAME] ...``."""
    settings = _parser().parse_args(args[1:])
    exclude = read_exclude(settings.exclude) if settings.exclude else []
    _, sources = make_sources_without(settings.source, source_options(settings), exclude)
    total = sum(map(len, sources.values()))
    folder = Path(settings.to).expanduser()
    written = write_shards(
        sources, folder, root=settings.path, shard_mb=settings.shard_mb, seed=settings.seed
    )
    for _ in track(written, f"Writing {total} pictures", total=total, console=Console(stderr=True)):
        pass
    shards = sorted(folder.glob("*.tar"))
    size = sum(shard.stat().st_size for shard in shards) / 1e6
    print(
        f"{total} pictures in {len(shards)} shards of {folder}, {size:.1f} MB; read them with "
        f"--data.source shards --data.root {folder}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="camtrain shards",
        description="Write a data set as WebDataset shards, to be trained on from this disk or "
        "from a URL. Pictures keep their bytes; labels, boxes and masks go with them.",
        epilog="Example: camtrain shards photos --to photos_shards",
    )
    add_source_arguments(parser)
    written = parser.add_argument_group("what is written")
    add = written.add_argument
    add("--to", required=True, metavar="FOLDER", help="where to: a new or empty folder")
    add(
        "--shard_mb",
        type=float,
        default=200.0,
        metavar="SIZE",
        help="of a shard, in 10^6 bytes (default 200)",
    )
    add("--exclude", metavar="FILE", help="pictures to leave out, one path per line")
    return parser
