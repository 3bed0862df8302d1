"""The arguments of the verbs that read a data set, spelled as in the data module."""

from __future__ import annotations

import argparse

from camtrain.data.sources import SOURCES, SourceOptions

_NAMES = (
    "seed",
    "val_fraction",
    "test_fraction",
    "split_file",
    "metadata",
    "shards_cache",
    "shards_cache_gb",
)


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data folder and what is to be known to read it."""
    defaults = SourceOptions()
    parser.add_argument("path", nargs="?", help="the data folder, as --data.root")
    parser.add_argument(
        "--source", default="folder", help=f"as --data.source: {', '.join(SOURCES)} (folder)"
    )
    for name in _NAMES:
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name}",
            type=str if default is None else type(default),
            default=default,
            help=f"as --data.{name}" + ("" if default is None else f" ({default})"),
        )


def source_options(settings: argparse.Namespace) -> SourceOptions:
    """What was given of ``add_source_arguments``."""
    return SourceOptions(root=settings.path, **{name: getattr(settings, name) for name in _NAMES})
