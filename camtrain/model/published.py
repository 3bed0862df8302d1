"""Weights that a library publishes, or that lie in a file, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
import torchvision.models as tv
from torch import Tensor, nn

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.model.backbones import first_conv
from camtrain.model.caffemodel import caffe_weights
from camtrain.model.own_weights import OwnWeights, read_own
from camtrain.model.recipes import caffe_layers
from camtrain.model.weights import read_weights, renamed

Entry = TypeVar("Entry")

# No connection, a broken one, and a file whose hash or content is wrong.
_DOWNLOAD_ERRORS = (OSError, HTTPException, RuntimeError)


@dataclass(frozen=True)
class Weights:
    """Weights and what their publisher says about them.

    Attributes:
        tensors: By the names of the original classifier.
        source: A weight name or a path, for messages.
        class_names: K names, or None where the publisher gives none.
        own: What is known of them where they are a bundle's, whose names the tensors then have.
    """

    tensors: dict[str, Tensor]
    source: str
    class_names: tuple[str, ...] | None = None
    own: OwnWeights | None = None


def published_weights(name: str, weights: str) -> Weights:
    """Weights that the library offers by name; ``DEFAULT`` is its recommendation.

    Raises:
        CamtrainValueError: The library has no such weights for this network; lists those it has.
        CamtrainFileNotFoundError: The download failed; names the file and where to put it.
    """
    library, model = name.split("/")
    if library == "torchvision":
        return _torchvision_weights(model, weights)
    if library == "timm":
        return _timm_weights(model, weights)
    raise _no_published_weights(name, weights)


def find_weights(name: str, weights: str | Path | None) -> Weights | None:
    """Weights by name or from a file; a value with a suffix or a folder in it is a file.

    Raises:
        CamtrainValueError: See ``published_weights`` and ``camtrain.model.weights.read_weights``.
        CamtrainFileNotFoundError: The same.
    """
    if weights is None or (name.startswith("camtrain/") and weights == "DEFAULT"):
        return None
    is_file = (
        isinstance(weights, Path)
        or Path(weights).suffix
        or "/" in weights
        or Path(weights).exists()
    )
    if is_file and Path(weights).suffix == ".caffemodel":
        return Weights(caffe_weights(weights, caffe_layers(name), name), str(weights))
    if is_file:
        own = read_own(Path(weights))
        if own is not None:
            return Weights(safetensors.torch.load_file(weights), own.source, own.class_names, own)
        return Weights(read_weights(weights), str(weights))
    return published_weights(name, str(weights))


def adapt_in_chans(
    classifier: nn.Module, weights: dict[str, Tensor], in_chans: int
) -> dict[str, Tensor]:
    """Weights of colour pictures fitted to ``in_chans`` by timm's rule: sum or repeat."""
    weights = renamed(weights, classifier.state_dict())
    if in_chans == 3:
        return weights
    first = first_conv(classifier)
    tensor = weights.get(f"{first}.weight")
    if tensor is None or tensor.shape[1] == in_chans:
        return weights
    from timm.models import adapt_input_conv

    return {**weights, f"{first}.weight": adapt_input_conv(in_chans, tensor)}


def _torchvision_weights(model: str, weights: str) -> Weights:
    name, published = f"torchvision/{model}", tv.get_model_weights(model)
    entries = {"DEFAULT": published.DEFAULT, **{entry.name: entry for entry in published}}
    entry = _known(name, weights, entries)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        tensors = entry.get_state_dict(progress=True, check_hash=True)
    except _DOWNLOAD_ERRORS as error:
        raise _not_loaded(name, error, f"{entry.url} and put it into {folder}, or") from error
    return Weights(tensors, f"{name} {weights}", tuple(entry.meta["categories"]))


def _timm_weights(model: str, weights: str) -> Weights:
    import timm

    name, default = f"timm/{model}", timm.get_pretrained_cfg(model)
    if default is None or not default.has_weights:
        raise _no_published_weights(name, weights)
    tags = [tagged.partition(".")[2] for tagged in timm.list_pretrained(f"{model}.*")]
    configs: dict[str, Any] = {tag: timm.get_pretrained_cfg(f"{model}.{tag}") for tag in tags}
    config = _known(name, weights, {"DEFAULT": default, **configs})
    try:
        network = timm.create_model(model, pretrained=True, pretrained_cfg=config)
    except _DOWNLOAD_ERRORS as error:
        where = f"model.safetensors of {config.hf_hub_id}" if config.hf_hub_id else config.url
        raise _not_loaded(name, error, f"{where} and") from error
    return Weights(network.state_dict(), f"{name} {weights}")


def _known(name: str, weights: str, offered: dict[str, Entry]) -> Entry:
    if weights not in offered:
        raise CamtrainValueError(
            f"weights of {name} must be one of {', '.join(offered)}, None, or a file, got "
            f"{weights!r}."
        )
    return offered[weights]


def _not_loaded(name: str, error: Exception, fetch: str) -> CamtrainFileNotFoundError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return CamtrainFileNotFoundError(
        f"The weights of {name} could not be loaded ({reason}); fetch {fetch} pass the file with "
        "weights=."
    )


def _no_published_weights(name: str, weights: str) -> CamtrainValueError:
    return CamtrainValueError(
        f"{name} has no published weights; pass weights=None for random ones, or a file, got "
        f"{weights!r}."
    )
