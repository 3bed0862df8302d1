"""Networks by name: which library has one, how to build it, which weights are published for it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from statistics import fmean
from threading import Lock
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models import regnet

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.model.caffemodel import caffe_weights
from camtrain.model.digits import digits_trunk
from camtrain.model.recipes import PAPER_NETWORKS, caffe_layers, paper_preprocessing
from camtrain.model.weights import read_weights, renamed
from camtrain.preprocessing import Preprocessing

Entry = TypeVar("Entry")

_REGNET = Lock()

_TRUNKS = {
    "digits": digits_trunk,
    **{name.removeprefix("camtrain/"): paper.trunk for name, paper in PAPER_NETWORKS.items()},
}
BUILT_IN = tuple(_TRUNKS)

# Where the paper cuts and the rule of `cut.default_cut` differ, or where the library ends in class
# scores.
CUTS = {
    "torchvision/googlenet": "inception4e",
    "torchvision/squeezenet1_0": "features",
    "torchvision/squeezenet1_1": "features",
    # Its forward_features ends in the class token.
    **{f"timm/pit_{size}_224": "transformers.2.reshape" for size in ("b", "s", "ti", "xs")},
    **{
        f"timm/pit_{size}_distilled_224": "transformers.2.reshape"
        for size in ("b", "s", "ti", "xs")
    },
}
# With its published weights torchvision renormalizes the input of these inside the network.
_RENORMALIZED = ("torchvision/googlenet", "torchvision/inception_v3")
# No connection, a broken one, and a file whose hash or content is wrong.
_DOWNLOAD_ERRORS = (OSError, HTTPException, RuntimeError)


@dataclass(frozen=True)
class Weights:
    """Weights and what their publisher says about them.

    Attributes:
        tensors: By the names of the original classifier.
        source: A weight name or a path, for messages.
        class_names: K names, or None where the publisher gives none.
    """

    tensors: dict[str, Tensor]
    source: str
    class_names: tuple[str, ...] | None = None


def full_name(name: str) -> str:
    """``library/model`` of a name with or without its library; torchvision wins where both have it.

    Raises:
        CamtrainValueError: No library has it; names the nearest.
    """
    library, _, model = name.rpartition("/")
    known = {"camtrain": BUILT_IN, "torchvision": tuple(tv.list_models(module=tv))}
    for candidate in ("camtrain", "torchvision"):
        if library in ("", candidate) and model in known[candidate]:
            return f"{candidate}/{model}"
    import timm  # late: it takes a second and imports wandb

    if library in ("", "timm") and timm.is_model(model):
        return f"timm/{model}"
    known["timm"] = tuple(timm.list_models())
    every = [f"{lib}/{m}" if library else m for lib, models in known.items() for m in models]
    near = difflib.get_close_matches(name, sorted(set(every)), n=5, cutoff=0.3)
    raise CamtrainValueError(
        f"backbone must be the name of a network in torchvision, timm or camtrain, got {name!r}; "
        f"the nearest are {', '.join(near)}."
    )


def every_name() -> list[str]:
    """``library/model`` of every network there is."""
    import timm

    known = {"camtrain": BUILT_IN, "torchvision": tv.list_models(module=tv)}
    known["timm"] = timm.list_models()
    return [f"{library}/{model}" for library, models in known.items() for model in models]


def build_classifier(
    name: str, *, num_classes: int | None, in_chans: int, backbone_args: dict[str, Any]
) -> nn.Module:
    """The library's own classifier with random weights; the trunk for ``camtrain/...``.

    Args:
        name: ``torchvision/...``, ``timm/...`` or ``camtrain/...``.
        num_classes: None for the library's default, usually the 1,000 of ImageNet.
        in_chans: Channels of the images.
        backbone_args: Further arguments of the library's builder.

    Raises:
        CamtrainValueError: ``backbone_args`` do not fit, or would load weights: a bundle, which
            carries them, must reach for nothing beyond itself.
    """
    loading = [a for a in backbone_args if a.startswith(("pretrained", "checkpoint", "weights"))]
    if loading:
        raise CamtrainValueError(
            f"backbone_args must not load weights, got {', '.join(loading)}; use weights= instead."
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
        return Weights(read_weights(weights), str(weights))
    return published_weights(name, str(weights))


def backbone_args_for(
    name: str, weights: str | Path | None, in_chans: int, given: dict[str, Any]
) -> dict[str, Any]:
    """``given``, and what the published weights of a network need beside it."""
    needed: dict[str, Any] = {}
    if name in _RENORMALIZED and weights is not None and in_chans == 3:
        needed["transform_input"] = True
    model = name.removeprefix("torchvision/")
    if model.startswith("vit_") and weights is not None:
        published = {entry.name: entry for entry in tv.get_model_weights(model)}
        published["DEFAULT"] = tv.get_model_weights(model).DEFAULT
        if str(weights) in published:
            needed["image_size"] = published[str(weights)].transforms().crop_size[0]
    return {**needed, **given}


def usual_preprocessing(name: str, in_chans: int, backbone_args: dict[str, Any]) -> Preprocessing:
    """What the library does to the pictures of this network.

    Pictures of other than three channels are normalized by the average of its means and deviations.

    Args:
        name: ``library/model``.
        in_chans: Channels of the images.
        backbone_args: May hold another size.
    """
    if name in PAPER_NETWORKS:
        return paper_preprocessing(name, in_chans)
    library, model = name.split("/")
    if library == "camtrain":
        gray = (0.5,) * in_chans
        return Preprocessing(size=(64, 64), mean=gray, std=gray)
    usual = _timm_preprocessing(model) if library == "timm" else _torchvision_preprocessing(model)
    side = backbone_args.get("img_size", backbone_args.get("image_size"))
    if side is not None:
        usual = replace(usual, size=(side, side) if isinstance(side, int) else tuple(side))
    if in_chans == 3:
        return usual
    # Pixels of -1 to 1 are what the networks see that renormalize their input.
    mean, std = (0.5, 0.5) if name in _RENORMALIZED else (fmean(usual.mean), fmean(usual.std))
    return replace(usual, mean=(mean,) * in_chans, std=(std,) * in_chans)


def _timm_preprocessing(model: str) -> Preprocessing:
    import timm

    config: Any = timm.get_pretrained_cfg(model)
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
    crop_pct = min(1.0, preset.crop_size[0] / preset.resize_size[0])
    # A ViT is built for 224 whatever size its best weights are for, see `backbone_args_for`.
    side = 224 if model.startswith("vit_") else preset.crop_size[0]
    return Preprocessing(
        size=(side, side),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        resize_mode="crop",
        crop_pct=crop_pct,
    )


def adapt_in_chans(
    classifier: nn.Module, weights: dict[str, Tensor], in_chans: int
) -> dict[str, Tensor]:
    """Weights of colour pictures fitted to ``in_chans`` by timm's rule: sum or repeat."""
    weights = renamed(weights, classifier.state_dict())
    if in_chans == 3:
        return weights
    first = _first_conv(classifier)
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


def _first_conv(network: nn.Module) -> str:
    names: list[str] = [
        name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    ]
    return names[0]


def _change_in_chans(network: nn.Module, in_chans: int) -> None:
    conv = network.get_submodule(_first_conv(network))
    assert isinstance(conv, nn.Conv2d)
    conv.in_channels = in_chans
    conv.weight = nn.Parameter(conv.weight.new_empty(len(conv.weight), in_chans, *conv.kernel_size))
    conv.reset_parameters()
