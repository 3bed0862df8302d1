"""What a network of torchvision or timm becomes when it is cut, found without its weights."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from camtrain.errors import CamtrainValueError, first_line
from camtrain.model.backbones import build_classifier, usual_preprocessing
from camtrain.model.catalogue import Entry
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
_MOST_IN_THIS_PROCESS = 40  # starting a process costs as much as describing some 20 networks
_WHILE_THEY_START = 12


def describe_all(names: Sequence[str]) -> Iterator[Entry]:
    """The entries of these networks in their order; of many, the most are found by processes."""
    if len(names) <= _MOST_IN_THIS_PROCESS:
        yield from map(describe, names)
        return
    context, one_thread = get_context("spawn"), (1,)
    processes = ProcessPoolExecutor(os.cpu_count(), context, torch.set_num_threads, one_thread)
    try:
        entries = processes.map(describe, names[_WHILE_THEY_START:], chunksize=4)
        yield from map(describe, names[:_WHILE_THEY_START])
        yield from entries
    finally:
        processes.shutdown(cancel_futures=True)  # not all of them may be asked for


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


def _stride(height: int, rows: int, taller_rows: int | None) -> int:
    """Pixels per row of the map: those of the rows that an image of twice the height adds.

    This leaves out the borders of unpadded layers and of sizes that do not divide. Networks of one
    size, or that resize their map to one, give the ratio of both heights.
    """
    added_rows = (taller_rows or rows) - rows
    pixels = height / (added_rows or rows)
    power = 2 ** round(math.log2(pixels))
    return power if abs(pixels / power - 1) < 0.1 else round(pixels)
