"""What a feature cache is valid for: its key changes with everything that changes a feature."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camtrain.data import Source
from camtrain.model.camnet import CAMNet

# Parts of a network's recipe that come after the backbone.
_AFTER_THE_BACKBONE = ("num_classes", "pool", "dropout", "task")
_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless")
# Settings of the data module that change no picture, or are in the key in another form. One that is
# not listed changes the key.
_OTHER_SETTINGS = (
    *("source", "root", "seed", "val_fraction", "test_fraction", "class_names", "lengths"),
    *("split_file", "metadata", "exclude", "shards_cache", "shards_cache_gb"),
    *("batch_size", "workers", "sampler", "augment", "cache_features", "cache_dir"),
    *("auto_augment", "hide_and_seek", "max_damaged", "allow_damaged"),
    *("size", "resize_mode", "crop_pct", "interpolation", "mean", "std", "channel_order"),
)
# Own code that decides about pixels and features.
_OWN_CODE = ("data/**/*.py", "model/*.py", "training/cache/*.py", "maps.py", "preprocessing.py")


def key_of(parts: dict[str, Any]) -> str:
    """The name of a cache: 20 hexadecimal digits that stand for plain values.

    Example:
        >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
        True
    """
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def backbone_parts(net: CAMNet) -> dict[str, Any]:
    """How the backbone is built, and a hash of its parameters and buffers."""
    recipe = net.recipe or {}
    return {
        "architecture": {
            name: value
            for name, value in recipe.items()
            if name not in _AFTER_THE_BACKBONE and not name.startswith("neck")
        },
        "tensors": hash_of_tensors(net.backbone),
    }


def hash_of_tensors(module: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of a module's parameters and buffers."""
    total = hashlib.sha256()
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(_bytes_of(tensor))
    return total.hexdigest()


def hash_of_pictures(source: Source) -> str:
    """SHA-256 of what a source's pictures are made from.

    A picture in a file stands for its path, its size in bytes and its time of change in
    nanoseconds; one that lies in no file (drawn, or in memory) is read and stands for its pixels.
    """
    total = hashlib.sha256()
    for index, path in enumerate(source.paths):
        try:
            found = os.stat(path)
            total.update(f"{path} {found.st_size} {found.st_mtime_ns}\n".encode())
        except OSError:  # no file of its own
            image = source.read(index).image
            total.update(f"{path} {tuple(image.shape)}".encode())
            total.update(_bytes_of(image))
    return total.hexdigest()


def other_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What else a data module was told that may change a picture, as plain values."""
    return {name: repr(value) for name, value in settings.items() if name not in _OTHER_SETTINGS}


@cache
def versions() -> dict[str, str]:
    """The libraries that make pixels and features, and a hash of our own code that does."""
    folder = Path(__file__).parents[2]
    files = sorted(path for pattern in _OWN_CODE for path in folder.glob(pattern))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return {"camtrain": code, **{library: version(library) for library in _LIBRARIES}}


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
