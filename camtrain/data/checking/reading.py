"""Every picture read once, as training reads it, by several processes."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from camtrain.data.box_files import BoxError
from camtrain.data.decoding import DamagedImageError, open_picture
from camtrain.data.faults import listed_faults
from camtrain.data.source import FileSource, Source
from camtrain.data.workers import leave_signals_to_parent, lost_worker, usable_workers
from camtrain.errors import one_line

# Starting the processes costs as much as reading about this many pictures of 500 pixels.
_FEW = 500
_BATCH = 32  # pictures per message between processes
_PILLOW = Path(Image.__file__).parent


class Record(NamedTuple):
    """What was found out about one picture by reading it."""

    size_hw: tuple[int, int] = (0, 0)  # upright, as in training; (0, 0): it cannot be read
    pixels: bytes = b""  # hash of the decoded pixels; b"": it cannot be read
    error: str = ""  # why it cannot be read
    is_empty: bool = False  # the file has 0 bytes
    refusal: str = ""  # the sentence with which an evaluation ends at it; "": it does not
    is_damaged: bool = False  # the refusal is of a file that --data.allow_damaged skips
    complaint: str = ""  # what a decoder reported of a picture that it could read all the same
    format: str = ""  # Pillow's name for the content; "": it is no file, or no picture
    boxes: int = 0  # how many it has
    # Of each bad box: what is wrong, and how many pixels it reaches outside (0: it cannot be read,
    # or has no area).
    off_boxes: tuple[tuple[str, int], ...] = ()


def examine(source: Source, index: int, *, exif: bool = True) -> Record:
    """Read one picture with the decoder of training and return its record."""
    path = Path(source.paths[index])
    is_file = path.is_file()
    with _decoder_messages() as messages, listed_faults(BoxError) as refused:
        try:
            if isinstance(source, FileSource):
                picture = source.read_file(index, exif=exif)
            else:
                picture = source.read(index)
        except Exception as error:  # whatever it is, a training would meet it too
            is_empty = is_file and not path.stat().st_size
            return Record(
                error="the file has 0 bytes" if is_empty else _reason(error),
                is_empty=is_empty,
                refusal=one_line(error),
                is_damaged=isinstance(error, DamagedImageError),
                format=format_of(path) if is_file else "",
            )
    image, boxes_xyxy = picture.image, picture.boxes_xyxy
    size_hw = (image.shape[-2], image.shape[-1])
    content = str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()
    return Record(
        size_hw=size_hw,
        pixels=hashlib.sha1(content, usedforsecurity=False).digest(),
        refusal=one_line(refused[0]) if refused else "",
        complaint=messages[0] if messages else "",
        format=format_of(path) if is_file else "",
        boxes=len(boxes_xyxy),
        off_boxes=(*((str(error), 0) for error in refused), *_off_boxes(boxes_xyxy, size_hw)),
    )


def examine_all(
    sources: Sequence[Source],
    processes: int,
    *,
    exif: bool = True,
    places: Sequence[int] | None = None,
) -> Iterator[Record]:
    """The records of the pictures of all sources, one source after the other.

    Args:
        sources: What to read.
        processes: How many to start; few pictures are read without any.
        exif: Turn pictures upright.
        places: Of the pictures to read, counted through all sources; None: all of them.
    """
    records: ConcatDataset[Record] = ConcatDataset([_Records(source, exif) for source in sources])
    places = range(len(records)) if places is None else places
    batches: DataLoader[Record] = DataLoader(
        records,
        batch_size=_BATCH,
        sampler=places,
        num_workers=usable_workers(processes if len(places) > _FEW else 0),
        collate_fn=list,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # or starting would use global random numbers
    )
    try:
        for batch in batches:
            yield from batch
    except RuntimeError as error:
        if sentence := lost_worker(error):
            raise sentence from error
        raise


@dataclass(frozen=True)
class _Records(Dataset[Record]):
    """The records of one source as a data set, for torch's loader to share out."""

    source: Source
    exif: bool

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return examine(self.source, index, exif=self.exif)


def _reason(error: Exception) -> str:
    """The message of an error in one line, without type, path and addresses of objects."""
    text = one_line(error.__cause__ or error, with_type=False)
    return re.sub(r" <[\w.]+ object at 0x[0-9a-f]+>", "", text)  # Pillow's, of open files


def format_of(path: Path) -> str:
    """Pillow's name for the format of a file, by its first bytes; "" where it is no picture."""
    try:
        with warnings.catch_warnings(), open_picture(path) as image:
            warnings.simplefilter("ignore")
            return image.format or ""
    except Exception:  # no picture, or one that has been reported already
        return ""


def _off_boxes(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Iterator[tuple[str, int]]:
    """The boxes without area or partly outside the picture, as in ``Record.off_boxes``."""
    height, width = size_hw
    for xmin, ymin, xmax, ymax in boxes_xyxy.tolist():
        box = f"box {xmin},{ymin},{xmax},{ymax}"
        if xmin >= xmax or ymin >= ymax:
            yield f"{box} has no area", 0
        elif beyond := max(-xmin, -ymin, xmax - width, ymax - height, 0):
            yield f"{box} reaches {beyond} px outside the picture of {width}x{height}", beyond


@contextmanager
def _decoder_messages() -> Iterator[list[str]]:
    """Collect what the decoders report meanwhile: Pillow's warnings, and lines of C libraries.

    libjpeg writes to the process's standard error when it patches damage: such a picture is shown
    with gray or shifted blocks.
    """
    messages: list[str] = []
    standard_error = os.dup(2)
    with (
        warnings.catch_warnings(record=True) as caught_warnings,
        tempfile.TemporaryFile() as output,
    ):
        warnings.simplefilter("always")
        os.dup2(output.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    for warning in caught_warnings:
        if Path(warning.filename).parent == _PILLOW:
            messages.append(str(warning.message))
        else:  # of another thread, such as that of the progress bar
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    messages += [line for line in lines if line.strip()]
