"""The arguments of the verbs that read a data set, spelled as in the data module."""

from __future__ import annotations

import argparse

from camtrain.data.sources import SOURCES, SourceOptions

# By name, as in the data module: what is said of them.
_TEXTS = {
    "seed": "of the division into splits",
    "val_fraction": "part of each class for validation, where the source has no such split",
    "test_fraction": "part of each class for test, where the source has no splits",
    "split_file": "split.csv of a run, which says the split of each picture",
    "metadata": "of wsol: the folder of its lists (default root/metadata)",
    "shards_cache": "of shards behind a URL: the folder that keeps them",
    "shards_cache_gb": "the most that it may hold, in 10^9 bytes",
}


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data folder and what is to be known to read it."""
    defaults = SourceOptions()
    parser.add_argument("path", nargs="?", metavar="FOLDER", help="the data folder")
    data = parser.add_argument_group("the data, as camtrain fit reads it by --data.OPTION")
    sources = f"one of {', '.join(SOURCES)} (default folder)"
    data.add_argument("--source", default="folder", metavar="NAME", help=sources)
    for name, text in _TEXTS.items():
        default = getattr(defaults, name)
        data.add_argument(
            f"--{name}",
            type=str if default is None else type(default),
            default=default,
            metavar="PATH" if default is None else "VALUE",
            help=text if default is None else f"{text} (default {default})",
        )


def source_options(settings: argparse.Namespace) -> SourceOptions:
    """What was given of ``add_source_arguments``."""
    return SourceOptions(root=settings.path, **{name: getattr(settings, name) for name in _TEXTS})
