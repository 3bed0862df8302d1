"""Pictures of an evaluation, opened before the training that it could end."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from camtrain.arguments import announce, print_paragraph
from camtrain.data import DamagedImageError, PreparedDataset
from camtrain.data.checking.reading import Record, examine_all
from camtrain.data.dataset import damaged_error
from camtrain.data.source import FileSource, Source, Split
from camtrain.errors import CamtrainValueError
from camtrain.files import replacing, user_cache

_SECONDS = 60.0  # after so many the remaining pictures are not opened


def open_pictures(
    sources: Mapping[Split, Source], settings: Mapping[str, Any], *, shows_progress: bool
) -> None:
    """Read the picture files of validation and test once, for a minute at most.

    A line says how many were not opened. Files that an earlier call could read are not read again:
    the user's cache holds a number for each, made of its path, size and time of change. Shards hold
    no damaged pictures and are left out.

    Args:
        sources: All splits.
        settings: The settings of the data module.
        shows_progress: Show a bar on a terminal.

    Raises:
        CamtrainValueError: A picture would end the evaluation: it cannot be read, or its boxes or
            its mask cannot be right.
    """
    files = [
        source
        for split, source in sources.items()
        if split != "train" and isinstance(source, FileSource) and settings["source"] != "shards"
    ]
    keys = _keys(path for source in files for path in source.paths)
    file = user_cache() / "readable_pictures.npy"
    known = _load(file)
    places = np.flatnonzero(~np.isin(keys, known)).tolist()
    if not places:
        return
    text = f"Reading {len(places)} validation and test pictures"
    console = Console(stderr=True)
    is_shown = shows_progress and console.is_terminal
    readable: list[int] = []
    refused: list[Record] = []
    opened, end = 0, time.monotonic() + _SECONDS
    with nullcontext() if is_shown else announce(text):
        for record in track(
            examine_all(files, settings["workers"], exif=settings["exif"], places=places),
            text,
            total=len(places),
            console=console,
            transient=True,
            disable=not is_shown,
        ):
            if not record.refusal:
                readable.append(places[opened])
            elif not (settings["allow_damaged"] and record.is_damaged):
                refused.append(record)
            opened += 1
            if time.monotonic() > end:
                break
    if readable:
        _save(file, np.union1d(known, keys[readable]))
    if refused:
        raise _error(refused, len(keys))
    if opened < len(places):
        print_paragraph(
            f"{len(places) - opened} of {len(keys)} validation and test pictures were not opened "
            f"before the training, since that takes longer than {_SECONDS:.0f} s; camtrain "
            "check-data opens all."
        )


def check_channels(pictures: PreparedDataset, in_chans: int) -> None:
    """Refuse a network of other channels than the first picture has; grey and colour fit 1 and 3.

    Raises:
        CamtrainValueError: The picture cannot become one of ``in_chans`` channels.
    """
    if in_chans in (1, 3):
        return
    with suppress(DamagedImageError):
        channels = len(pictures.picture(0).image)
        if channels not in (1, in_chans):
            raise CamtrainValueError(
                f"The network takes pictures of {in_chans} channels, and those of the data have "
                f"{channels}; give in_chans={channels}."
            )


def _error(refused: Sequence[Record], total: int) -> CamtrainValueError:
    """The error that names the first of some pictures and says how many there are."""
    first = refused[0]
    error = damaged_error(first.refusal) if first.is_damaged else CamtrainValueError(first.refusal)
    if len(refused) == 1:
        return error
    return type(error)(
        f"{len(refused)} of {total} validation and test pictures cannot be used (camtrain "
        f"check-data lists them for --data.exclude); the first: {error}"
    )


def _keys(paths: Iterable[str]) -> NDArray[np.uint64]:
    """A number for the present state of each file, (N,); 0 where there is none."""
    keys = array("Q")
    for path in paths:
        key = b""
        with suppress(OSError):
            status = os.stat(path)
            text = os.fsencode(f"{path}\0{status.st_size}\0{status.st_mtime_ns}")
            key = blake2b(text, digest_size=8).digest()
        keys.append(int.from_bytes(key))
    return np.array(keys, np.uint64)


def _load(file: Path) -> NDArray[np.uint64]:
    """The numbers of the files that could be read; none where the cache holds none."""
    with suppress(OSError, ValueError, EOFError):
        return np.asarray(np.load(file), np.uint64)
    return np.zeros(0, np.uint64)


def _save(file: Path, keys: NDArray[np.uint64]) -> None:
    """Keep the numbers in the cache, if that can be written."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            np.save(part, keys[keys > 0])
