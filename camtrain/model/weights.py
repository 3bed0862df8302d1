"""Weights that a library publishes or that a file holds: read, and fitted to a network."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError, first_line, join_first
from camtrain.files import open_regular
from camtrain.header import Description, read_safetensors_description, read_torch_file
from camtrain.model.backbones import torchvision_weights
from camtrain.model.caffemodel import caffe_weights
from camtrain.model.probe import first_conv
from camtrain.model.recipes import caffe_layers

Entry = TypeVar("Entry")

# Parts of names that files have and networks do not, and what becomes of them.
_RENAMED = {
    # Wrappers of parallel training and torch.compile, of the whole network or of a part.
    re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+"): r"\1",
    # torchvision's published DenseNets keep the names of 2017: `denselayer1.norm.1.weight`.
    re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)"): r"\1",
}
# A network beside the trained one: its average over steps, its teacher, its momentum.
_SECOND = re.compile(r"(?<![a-z])(ema|swa|avg|averag|teacher|target|momentum)", re.IGNORECASE)


@dataclass(frozen=True)
class Weights:
    """Weights and what their source says about them."""

    tensors: dict[str, Tensor]  # by the names in the file; `fitted_to` makes them the classifier's
    source: str  # a weight name or a path, for messages
    class_names: tuple[str, ...] | None = None  # None where the source gives none
    description: Description | None = None  # of a bundle; None for other weights
    classifier_names: Collection[str] = ()  # of its tensors, once fitted

    def fitted_to(self, classifier: nn.Module) -> Weights:
        """The weights by the names of a classifier, see ``fit_weights``."""
        state = classifier.state_dict()
        return replace(
            self, tensors=fit_weights(self.tensors, state, self.source), classifier_names=state
        )

    def load_into(self, network: nn.Module, in_chans: int) -> None:
        """Copy the weights into a classifier or its trunk, see ``load_weights``.

        Weights of colour pictures are fitted to ``in_chans`` by timm's rule: sum or repeat.
        """
        tensors = self.tensors
        if in_chans != 3:
            layer = f"{first_conv(network)}.weight"
            if layer in tensors and tensors[layer].shape[1] != in_chans:
                from timm.models import adapt_input_conv

                tensors = {**tensors, layer: adapt_input_conv(in_chans, tensors[layer])}
        load_weights(network, tensors, source=self.source, known_names=self.classifier_names)

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
    library, _, model = name.partition("/")
    if weights is None or (library == "camtrain" and weights == "DEFAULT"):
        return None
    path = Path(weights)
    if isinstance(weights, Path) or path.suffix or "/" in weights or path.exists() or not model:
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
    open_regular(path).close()
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
    """The tensors of a weights file, by name; no code from it is run.

    It may be a ``.safetensors`` file or whatever ``torch.load(weights_only=True)`` reads. The names
    of tensors in dictionaries begin with those of the dictionaries: ``state_dict.conv1.weight``.

    Raises:
        CamtrainValueError: The file is no weights file, or holds more than plain tensors.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # of TorchScript, which is refused
                content = read_torch_file(path)
    except Exception as error:  # a damaged file can make the readers raise anything
        raise CamtrainValueError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is damaged, or holds "
            "more than plain tensors, whose reading would run code from it; expected the "
            "state_dict of a network in weights=FILE."
        ) from error
    tensors = dict(_flat(content))
    if not tensors:
        raise CamtrainValueError(
            f"{path} holds no tensors by name; expected the state_dict of a network in "
            "weights=FILE."
        )
    return tensors


def _flat(content: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in dictionaries at any depth, with their names."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _flat(value, f"{prefix}{key}.")


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by their names without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def fit_weights(
    weights: dict[str, Tensor], state: dict[str, Tensor], source: str
) -> dict[str, Tensor]:
    """The weights in a file by the names of a network, without the prefix that they have there.

    It is the prefix whose removal makes most names and shapes agree; the rows of a matrix, which in
    the head are the classes, may differ. Where several prefixes do equally well, the trained
    network goes before averages of it and teachers, and a warning says which was taken. A head may
    lie beside its ``backbone.``, as in mmpretrain's ``head.fc.weight``.

    Args:
        weights: By the names that the file has for them.
        state: Of the network.
        source: Of the weights, for the warning.
    """
    for pattern, plain in _RENAMED.items():
        if not any(map(pattern.search, state)):
            weights = {pattern.sub(plain, name): tensor for name, tensor in weights.items()}

    def fits(name: str, tensor: Tensor) -> bool:
        return name in state and state[name].shape[1:] == tensor.shape[1:]

    counts: Counter[str] = Counter()
    for name, tensor in weights.items():
        starts = (0, *(match.end() for match in re.finditer(r"\.", name)))
        counts.update(name[:start] for start in starts if fits(name[start:], tensor))
    most = max(counts.values(), default=0)
    # Sorting keeps the order of the file.
    best = sorted(
        (prefix for prefix, count in counts.items() if count == most),
        key=lambda prefix: _SECOND.search(prefix) is not None,
    )
    if len(best) > 1 and 2 * most > len(state):
        places = [prefix.rstrip(".") or "no prefix" for prefix in best]
        warnings.warn(
            f"{source} holds {len(best)} networks that fit ({join_first(places)}), {places[0]} is "
            "taken; to take another, save its tensors alone as weights=FILE.",
            stacklevel=2,
        )
    prefix = best[0] if best else ""
    if not prefix:
        return weights
    parent = prefix[: prefix.rstrip(".").rfind(".") + 1]
    beside = _with_prefix(parent, weights) | _with_prefix(f"{parent}head.", weights)
    head = {name: tensor for name, tensor in beside.items() if fits(name, tensor)}
    return head | _with_prefix(prefix, weights)


def load_weights(
    network: nn.Module,
    weights: dict[str, Tensor],
    *,
    source: str,
    known_names: Collection[str] = (),
    advice: str = "give weights=FILE of the same network",
) -> None:
    """Copy weights into a network in place.

    Args:
        network: Its parts may hold no further layers in the file; other parts there are ignored.
        weights: By the network's names.
        source: Of the weights, for messages.
        known_names: Of the whole classifier, where the network is its trunk.
        advice: What a message ends with.

    Raises:
        CamtrainValueError: The weights are those of another network: counts the tensors that fit,
            and names some that are missing, are unexpected or have other shapes.
    """
    state, modules = network.state_dict(), dict(network.named_modules())
    # The counter came with PyTorch 0.4.1 and is not used by any arithmetic here.
    missing = [n for n in state if n not in weights and not n.endswith("num_batches_tracked")]
    differing = [n for n in state if n in weights and weights[n].shape != state[n].shape]
    unexpected = [name for name in weights if name not in state and name not in known_names]
    is_larger = any(
        name.partition(".")[0] in modules and name.rpartition(".")[0] not in modules
        for name in unexpected
    )
    if missing or differing or is_larger:
        shapes = [
            f"{n} {tuple(weights[n].shape)}, {tuple(state[n].shape)} expected" for n in differing
        ]
        lists = {"missing": missing, "unexpected": unexpected, "shapes differ:": shapes}
        problems = [f"{what} {join_first(names, 3)}" for what, names in lists.items() if names]
        raise CamtrainValueError(
            f"{source} holds weights of another architecture: of {len(state)} tensors "
            f"{len(state.keys() & weights.keys()) - len(differing)} fit; {'; '.join(problems)}; "
            f"{advice}."
        )
    network.load_state_dict({n: weights[n] for n in state if n in weights}, strict=False)
