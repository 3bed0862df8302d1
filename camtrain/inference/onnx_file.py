"""What an ONNX file says about itself, read without any runtime: nothing of it is executed.

The layout is that of ``ModelProto`` in onnx.proto3 (https://github.com/onnx/onnx): metadata are in
field 14, the operator sets in field 8, the graph in field 7.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.inference.exported import MOST_METADATA

_GRAPH, _OPERATOR_SET, _METADATA = 7, 8, 14
_KEY, _VALUE, _DOMAIN = 1, 2, 1
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


class OnnxHeader(NamedTuple):
    """What stands beside the graph.

    Attributes:
        metadata: Text by key.
        domains: Of the operators it may use; empty for the standard ones.
    """

    metadata: dict[str, bytes]
    domains: set[str]


def read_header(path: Path) -> OnnxHeader:
    """What a file says beside its graph, which is not looked at.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: It is no ONNX file.
    """
    if not path.is_file():
        raise CamtrainFileNotFoundError(
            f"No ONNX file at {path.absolute()}; give the path of an exported .onnx."
        )
    header, has_graph = OnnxHeader({}, set()), False
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for number, start, end in _fields(data, 0, len(data)):
                has_graph = has_graph or number == _GRAPH
                if number in (_METADATA, _OPERATOR_SET):
                    if end - start > MOST_METADATA:
                        raise ValueError(f"{end - start} bytes of metadata")
                    fields = {n: data[a:b] for n, a, b in _fields(data, start, end)}
                    if number == _METADATA:
                        header.metadata[fields[_KEY].decode()] = fields.get(_VALUE, b"")
                    else:
                        header.domains.add(fields.get(_DOMAIN, b"").decode())
        if not has_graph:
            raise ValueError("no graph")
    except (ValueError, IndexError, KeyError) as error:
        raise CamtrainValueError(
            f"{path} is not a readable ONNX file ({error}); export it again."
        ) from error
    return header


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a message, see protobuf.dev/programming-guides."""
    while start < end:
        tag, start = _varint(data, start)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length, start = _varint(data, start)
        elif kind == _VARINT:
            length = _varint(data, start)[1] - start
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of unknown kind {kind}")
        if start + length > end:
            raise ValueError("a field reaches beyond its end")
        yield number, start, start + length
        start += length


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    """A number of 7 bits per byte, least first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise ValueError("a number of more than ten bytes")
