"""Weights that a library publishes or that a file holds: read, and fitted to a network."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError, first_line, join_first
from camtrain.header import Description, read_safetensors_description
from camtrain.model.backbones import first_conv, torchvision_weights
from camtrain.model.caffemodel import caffe_weights
from camtrain.model.recipes import caffe_layers

Entry = TypeVar("Entry")

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "net.", "backbone.trunk.")
# torchvision's published DenseNets keep the names of 2017: `denselayer1.norm.1.weight`.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
# Where only a part was trained in parallel, as in Places365's AlexNet: `features.module.0.bias`.
_PARALLEL_PART = re.compile(r"^([^.]+)\.module\.")


@dataclass(frozen=True)
class Weights:
    """Weights and what their source says about them."""

    tensors: dict[str, Tensor]  # by the names of the original classifier, or those of the bundle
    source: str  # a weight name or a path, for messages
    class_names: tuple[str, ...] | None = None  # None where the source gives none
    description: Description | None = None  # of a bundle; None for other weights

    def load_into(self, network: nn.Module, in_chans: int) -> None:
        """Copy the weights into a classifier or its trunk, see ``load_weights``.

        Weights of colour pictures are fitted to ``in_chans`` by timm's rule: sum or repeat.
        """
        tensors = self.tensors
        if in_chans != 3:
            tensors = rename_weights(tensors, network.state_dict())
            layer = f"{first_conv(network)}.weight"
            if layer in tensors and tensors[layer].shape[1] != in_chans:
                from timm.models import adapt_input_conv

                tensors = {**tensors, layer: adapt_input_conv(in_chans, tensors[layer])}
        load_weights(network, tensors, source=self.source)

    def load_part(self, network: nn.Module, part: str) -> None:
        """Copy the weights of one part of a network into it; their names are those of the whole."""
        tensors = _with_prefix(f"{part}.", self.tensors)
        load_weights(network.get_submodule(part), tensors, source=f"The {part} of {self.source}")


def find_weights(name: str, weights: str | Path | None) -> Weights | None:
    """Weights of the network ``library/model``, by their name or from a file.

    A value with a suffix or a folder in it is a file. ``DEFAULT`` is the library's recommendation.

    Raises:
        CamtrainValueError: The library has no such weights for this network; the message lists
            those it has. Or the file is damaged, or not of this network.
        CamtrainFileNotFoundError: There is no such file. Or the download failed; then the message
            names the file and where to put it.
    """
    library, model = name.split("/")
    if weights is None or (library == "camtrain" and weights == "DEFAULT"):
        return None
    path = Path(weights)
    if isinstance(weights, Path) or path.suffix or "/" in weights or path.exists():
        return _file_weights(name, path)
    if library == "torchvision":
        return _torchvision_weights(model, weights)
    if library == "timm":
        return _timm_weights(model, weights)
    raise _no_published_weights(name, weights)


def _file_weights(name: str, path: Path) -> Weights:
    if not path.is_file():
        raise CamtrainFileNotFoundError(
            f"weights must be a weight name or an existing file, got {str(path)!r}, which does not "
            f"exist (looked at {path.absolute()})."
        )
    if path.suffix == ".caffemodel":
        return Weights(caffe_weights(path, caffe_layers(name), name), str(path))
    is_safetensors = path.suffix == ".safetensors"
    description = read_safetensors_description(path) if is_safetensors else None
    if description is None:
        return Weights(read_weights(path), str(path))
    if description.architecture is None:
        raise CamtrainValueError(
            f"{path} does not say how its network is built; give weights=FILE with the state_dict "
            "of its backbone."
        )
    return Weights(safetensors.torch.load_file(path), str(path), description=description)


def _torchvision_weights(model: str, weights: str) -> Weights:
    name = f"torchvision/{model}"
    entry = _entry(name, weights, torchvision_weights(model))
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    with _explaining_failed_download(name, f"{entry.url} and put it into {folder}, or"):
        tensors = entry.get_state_dict(progress=True, check_hash=True)
    return Weights(tensors, f"{name} {weights}", tuple(entry.meta["categories"]))


def _timm_weights(model: str, weights: str) -> Weights:
    import timm

    name, default = f"timm/{model}", timm.get_pretrained_cfg(model)
    if default is None or not default.has_weights:
        raise _no_published_weights(name, weights)
    tags = [tagged.partition(".")[2] for tagged in timm.list_pretrained(f"{model}.*")]
    configs: dict[str, Any] = {tag: timm.get_pretrained_cfg(f"{model}.{tag}") for tag in tags}
    config = _entry(name, weights, {"DEFAULT": default, **configs})
    file = f"model.safetensors of {config.hf_hub_id}" if config.hf_hub_id else config.url
    with _explaining_failed_download(name, f"{file} and"):
        network = timm.create_model(model, pretrained=True, pretrained_cfg=config)
    return Weights(network.state_dict(), f"{name} {weights}")


def _entry(name: str, weights: str, entries: dict[str, Entry]) -> Entry:
    """The entry of these weights; raises CamtrainValueError with all names if there is none."""
    if weights not in entries:
        raise CamtrainValueError(
            f"weights of {name} must be one of {', '.join(entries)}, None (null), or a file, got "
            f"{weights!r}."
        )
    return entries[weights]


@contextmanager
def _explaining_failed_download(name: str, file: str) -> Iterator[None]:
    """Raise CamtrainFileNotFoundError with the file to fetch where a download fails."""
    try:
        yield
    # No connection, a broken one, and a file whose hash or content is wrong.
    except (OSError, HTTPException, RuntimeError) as error:
        raise CamtrainFileNotFoundError(
            f"The weights of {name} could not be loaded ({first_line(error)}); fetch {file} give "
            "weights=FILE, the path of that file."
        ) from error


def _no_published_weights(name: str, weights: str) -> CamtrainValueError:
    return CamtrainValueError(
        f"{name} has no published weights; give weights=None for random ones, or weights=FILE, got "
        f"{weights!r}."
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, by parameter name; no code from it is run.

    It may be a ``.safetensors`` file or whatever ``torch.load(weights_only=True)`` reads. A
    wrapping ``state_dict``, ``model_state_dict`` or ``model`` and prefixes that all keys share are
    taken off.

    Raises:
        CamtrainValueError: The file is no weights file, or holds more than plain tensors.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the readers raise anything
        raise CamtrainValueError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is damaged, or holds "
            "more than plain tensors, whose reading would run code from it; expected the "
            "state_dict of a network in weights=FILE."
        ) from error
    tensors = _unwrap(content)
    if not tensors:
        raise CamtrainValueError(
            f"{path} holds no tensors by name; expected the state_dict of a network in "
            "weights=FILE."
        )
    return tensors


def _unwrap(content: object) -> dict[str, Tensor]:
    """The tensors in what a file holds, without dictionaries and prefixes around them."""
    if not isinstance(content, dict):
        return {}
    for key in _WRAPPERS:
        if isinstance(content.get(key), dict):
            return _unwrap(content[key])
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        inner = _with_prefix(prefix, tensors)
        # A CAM network has a neck and a head beside its trunk.
        if inner and (len(inner) == len(tensors) or prefix == "backbone.trunk."):
            tensors = inner
    return tensors


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by their names without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def rename_weights(weights: dict[str, Tensor], names: Container[str]) -> dict[str, Tensor]:
    """Weights by a network's ``names``, where a file holds them by older or longer ones."""
    by_name = {}
    for name, tensor in weights.items():
        plain = _PARALLEL_PART.sub(r"\1.", _OLD_DENSENET.sub(r"\1", name))
        by_name[plain if name not in names and plain in names else name] = tensor
    return by_name


def load_weights(network: nn.Module, weights: dict[str, Tensor], *, source: str) -> None:
    """Copy weights into a network in place; keys that the network does not have are ignored.

    Raises:
        CamtrainValueError: Parameters or buffers of the network are missing or have other shapes;
            names them, and the source of the weights.
    """
    state = network.state_dict()
    weights = rename_weights(weights, state)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    problems = [
        f"{name} is {shapes.get(name, 'missing')}, {tuple(tensor.shape)} expected"
        for name, tensor in state.items()
        # The counter came with PyTorch 0.4.1 and is not used by any arithmetic here.
        if shapes.get(name) != tensor.shape
        and (name in weights or not name.endswith("num_batches_tracked"))
    ]
    if problems:
        raise CamtrainValueError(
            f"{source} holds weights of another architecture: {len(problems)} of {len(state)} "
            f"tensors do not fit: {join_first(problems, 4, separator='; ')}. Its own keys begin "
            f"with {', '.join(list(weights)[:2])}; give weights=FILE of the same network."
        )
    network.load_state_dict({n: weights[n] for n in state if n in weights}, strict=False)
