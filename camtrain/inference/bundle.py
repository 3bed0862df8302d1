"""The bundle: one safetensors file that holds a trained network and all it takes to use it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor
from torch.nn import init

from camtrain.errors import (
    CamtrainError,
    CamtrainFileNotFoundError,
    CamtrainValueError,
    join_first,
    one_line,
    warn,
)
from camtrain.files import replacing
from camtrain.header import (
    METADATA_KEY,
    Description,
    checkpoint_description,
    read_checkpoint_content,
    read_safetensors_description,
)
from camtrain.model.camnet import CAMNet
from camtrain.model.create import from_recipe
from camtrain.model.limits import as_large_as, check_head
from camtrain.model.modules import check_user, user_network
from camtrain.model.probe import Intercepted
from camtrain.model.refine import Refine
from camtrain.model.weights import load_weights

_DRAWING = frozenset({init.normal_, init.uniform_, init.kaiming_uniform_})


@dataclass(frozen=True)
class Bundle:
    """A trained network, as a file holds it.

    Attributes:
        net: The network, in evaluation mode.
        description: What the file says about it.
        data_settings: The settings of the data of its training, if the file is a checkpoint.
    """

    net: CAMNet
    description: Description
    data_settings: Mapping[str, Any] = field(default_factory=dict)

    def with_maps(self, refine: Refine | None) -> Bundle:
        """The same with maps of this kind, and with their threshold; None leaves them as they are.

        The network itself is changed.
        """
        if refine in (None, self.net.refine):
            return self
        self.net.set_refine(refine)
        layers = self.net.description.refine_layers
        return replace(self, description=self.description.with_maps(refine, layers))


def write_bundle(
    path: str | Path,
    net: CAMNet,
    *,
    description: Description | None = None,
) -> None:
    """Write a bundle atomically: an older file stays whole until the new one is complete.

    Args:
        path: Ends in ``.safetensors``; its folder must exist.
        net: A network with a preprocessing.
        description: Holds the thresholds and scores of the file; by default the network's own.

    Raises:
        CamtrainFileNotFoundError: The folder does not exist.
        CamtrainValueError: The preprocessing is not known, the threshold lies outside [0, 1), or
            the file would not be a ``.safetensors``.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CamtrainValueError(f"A bundle is a .safetensors file, got {str(path)!r}.")
    if not path.parent.is_dir():
        raise CamtrainFileNotFoundError(
            f"The folder of the bundle {path.absolute()} does not exist; create it first."
        )
    if net.preprocessing is None:
        raise CamtrainValueError(
            "preprocessing must be known for a bundle, and this network does not know its own; set "
            "net.preprocessing = camtrain.Preprocessing(size=(H, W), mean=..., std=...)."
        )
    description = shipped_description(net, description or net.description)
    # Contiguous: safetensors refuses the strides of channels-last weights.
    tensors = {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    with replacing(path, needed=sum(tensor.nbytes for tensor in tensors.values())) as part:
        part.touch()
        usual_mode = part.stat().st_mode
        safetensors.torch.save_file(tensors, part, {METADATA_KEY: description.to_json()})
        part.chmod(usual_mode)  # safetensors 0.8 lets only the owner read its files


def shipped_description(
    net: CAMNet, description: Description, export: Mapping[str, Any] | None = None
) -> Description:
    """The description that a file for inference holds: every class has a name in it.

    Thresholds and scores are those of ``description``. Of classes without names it warns.
    """
    if net.class_names is None:
        warn(
            f"The file says that the classes are called {join_first(net.display_names, 3)}, since "
            "the network does not know their names; give net.name_classes or camtrain.Predictor "
            "the class_names before saving.",
            stacklevel=4,  # of `Predictor.save`
        )
    return replace(
        net.description,
        class_names=net.display_names,
        threshold=description.threshold,
        is_calibrated=description.is_calibrated,
        other_thresholds=description.other_thresholds,
        scores=description.scores,
        export=export,
    )


def read_network(path: str | Path, *, backbone: object = None) -> Bundle:
    """Read a checkpoint of this project, ``.ckpt``, or else a bundle; no code from the file runs.

    Args:
        path: Of the file.
        backbone: What builds a network of the user, see ``camtrain.create_model``: the file names
            it, and nothing that a file names is imported. It may also be, or build, a ``CAMNet``.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: Not a file of this project, a newer format version, a checkpoint that
            holds more than plain values, or tensors that do not fit their architecture.
    """
    path, data_settings = Path(path), {}
    if path.suffix.lower() == ".ckpt":
        content = read_checkpoint_content(path)  # of the right types
        description: Description | None = checkpoint_description(content)
        tensors = {
            name.removeprefix("net."): tensor
            for name, tensor in content["state_dict"].items()
            if name.startswith("net.")
        }
        data_settings = content.get("datamodule_hyper_parameters", {})
    elif not path.is_file():
        raise CamtrainFileNotFoundError(
            f"No bundle at {path.absolute()}; give the path of a model.safetensors."
        )
    else:
        description = read_safetensors_description(path)
        tensors = safetensors.torch.load_file(path)
    if description is None:
        raise CamtrainValueError(
            f"{path} holds weights but is not a camtrain bundle; pass it to camtrain.create_model "
            "as weights=."
        )
    architecture, user = description.architecture, user_network(backbone)
    check_user(architecture, user)
    try:
        if architecture is None:
            raise CamtrainValueError("architecture is missing")
        if user is None:
            _check_name(architecture["backbone"])
        check_head(tensors, architecture["num_classes"])
        # The file holds every weight; code of the user may compute with what it draws.
        with nullcontext() if user else Intercepted(_without_drawing), as_large_as(tensors):
            net = from_recipe(architecture, user)
        net.restore(description)  # before the weights: a foreground head reads its layers
        if user is not None:
            advice = f"hand in the network of this file, {architecture['backbone']}"
            load_weights(net, tensors, source=str(path), advice=advice)
        net.load_state_dict(tensors)
    except Exception as error:  # what damaged values make torch raise cannot be known
        if user is not None and isinstance(error, CamtrainError):
            raise
        raise CamtrainValueError(
            f"{path} holds tensors and metadata that do not fit ({one_line(error)}); take it from "
            "its source again."
        ) from error
    return Bundle(net.eval(), description, data_settings)


def _without_drawing(
    func: Callable[..., object], args: tuple[Any, ...], options: dict[str, Any]
) -> object:
    """The function's result; of one that would fill weights with random numbers, the weights."""
    if func in (Tensor.normal_, Tensor.uniform_):
        # ``trunc_normal_`` draws with these until every number lies within its bounds.
        return args[0].fill_(args[1] if len(args) > 1 else options.get("mean", 0))
    if func in _DRAWING:
        return args[0] if args else options["tensor"]
    return func(*args, **options)


def _check_name(name: str) -> None:
    """Refuse names that timm looks up in a folder or on the internet, such as ``hf-hub:...``."""
    if not re.fullmatch(r"(torchvision|timm|camtrain)/[\w.-]+", name):
        raise CamtrainValueError(f"backbone must be LIBRARY/NAME, got {name!r}.")
