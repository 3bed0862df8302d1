"""Weights from a file: reading them without running code from it, and fitting them to a network."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "net.", "backbone.trunk.")
# torchvision's published DenseNets keep the names of 2017: `denselayer1.norm.1.weight`.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
# Where only a part was trained in parallel, as in Places365's AlexNet: `features.module.0.bias`.
_PARALLEL_PART = re.compile(r"^([^.]+)\.module\.")
_SHOWN = 4


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, by parameter name.

    Reads ``.safetensors`` (also a camtrain bundle) and everything ``torch.load(weights_only=True)``
    reads. A wrapping ``state_dict``, ``model_state_dict`` or ``model`` and prefixes that all keys
    share are taken off.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: The file is no weights file, or holds more than plain tensors.
    """
    path = Path(path)
    check_is_file(path)
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes the readers raise cannot be known
        raise CamtrainValueError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is damaged, or holds "
            "more than plain tensors, whose reading would run code from it; expected the "
            "state_dict of a network."
        ) from error
    tensors = _unwrap(content)
    if not tensors:
        raise CamtrainValueError(
            f"{path} holds no tensors by name; expected the state_dict of a network."
        )
    return tensors


def check_is_file(path: Path) -> None:
    """Refuse weights that are not there.

    Raises:
        CamtrainFileNotFoundError: No such file; says where it was looked for.
    """
    if not path.is_file():
        raise CamtrainFileNotFoundError(
            f"weights must be a weight name or an existing file, got {str(path)!r}, which does not "
            f"exist (looked at {path.absolute()})."
        )


def _unwrap(content: object) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    for key in _WRAPPERS:
        if isinstance(content.get(key), dict):
            return _unwrap(content[key])
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        # A CAM network also has a neck and a head beside its backbone; other prefixes are shared by
        # all.
        if inside and (len(inside) == len(tensors) or prefix == "backbone.trunk."):
            tensors = inside
    return tensors


def renamed(weights: dict[str, Tensor], wanted: Container[str]) -> dict[str, Tensor]:
    """Weights under a network's own names, where the way they were saved changed these.

    Args:
        weights: By the names in the file.
        wanted: The network's names; a name that it has, or that no rule leads to, stays.
    """
    named = {}
    for name, tensor in weights.items():
        own = _PARALLEL_PART.sub(r"\1.", _OLD_DENSENET.sub(r"\1", name))
        named[own if name not in wanted and own in wanted else name] = tensor
    return named


def load_weights(network: nn.Module, weights: dict[str, Tensor], *, source: str) -> None:
    """Copy weights into a network in place; keys that the network does not have are ignored.

    Args:
        network: Every one of its parameters and buffers must be among ``weights``, in the same
            shape.
        weights: By the network's names.
        source: Where the weights come from, for the error.

    Raises:
        CamtrainValueError: Keys are missing or have other shapes; names them.
    """
    wanted = network.state_dict()
    weights = renamed(weights, wanted)
    # The counter came with PyTorch 0.4.1 and is not used by any arithmetic here.
    missing = [n for n in wanted if n not in weights and not n.endswith("num_batches_tracked")]
    unequal = [n for n in wanted if n in weights and weights[n].shape != wanted[n].shape]
    if missing or unequal:
        told = [f"{n} is missing, {tuple(wanted[n].shape)} expected" for n in missing]
        told += [
            f"{n} is {tuple(weights[n].shape)}, {tuple(wanted[n].shape)} expected" for n in unequal
        ]
        more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        raise CamtrainValueError(
            f"{source} holds weights of another architecture: {len(told)} of {len(wanted)} tensors "
            f"do not fit: {'; '.join(told[:_SHOWN])}{more}. Its own keys begin with "
            f"{', '.join(list(weights)[:2])}."
        )
    network.load_state_dict({n: weights[n] for n in wanted if n in weights}, strict=False)
