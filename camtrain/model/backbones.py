"""Networks by name: which library has one, how to build it, what it does to its pictures."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from threading import Lock
from typing import Any
from unittest.mock import patch

import torch
import torchvision.models as tv
from torch import nn
from torchvision.models import regnet

from camtrain.errors import CamtrainValueError
from camtrain.model.builtin import digits_trunk, lenet_trunk, mnist_trunk
from camtrain.model.probe import first_conv
from camtrain.model.recipes import PAPER_NETWORKS, paper_preprocessing
from camtrain.preprocessing import Preprocessing

_REGNET = Lock()

_TRUNKS = {
    "digits": digits_trunk,
    "lenet": lenet_trunk,
    "mnist": mnist_trunk,
    **{name.removeprefix("camtrain/"): paper.trunk for name, paper in PAPER_NETWORKS.items()},
}
BUILT_IN = tuple(_TRUNKS)

# With its published weights torchvision renormalizes the input of these inside the network.
_RENORMALIZED = ("torchvision/googlenet", "torchvision/inception_v3")


def full_name(name: str) -> str:
    """``library/model`` of a name with or without its library; torchvision wins where both have it.

    A name that timm has given up becomes the one that it has now.

    Raises:
        CamtrainValueError: No library has it; the message names the nearest.
    """
    library, _, model = name.rpartition("/")
    for candidate, models in (("camtrain", BUILT_IN), ("torchvision", tv.list_models(module=tv))):
        if library in ("", candidate) and model in models:
            return f"{candidate}/{model}"
    import timm  # late: it takes a second and imports wandb

    if library in ("", "timm") and timm.is_model(model):
        return f"timm/{timm.models.get_deprecated_models().get(model) or model}"
    names = {full if library else full.partition("/")[2] for full in every_name()}
    suggestions = difflib.get_close_matches(name, sorted(names), n=5, cutoff=0.3)
    raise CamtrainValueError(
        f"backbone must be the name of a network in torchvision, timm or camtrain, got {name!r}; "
        f"the nearest are {', '.join(suggestions)}."
    )


def every_name() -> list[str]:
    """``library/model`` of every network there is."""
    import timm

    libraries = {"camtrain": BUILT_IN, "torchvision": tv.list_models(module=tv)}
    libraries["timm"] = timm.list_models()
    return [f"{library}/{model}" for library, models in libraries.items() for model in models]


def build_classifier(
    name: str, *, num_classes: int | None, in_chans: int, backbone_args: dict[str, Any]
) -> nn.Module:
    """The library's own classifier with random weights; the trunk for ``camtrain/...``.

    ``num_classes`` of None is the library's default, usually the 1,000 of ImageNet.

    Raises:
        CamtrainValueError: ``backbone_args`` do not fit, or would load weights. A bundle holds
            these arguments, and reading it must fetch nothing else.
    """
    loading = [a for a in backbone_args if a.startswith(("pretrained", "checkpoint", "weights"))]
    if loading:
        raise CamtrainValueError(
            f"backbone_args must not load weights, got {', '.join(loading)}; give weights=NAME "
            "instead."
        )
    library, model = name.split("/")
    arguments = dict(backbone_args)
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    try:
        if library == "timm":
            import timm

            network: nn.Module = timm.create_model(model, in_chans=in_chans, **arguments)
            return network
        if library == "camtrain":
            return _TRUNKS[model](in_chans=in_chans, **arguments)
        if model in ("googlenet", "inception_v3"):
            # Its default warns that it will change; the auxiliary heads play no part in the logits.
            arguments = {"init_weights": True, "aux_logits": False, **arguments}
        network = _torchvision_network(model, arguments)
    except TypeError as error:
        raise CamtrainValueError(
            f"backbone_args do not fit {name}: {error}; got {backbone_args}."
        ) from error
    if in_chans != 3:
        _change_in_chans(network, in_chans)
    return network


def _torchvision_network(model: str, arguments: dict[str, Any]) -> nn.Module:
    """Like ``torchvision.models.get_model``, on the meta device too."""
    widths = regnet.BlockParams
    original = widths.from_init_params

    def on_cpu(*args: Any, **kwargs: Any) -> regnet.BlockParams:
        with torch.device("cpu"):  # it reads the widths out of a tensor
            return original(*args, **kwargs)

    with _REGNET, patch.object(widths, "from_init_params", on_cpu):
        network: nn.Module = tv.get_model(model, weights=None, **arguments)
    return network


def backbone_args_for(
    name: str, weights: str | Path | None, in_chans: int, backbone_args: dict[str, Any]
) -> dict[str, Any]:
    """``backbone_args`` and what the builder needs beside them for its published weights."""
    additions: dict[str, Any] = {}
    if name in _RENORMALIZED and weights is not None and in_chans == 3:
        additions["transform_input"] = True
    model = name.removeprefix("torchvision/")
    if model.startswith("vit_") and weights is not None:
        entry = torchvision_weights(model).get(str(weights))
        if entry is not None:
            additions["image_size"] = entry.transforms().crop_size[0]
    return {**additions, **backbone_args}


def torchvision_weights(model: str) -> dict[str, Any]:
    """What torchvision publishes for a model, by name; ``DEFAULT`` is among the names."""
    entries = tv.get_model_weights(model)
    return {"DEFAULT": entries.DEFAULT, **{entry.name: entry for entry in entries}}


def usual_preprocessing(
    name: str, in_chans: int, backbone_args: dict[str, Any], config: object = None
) -> Preprocessing:
    """What the library does to the pictures of a network, whose arguments may hold another size.

    Pictures of other channels are normalized by the average of its means and deviations. ``config``
    is what a hub says of a network of timm, in place of timm's own; see ``camtrain.model.hub``.
    """
    if name in PAPER_NETWORKS:
        return paper_preprocessing(name, in_chans)
    library, model = name.split("/")
    if library == "camtrain":
        gray = (0.5,) * in_chans
        return Preprocessing(size=(28, 28) if model == "mnist" else (64, 64), mean=gray, std=gray)
    is_timm = library == "timm"
    default = _timm_preprocessing(model, config) if is_timm else _torchvision_preprocessing(model)
    side = backbone_args.get("img_size", backbone_args.get("image_size"))
    if side is not None:
        default = replace(default, size=(side, side) if isinstance(side, int) else tuple(side))
    if in_chans == len(default.mean):
        return default
    # Networks that renormalize their input see pixels of -1 to 1.
    mean, std = (0.5, 0.5) if name in _RENORMALIZED else (fmean(default.mean), fmean(default.std))
    return replace(default, mean=(mean,) * in_chans, std=(std,) * in_chans)


def _timm_preprocessing(model: str, config: Any = None) -> Preprocessing:  # noqa: ANN401  # timm's
    import timm

    config = config or timm.get_pretrained_cfg(model)
    return Preprocessing(
        size=tuple(config.input_size[1:]),
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        resize_mode="crop",
        crop_pct=min(1.0, config.crop_pct),  # above 1 the picture would get a frame
    )


def _torchvision_preprocessing(model: str) -> Preprocessing:
    preset = tv.get_model_weights(model).DEFAULT.transforms()
    # A ViT is built for 224 whatever size its best weights are for, see `backbone_args_for`.
    side = 224 if model.startswith("vit_") else preset.crop_size[0]
    return Preprocessing(
        size=(side, side),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        resize_mode="crop",
        crop_pct=min(1.0, preset.crop_size[0] / preset.resize_size[0]),
    )


def _change_in_chans(network: nn.Module, in_chans: int) -> None:
    conv = network.get_submodule(first_conv(network))
    assert isinstance(conv, nn.Conv2d)
    conv.in_channels = in_chans
    conv.weight = nn.Parameter(conv.weight.new_empty(len(conv.weight), in_chans, *conv.kernel_size))
    conv.reset_parameters()
