"""``camtrain models``: lists every network of torchvision and timm with its cut and its maps.

Networks that are known are listed before torch is imported: those that were looked at before, and
those of torchvision, which ``torchvision.json`` beside this file holds for one version of it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from camtrain.arguments import VerbParser, announce, has_reader
from camtrain.errors import CamtrainValueError
from camtrain.files import user_cache, write_text

_LIBRARIES = ("torch", "torchvision", "timm")
SHIPPED = Path(__file__).with_name("torchvision.json")
_COLUMNS = {  # and their widths
    **{"name": 46, "cut": 26, "channels": 8, "stride": 6, "map": 7, "input": 13},
    **{"cam-ready": 9, "parameters": 10},
}


@dataclass(frozen=True)
class Entry:
    """A network as ``create_model`` cuts it, with its usual arguments."""

    name: str  # library/model
    cut: str = ""  # the layer it ends after
    channels: int = 0  # of its feature map
    stride: int = 0  # pixels of the image per pixel of the map, about
    map_hw: tuple[int, int] = (0, 0)  # (h, w) of the map for an image of `size_hw`
    size_hw: tuple[int, int] = (0, 0)  # (H, W) of the images it was made for
    is_fixed: bool = False  # whether it takes images of no other size
    is_cam_ready: bool = False  # whether its original head gives the maps, without training
    parameters: int = 0  # the number of those of the backbone, up to the cut
    reason: str | None = None  # why it does not convert; None for a network that does


class Known(NamedTuple):
    """What a cache file holds."""

    names: list[str] | None  # of every network there is; None where they have not been listed
    entries: dict[str, Entry]  # by name


def catalogue(names: Sequence[str], cache: Path) -> Iterator[Entry]:
    """The entries of these networks: first those that are known, then all others.

    The others are looked at, with a progress bar, and kept in the cache file.
    """
    known = _read(cache)
    yield from (known.entries[name] for name in names if name in known.entries)
    missing = [name for name in names if name not in known.entries]
    if not missing:
        return
    from camtrain.model import describe

    bar = Progress(console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
    text = f"Looking at {len(missing)} networks, once"
    try:
        with bar:
            entries = describe.describe_all(missing)
            for entry in bar.track(entries, len(missing), description=text):
                known.entries[entry.name] = entry
                yield entry
    finally:  # Ctrl-C loses nothing
        _write(cache, known)


def cache_file() -> Path:
    """A file in the user's cache folder for the installed versions of the libraries."""
    versions = [f"{library}-{version(library)}" for library in _LIBRARIES]
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    key = "_".join([*versions, hashlib.sha256(code).hexdigest()[:12]])
    return user_cache() / f"models_{key}.json"


def matching(names: Sequence[str], pattern: str) -> list[str]:
    """The names that contain ``pattern``, or match its wildcards with or without their library.

    Raises:
        CamtrainValueError: There is none.
    """
    matches = _matches(names, pattern)
    if not matches:
        raise CamtrainValueError(
            f"FILTER must be part of the name of a network, or a pattern such as 'timm/resnet*', "
            f"got {pattern!r}, which none of {len(names)} names has."
        )
    return matches


def _matches(names: Iterable[str], pattern: str) -> list[str]:
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    return [n for n in names if any(fnmatchcase(p, pattern) for p in (n, n.partition("/")[2]))]


def main(args: Sequence[str]) -> None:
    """``camtrain models [FILTER]``."""
    parser = VerbParser(
        prog="camtrain models",
        description="What every network of torchvision and timm becomes when it is cut for CAM.",
        epilog="Networks that are not known yet are looked at, without weights, and kept in the "
        "user's cache folder. Example: camtrain models timm/convnext",
    )
    parser.add_argument(
        "filter",
        nargs="?",
        default="*",
        metavar="FILTER",
        help="part of a name, or a pattern with * and ? (default: every network)",
    )
    pattern, cache = parser.parse_args(args[1:]).filter, cache_file()
    for line in table(_entries(pattern, cache)):
        print(line, flush=True)
        if not has_reader():  # `camtrain models | head` has read enough
            break


def _entries(pattern: str, cache: Path) -> Iterator[Entry]:
    """The entries of the matching networks, those that are known before any name is looked up."""
    known = _read(cache)
    known_matches = _matches(known.entries, pattern)
    yield from (known.entries[name] for name in known_matches)
    names = known.names
    if names is None:
        with announce("Loading torch and timm"):
            from camtrain.model.backbones import every_name

            names = every_name()
        _write(cache, known._replace(names=names))
    missing = set(matching(names, pattern)) - set(known_matches)
    yield from catalogue([name for name in names if name in missing], cache)


def table(entries: Iterable[Entry]) -> Iterator[str]:
    """A line for each network that converts, one for each that does not, and the counts.

    A line is given as soon as its entry is there.
    """
    reasons, count, ready = [], 0, 0
    for entry in entries:
        if entry.reason is not None:
            reasons.append(f"{entry.name}: {entry.reason}")
            continue
        if not count:
            yield _line(_COLUMNS)
        count, ready = count + 1, ready + entry.is_cam_ready
        yield _line(
            (
                entry.name,
                entry.cut,
                str(entry.channels),
                str(entry.stride),
                "x".join(map(str, entry.map_hw)),
                "x".join(map(str, entry.size_hw)) + (" fixed" if entry.is_fixed else ""),
                "yes" if entry.is_cam_ready else "no",
                f"{entry.parameters / 1e6:.1f} M",
            )
        )
    yield from reasons
    yield f"{count} of {count + len(reasons)} convert, {ready} of them are cam-ready."


def _line(cells: Iterable[str]) -> str:
    widths = _COLUMNS.values()
    return "  ".join(c.ljust(width) for c, width in zip(cells, widths, strict=True)).rstrip()


def _read(cache: Path) -> Known:
    """What a cache file holds; where there is none, or it is damaged, what is shipped."""
    with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
        return _known(json.loads(cache.read_text()))
    values = json.loads(SHIPPED.read_text())
    return _known(values) if values["torchvision"] == version("torchvision") else Known(None, {})


def _known(values: dict[str, Any]) -> Known:
    rows: list[Any] = [
        [tuple(v) if isinstance(v, list) else v for v in e] for e in values["entries"]
    ]
    return Known(values.get("names"), {row[0]: Entry(*row) for row in rows})


def _write(cache: Path, known: Known) -> None:
    """Keep what is known, if the cache can be written."""
    entries = [list(asdict(entry).values()) for entry in known.entries.values()]
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_text(cache, json.dumps({"names": known.names, "entries": entries}))
