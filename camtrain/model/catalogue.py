"""``camtrain models``: lists every network of torchvision and timm with its cut and its maps."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from camtrain.arguments import VerbParser
from camtrain.errors import CamtrainValueError, first_line
from camtrain.files import user_cache, write_text
from camtrain.model.backbones import build_classifier, every_name, usual_preprocessing
from camtrain.model.convert import find_maps
from camtrain.model.cut import block_of
from camtrain.model.probe import Intercepted, probe_or_none
from camtrain.model.trunk import Classifier, GraphBackbone, trunk_of

_FILLING = frozenset(
    {
        *(Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_, Tensor.copy_),
        *(Tensor.erfinv_, Tensor.clamp_, Tensor.mul_, Tensor.add_, Tensor.div_),
    }
)
_LIBRARIES = ("torch", "torchvision", "timm")
_MOST_IN_THIS_PROCESS = 40  # starting a process costs as much as describing some 20 networks


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


def describe(name: str) -> Entry:
    """The entry of a network, found on the meta device: nothing is computed or loaded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries warn about their old networks
            return _describe_network(name)
    except Exception as error:  # each network fails in its own way, and is reported
        return Entry(name, reason=f"{type(error).__name__}: {first_line(error)}")


def _describe_network(name: str) -> Entry:
    preprocessing = usual_preprocessing(name, 3, {})
    height, width = preprocessing.size
    with torch.device("meta"), Intercepted(_unfilled):
        network = build_classifier(name, num_classes=None, in_chans=3, backbone_args={}).eval()
    is_cam_ready = False
    with suppress(CamtrainValueError):
        find_maps(network)
        is_cam_ready = True
    backbone, record = trunk_of(Classifier(network, name, 3, preprocessing), None)
    is_graph = isinstance(backbone, GraphBackbone)
    last_layer = record.layers[-1].name.removeprefix("trunk.")
    taller = probe_or_none(backbone, 3, (2 * height, width))
    return Entry(
        name,
        cut=str(backbone.cut) if is_graph else block_of(last_layer),
        channels=record.shape[1],
        stride=_stride(height, record.shape[2], None if taller is None else taller.shape[2]),
        map_hw=(record.shape[2], record.shape[3]),
        size_hw=(height, width),
        is_fixed=taller is None,
        is_cam_ready=is_cam_ready,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
    )


def _unfilled(
    func: Callable[..., object], args: tuple[Any, ...], options: dict[str, Any]
) -> object:
    """The function's result; of one that fills weights, which have no numbers, the weights."""
    if func in _FILLING and isinstance(args[0], Tensor) and args[0].is_meta:
        return args[0]
    return func(*args, **options)


def catalogue(names: Sequence[str], cache: Path) -> list[Entry]:
    """The entries of these networks; those that the cache file lacks are found and added to it."""
    entries = _read(cache)
    missing = [name for name in names if name not in entries]
    if missing:
        text = f"Looking at {len(missing)} networks, once"
        try:
            for entry in track(_describe_all(missing), text, total=len(missing)):
                entries[entry.name] = entry
        finally:  # Ctrl-C loses nothing
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_text(cache, json.dumps([asdict(entry) for entry in entries.values()]))
    return [entries[name] for name in names]


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
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    matches = [
        name
        for name in names
        if fnmatchcase(name, pattern) or fnmatchcase(name.partition("/")[2], pattern)
    ]
    if not matches:
        raise CamtrainValueError(
            f"FILTER must be part of the name of a network, or a pattern such as 'timm/resnet*', "
            f"got {pattern.strip('*')!r}, which none of {len(names)} names has."
        )
    return matches


def main(args: Sequence[str]) -> None:
    """``camtrain models [FILTER]``."""
    parser = VerbParser(
        prog="camtrain models",
        description="What every network of torchvision and timm becomes when it is cut for CAM.",
        epilog="The first call looks at every network that it lists, without weights, and keeps "
        "what it finds in the user's cache folder. Example: camtrain models timm/convnext",
    )
    parser.add_argument(
        "filter",
        nargs="?",
        default="*",
        metavar="FILTER",
        help="part of a name, or a pattern with * and ? (default: every network)",
    )
    names = matching(every_name(), parser.parse_args(args[1:]).filter)
    print(table(catalogue(names, cache_file())))


def table(entries: Sequence[Entry]) -> str:
    """A line for each network that converts, one for each that does not, and the counts."""
    convertible = [entry for entry in entries if entry.reason is None]
    rows = [("name", "cut", "channels", "stride", "map", "input", "cam-ready", "parameters")]
    rows += [
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
        for entry in convertible
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [f"{entry.name}: {entry.reason}" for entry in entries if entry.reason is not None]
    ready = sum(entry.is_cam_ready for entry in convertible)
    lines.append(f"{len(convertible)} of {len(entries)} convert, {ready} of them are cam-ready.")
    return "\n".join(lines)


def _describe_all(names: Sequence[str]) -> Iterator[Entry]:
    if len(names) <= _MOST_IN_THIS_PROCESS:
        yield from map(describe, names)
        return
    context, one_thread = get_context("spawn"), (1,)
    with ProcessPoolExecutor(
        os.cpu_count(), context, torch.set_num_threads, one_thread
    ) as processes:
        yield from processes.map(describe, names, chunksize=4)


def _stride(height: int, rows: int, taller_rows: int | None) -> int:
    """Pixels per row of the map: those of the rows that an image of twice the height adds.

    This leaves out the borders of unpadded layers and of sizes that do not divide. Networks of one
    size, or that resize their map to one, give the ratio of both heights.
    """
    added_rows = (taller_rows or rows) - rows
    pixels = height / (added_rows or rows)
    power = 2 ** round(math.log2(pixels))
    return power if abs(pixels / power - 1) < 0.1 else round(pixels)


def _read(cache: Path) -> dict[str, Entry]:
    if not cache.is_file():
        return {}
    entries = {}
    for values in json.loads(cache.read_text()):
        values |= {key: tuple(values[key]) for key in ("map_hw", "size_hw")}
        entries[values["name"]] = Entry(**values)
    return entries
