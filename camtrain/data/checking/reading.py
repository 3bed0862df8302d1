"""Every picture read once, as training reads it, by several processes."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import IO, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from camtrain.data.boxes import listed_box_errors
from camtrain.data.source import FileSource, Source
from camtrain.errors import one_line

# Starting the processes costs as much as reading about this many pictures of 500 pixels.
_FEW = 500
_AT_ONCE = 32  # pictures per message between processes
_DECODER = Path(Image.__file__).parent


class Record(NamedTuple):
    """What one picture showed.

    Attributes:
        size_hw: (H, W) upright, as training sees it; (0, 0) where it cannot be read.
        pixels: Hash of the decoded pixels; b"" where it cannot be read.
        error: Why it cannot be read; "" where it can.
        is_empty: The file has 0 bytes.
        complaint: What a decoder said of a picture that it could read all the same; mostly "".
        format: Pillow's name for the file's content; "" where it is no file, or no picture.
        boxes: How many boxes it has.
        off_boxes: Of each bad box: what is wrong, and how far it reaches outside, in pixels (0: it
            cannot be read, or has no area).
    """

    size_hw: tuple[int, int] = (0, 0)
    pixels: bytes = b""
    error: str = ""
    is_empty: bool = False
    complaint: str = ""
    format: str = ""
    boxes: int = 0
    off_boxes: tuple[tuple[str, int], ...] = ()


def examine(source: Source, index: int, *, exif: bool = True) -> Record:
    """Read one picture with the decoder of training and keep what is worth knowing."""
    path = Path(source.paths[index])
    is_file = path.is_file()
    if is_file and not path.stat().st_size:
        return Record(error="the file has 0 bytes", is_empty=True)
    with _overheard() as messages, listed_box_errors() as refused:
        try:
            if isinstance(source, FileSource):
                picture = source.read_file(index, exif=exif)
            else:
                picture = source.read(index)
        except Exception as error:  # whatever it is, a training would meet it too
            return Record(error=_reason(error), format=format_of(path) if is_file else "")
    refused_boxes = [(str(error), 0) for error in refused]
    size_hw = (picture.image.shape[-2], picture.image.shape[-1])
    return Record(
        size_hw=size_hw,
        pixels=_digest(picture.image),
        complaint=messages[0] if messages else "",
        format=format_of(path) if is_file else "",
        boxes=len(picture.boxes_xyxy),
        off_boxes=(*refused_boxes, *_off_boxes(picture.boxes_xyxy, size_hw)),
    )


def examine_all(
    sources: Sequence[Source],
    build: Callable[[], Sequence[Source]],
    processes: int,
    *,
    exif: bool = True,
) -> Iterator[Record]:
    """The records of the pictures of all sources, one source after the other.

    Args:
        sources: What to read.
        build: Makes the same sources in another process.
        processes: How many to start; few pictures are read without any.
        exif: Turn pictures upright.
    """
    tasks = [
        (number, range(start, min(start + _AT_ONCE, len(source))))
        for number, source in enumerate(sources)
        for start in range(0, len(source), _AT_ONCE)
    ]
    if processes == 0 or sum(map(len, sources)) <= _FEW:
        for number, indices in tasks:
            yield from (examine(sources[number], index, exif=exif) for index in indices)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (build,)) as pool:
        try:
            with _interrupts_held():
                results = pool.map(partial(_examine_some, exif=exif), tasks)  # starts the processes
            for records in results:
                yield from records
        except BaseException:  # Ctrl-C must not wait for what is still to be read
            pool.shutdown(cancel_futures=True)
            raise


_sources: Sequence[Source] = ()  # of this process


def _begin(build: Callable[[], Sequence[Source]]) -> None:
    global _sources
    _sources = build()
    torch.set_num_threads(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started meanwhile never hear of Ctrl-C: the first one says what happens then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _examine_some(task: tuple[int, range], *, exif: bool) -> list[Record]:
    number, indices = task
    return [examine(_sources[number], index, exif=exif) for index in indices]


def _reason(error: Exception) -> str:
    """What went wrong, without what the reader of a report knows, or cannot use."""
    reason = error.__cause__ or error
    text = one_line(reason, with_type=False)
    return re.sub(r" <[\w.]+ object at 0x[0-9a-f]+>", "", text)  # Pillow's, of open files


def _digest(image: Tensor) -> bytes:
    """Equal for equal pixels, whatever file they come from."""
    shape = str(tuple(image.shape)).encode()
    return hashlib.sha1(
        shape + image.contiguous().numpy().tobytes(), usedforsecurity=False
    ).digest()


def format_of(path: Path) -> str:
    """What the first bytes of a file say it is."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            return image.format or ""
    except Exception:  # no picture, or one that has been reported already
        return ""


def _off_boxes(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Iterator[tuple[str, int]]:
    height, width = size_hw
    for xmin, ymin, xmax, ymax in boxes_xyxy.tolist():
        box = f"box {xmin},{ymin},{xmax},{ymax}"
        if xmin >= xmax or ymin >= ymax:
            yield f"{box} has no area", 0
        elif beyond := max(-xmin, -ymin, xmax - width, ymax - height, 0):
            yield f"{box} reaches {beyond} px outside the picture of {width}x{height}", beyond


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What is said meanwhile as a warning, or by a C library on the process's standard error.

    That is where libjpeg tells of damage which it could patch: such a picture is shown with gray
    or shifted blocks.
    """
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught, _diverted() as errors:
        warnings.simplefilter("always")
        yield messages
        errors.seek(0)
        lines = errors.read().decode(errors="replace").splitlines()
    for warning in caught:
        if Path(warning.filename).parent == _DECODER:
            messages.append(str(warning.message))
        else:  # of another thread, such as that of the progress bar
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    messages += [line for line in lines if line.strip()]


@contextmanager
def _diverted() -> Iterator[IO[bytes]]:
    """A file that takes the process's standard error meanwhile."""
    original = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(original, 2)
            os.close(original)
