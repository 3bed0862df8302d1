"""``camtrain models``: lists every network of torchvision and timm with its cut and its maps."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.overrides import TorchFunctionMode

from camtrain.arguments import VerbParser
from camtrain.errors import CamtrainValueError, first_line
from camtrain.files import user_cache, write_text
from camtrain.model.backbones import build_classifier, every_name, usual_preprocessing
from camtrain.model.convert import find_maps
from camtrain.model.cut import block_of
from camtrain.model.probe import probe_or_none
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
    """A network as ``create_model`` cuts it, with its usual arguments.

    Attributes:
        name: ``library/model``.
        cut: The layer it ends after.
        channels: Of its feature map.
        stride: Pixels of the image per pixel of the map, about.
        map_hw: (h, w) of the map for an image of ``size_hw``.
        size_hw: (H, W) of the images it was made for.
        is_fixed: Whether it takes images of no other size.
        is_cam_ready: Whether its original head gives the maps, without training.
        parameters: Of the backbone, up to the cut.
        reason: Why it does not convert; None for a network that does.
    """

    name: str
    cut: str = ""
    channels: int = 0
    stride: int = 0
    map_hw: tuple[int, int] = (0, 0)
    size_hw: tuple[int, int] = (0, 0)
    is_fixed: bool = False
    is_cam_ready: bool = False
    parameters: int = 0
    reason: str | None = None


def describe(name: str) -> Entry:
    """The entry of a network, found on the meta device: nothing is computed or loaded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries warn about their old networks
            return _described(name)
    except Exception as error:  # each network fails in its own way, and is reported
        return Entry(name, reason=f"{type(error).__name__}: {first_line(error)}")


def _described(name: str) -> Entry:
    preprocessing = usual_preprocessing(name, 3, {})
    height, width = preprocessing.size
    with torch.device("meta"), _Unfilled():
        network = build_classifier(name, num_classes=None, in_chans=3, backbone_args={}).eval()
    is_cam_ready = True
    try:
        find_maps(network)
    except CamtrainValueError:
        is_cam_ready = False
    backbone, probed = trunk_of(Classifier(network, name, 3, preprocessing), None)
    last_layer = probed.layers[-1].name.removeprefix("trunk.")
    of_twice_the_height = probe_or_none(backbone, 3, (2 * height, width))
    taller = None if of_twice_the_height is None else of_twice_the_height.shape[2]
    return Entry(
        name,
        cut=backbone.cut if isinstance(backbone, GraphBackbone) else block_of(last_layer),
        channels=probed.shape[1],
        stride=_stride(height, probed.shape[2], taller),
        map_hw=(probed.shape[2], probed.shape[3]),
        size_hw=(height, width),
        is_fixed=taller is None,
        is_cam_ready=is_cam_ready,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
    )


class _Unfilled(TorchFunctionMode):
    """Skips the functions that fill weights, which have no numbers on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """The result, or the tensor that would have been filled."""
        if func in _FILLING and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def catalogue(names: Sequence[str], cache: Path) -> list[Entry]:
    """The entries of these networks; those that the cache file lacks are found and added to it."""
    known = _read(cache)
    missing = [name for name in names if name not in known]
    if not missing:
        return [known[name] for name in names]
    text = f"Looking at {len(missing)} networks, once"
    try:
        for entry in track(_described_all(missing), text, total=len(missing)):
            known[entry.name] = entry
    finally:  # Ctrl-C loses nothing
        _write(cache, known)
    return [known[name] for name in names]


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
        if fnmatch.fnmatchcase(name, pattern)
        or fnmatch.fnmatchcase(name.partition("/")[2], pattern)
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
    """One line per network, then what does not convert, and how many do."""
    converted = [entry for entry in entries if entry.reason is None]
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
        for entry in converted
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [f"{entry.name}: {entry.reason}" for entry in entries if entry.reason is not None]
    ready = sum(entry.is_cam_ready for entry in converted)
    lines.append(f"{len(converted)} of {len(entries)} convert, {ready} of them are cam-ready.")
    return "\n".join(lines)


def _described_all(names: Sequence[str]) -> Iterator[Entry]:
    if len(names) <= _MOST_IN_THIS_PROCESS:
        yield from map(describe, names)
        return
    context, one_thread = get_context("spawn"), (1,)
    with ProcessPoolExecutor(
        os.cpu_count(), context, torch.set_num_threads, one_thread
    ) as processes:
        yield from processes.map(describe, names, chunksize=4)


def _stride(height: int, rows: int, taller: int | None) -> int:
    """Pixels per row of the map, by the rows that twice the height adds, where it is taken.

    The borders of unpadded layers and of sizes that do not divide are not counted that way.
    """
    # Some networks resize their map to one size.
    pixels = height / rows if taller in (None, rows) else height / (taller - rows)
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


def _write(cache: Path, entries: dict[str, Entry]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_text(cache, json.dumps([asdict(entry) for entry in entries.values()]))
