"""Caffe's weight files, read without Caffe and without protobuf.

Source: ``caffe.proto`` of BVLC Caffe (NetParameter, LayerParameter, V1LayerParameter, BlobProto)
    and the protocol buffers' encoding, https://protobuf.dev/programming-guides/encoding.

A message is a row of fields: a number that holds the field's place and kind, then its value. These
messages have a fixed depth (file, layer, blob, shape), nothing is read twice, and nothing grows
beyond the size of the file itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from camtrain.errors import CamtrainValueError, join_first

_VARINT, _BYTES = 0, 2  # kinds of fields
_FIXED_LENGTHS = {1: 8, 5: 4}  # in bytes, of further kinds
_LONGEST_VARINT = 10
_MOST_AXES = 32  # as in Caffe
_MOST_BLOBS = 10_000  # of a few bytes each, they would take some hundred bytes each in memory

# The field of a layer, of its name and of its blobs, in both serializations (V1 layers, V2 layer).
_NAME_FIELDS = {2: 4, 100: 1}
_BLOBS_FIELDS = {2: 6, 100: 7}
_LEGACY_AXES = (1, 2, 3, 4)  # num, channels, height, width
_FLOATS, _SHAPE, _DOUBLES = 5, 7, 8


class _DamageError(Exception):
    """What is wrong with a file."""


def caffe_weights(path: str | Path, layers: Mapping[str, str], network: str) -> dict[str, Tensor]:
    """The weights of a ``.caffemodel`` by our parameter names.

    ``layers`` holds our names of the network's modules with weights, by their Caffe names.

    Raises:
        CamtrainValueError: The file is damaged, or its layers are not those of the network.
    """
    arrays = read_caffemodel(path)
    problems = [f"layer {name} is missing" for name in layers if name not in arrays]
    problems += [f"layer {_shown(name)} is extra" for name in arrays if name not in layers]
    problems += [
        f"layer {name} has {len(arrays[name])} arrays, not weight and bias"
        for name in layers
        if len(arrays.get(name, "wb")) != 2
    ]
    if problems:
        raise CamtrainValueError(
            f"{path} holds the weights of another network than {network}: "
            f"{join_first(problems, 4, separator='; ')}."
        )
    tensors = {}
    for name, module in layers.items():
        weight, bias = arrays[name]
        tensors[f"{module}.weight"] = _without_unit_axes(weight, 2 if module == "head" else 4)
        tensors[f"{module}.bias"] = _without_unit_axes(bias, 1)
    return tensors


def read_caffemodel(path: str | Path) -> dict[str, list[Tensor]]:
    """The arrays of a ``.caffemodel``, of either serialization, float32, by layer name.

    In the old serialization all arrays have four axes, ``(1, 1, 1, n)`` for a bias. The last of
    several layers with the same name counts, as in Caffe.

    Raises:
        CamtrainValueError: The file is damaged, or no Caffe weights.
    """
    path = Path(path)
    try:
        layers = _layers(memoryview(path.read_bytes()))
    except _DamageError as error:
        raise CamtrainValueError(
            f"{path} cannot be read as Caffe weights: {error}; expected a whole .caffemodel, take "
            "it from its source again."
        ) from error
    if not layers:
        raise CamtrainValueError(
            f"{path} holds no layer with weights; expected a .caffemodel (a .prototxt holds the "
            "layers only)."
        )
    return layers


def _layers(content: memoryview) -> dict[str, list[Tensor]]:
    """The arrays of each layer in a whole file, a NetParameter."""
    layers: dict[str, list[Tensor]] = {}
    count = 0
    for field, value in _fields(content):
        if field not in _NAME_FIELDS or not isinstance(value, memoryview):
            continue
        name, blobs = "", []
        for layer_field, layer_value in _fields(value):
            if layer_field == _NAME_FIELDS[field] and isinstance(layer_value, memoryview):
                name = bytes(layer_value).decode(errors="replace")
            elif layer_field == _BLOBS_FIELDS[field] and isinstance(layer_value, memoryview):
                count += 1
                if count > _MOST_BLOBS:
                    raise _DamageError(f"it has more than {_MOST_BLOBS} arrays")
                blobs.append(_blob(layer_value, name))
        if blobs:
            layers[name] = blobs
    return layers


def _blob(content: memoryview, layer: str) -> Tensor:
    """The array of a BlobProto."""
    floats, doubles = bytearray(), bytearray()
    shape: list[int] = []
    legacy: dict[int, int] = {}
    for field, value in _fields(content):
        if field in _LEGACY_AXES and isinstance(value, int):
            legacy[field] = value
        elif field in (_FLOATS, _DOUBLES) and isinstance(value, memoryview):
            # Packed or one by one: an unpacked number comes as the bytes it has in a row of them.
            (floats if field == _FLOATS else doubles).extend(value)
        elif field == _SHAPE and isinstance(value, memoryview):
            shape = _shape(value)
    if legacy and not shape:
        shape = [legacy.get(axis, 1) for axis in _LEGACY_AXES]
    data, kind = (floats, torch.float32) if floats else (doubles, torch.float64)
    count, surplus = divmod(len(data), kind.itemsize)
    shape = shape or [count]
    if surplus or not count or count != math.prod(shape):
        raise _DamageError(
            f"layer {_shown(layer)} has {len(data)} bytes of numbers for an array of the shape "
            f"{tuple(shape[:4])}"
        )
    return torch.frombuffer(data, dtype=kind).float().reshape(shape)


def _shape(content: memoryview) -> list[int]:
    """The axes of a BlobShape, packed or one by one."""
    axes: list[int] = []
    for field, value in _fields(content):
        if field != 1:
            continue
        if isinstance(value, int):
            axes.append(value)
        else:
            at = 0
            while at < len(value) and len(axes) <= _MOST_AXES:
                axis, at = _varint(value, at)
                axes.append(axis)
        if len(axes) > _MOST_AXES:
            raise _DamageError(f"an array in it has more than {_MOST_AXES} axes")
    return axes


def _without_unit_axes(tensor: Tensor, axes: int) -> Tensor:
    """The tensor without the leading axes of length 1 that the old serialization adds."""
    while tensor.ndim > axes and len(tensor) == 1:
        tensor = tensor[0]
    return tensor


def _shown(name: str) -> str:
    """A layer's name for a message: a damaged one may be long, or hold anything."""
    return f"{name!r:.60}"


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message in order: a varint as its number, everything else as its bytes."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            number, at = _varint(content, at)
            yield field, number
            continue
        if kind == _BYTES:
            length, at = _varint(content, at)
        elif kind in _FIXED_LENGTHS:
            length = _FIXED_LENGTHS[kind]
        else:
            raise _DamageError(f"it has a field of the unknown kind {kind}")
        if length > len(content) - at:
            raise _DamageError(
                f"a field of {length} bytes begins where {len(content) - at} are left, so it is "
                "cut off or damaged"
            )
        yield field, content[at : at + length]
        at += length


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at ``at``, seven bits per byte, and where it ends."""
    number = 0
    for place, byte in enumerate(content[at : at + _LONGEST_VARINT]):
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, at + place + 1
    raise _DamageError("a number in it does not end, so it is cut off or damaged")
