"""Building a CAM network by the name of its backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.maps import PoolName
from camtrain.model.backbones import (
    CUTS,
    backbone_args_for,
    build_classifier,
    full_name,
    usual_preprocessing,
)
from camtrain.model.camnet import CAMNet, Task, check_task
from camtrain.model.convert import NotCamReadyError, convert
from camtrain.model.cut import NoGraphError, check_cut, default_cut, trace
from camtrain.model.own_weights import (
    OwnWeights,
    check_same_trunk,
    fill_from_own,
    keeps_head,
    unsaid_from_own,
)
from camtrain.model.probe import Probe, drop_unused, probe
from camtrain.model.published import Weights, adapt_in_chans, find_weights
from camtrain.model.recipes import (
    PAPER_NETWORKS,
    complete_paper_network,
    has_paper_neck,
    with_paper_defaults,
)
from camtrain.model.stride import set_stride
from camtrain.model.trunk import Backbone, GraphBackbone, TimmBackbone, TimmBlocks
from camtrain.model.weights import load_weights, renamed

NormName = Literal["batch"]


def create_model(
    backbone: str,
    num_classes: int | None = None,
    *,
    weights: str | Path | None = "DEFAULT",
    cut: str | None = None,
    stride: int | None = None,
    neck: Sequence[int] = (1024,),
    neck_kernel: int = 3,
    neck_groups: int = 1,
    neck_norm: NormName | None = None,
    pool: PoolName = "avg",
    dropout: float = 0.0,
    task: Task = "multiclass",
    in_chans: int = 3,
    backbone_args: dict[str, Any] | None = None,
) -> CAMNet:
    """A CAM network on the trunk of a known CNN: backbone, neck, pool, linear head.

    The defaults are the paper's: its cut for VGG16, AlexNet and GoogLeNet, the last feature map for
    every other network; one 3x3 convolution of 1024 channels with ReLU; global average pooling.

    ``camtrain/vgg16-cam``, ``camtrain/googlenet-cam`` and ``camtrain/alexnet-plus-cam`` are the
    paper's networks as released: there the four neck arguments, all left as they are, mean the
    authors' CAM convolutions (3x3, 2 groups, 1024 outputs; two of 512 in AlexNet+), and a dropout
    of 0 theirs (0.5 in VGG16 and AlexNet+, except for the 205 classes of Places205; set
    ``net.dropout.p`` for none). Other values are taken as given. Without a file their weights are
    random; a ``.caffemodel`` also fills the CAM convolutions, and the head where K is its own.
    ``backbone_args={"width": 0.125}`` builds a miniature.

    Args:
        backbone: ``torchvision/...``, ``timm/...`` or ``camtrain/...``; the library may be left
            out.
        num_classes: K. None means the classes of the weights.
        weights: ``DEFAULT`` or another name that the library publishes, a file, or None (random).
            Of a bundle, a network of this project, go on: the trunk, which must be the same; the
            neck, if it is the same; the head, if neck and K are the same and there is no neck or
            ``num_classes`` is None; and its preprocessing. There ``cut``, ``stride`` and
            ``backbone_args`` of None mean the bundle's.
        cut: The layer after which the network is cut off: any one, or where timm's forward pass
            cannot be read as a graph one of the blocks that the network lists.
        stride: Pixels of the image per pixel of the map, smaller than the backbone's own; by
            dilation.
        neck: Output channels of each added convolution; empty for none.
        neck_kernel: Their kernel size, odd; the size of the map is kept.
        neck_groups: Their groups.
        neck_norm: ``batch``, or None for a bias instead.
        pool: How a class map becomes its logit: ``avg``, ``max``, ``lse``, ``gmp``.
        dropout: Probability, before the head.
        task: ``multiclass``, or ``multilabel``: any number of classes per picture, each with a
            sigmoid of its own.
        in_chans: Channels of the images.
        backbone_args: Further arguments of the library's builder, such as ``{"pad_type": "same"}``.

    Returns:
        The network, in training mode. Where the backbone is cam-ready, ``neck`` is empty and K is
        that of the weights, the original head is kept, so that nothing needs training.

    Raises:
        CamtrainValueError: An argument cannot work; the message says which, and the next step.
        CamtrainFileNotFoundError: A weights file does not exist or could not be downloaded.
    """
    _check_arguments(neck, neck_kernel, neck_groups, neck_norm, pool, dropout)
    for argument, whole in (("num_classes", num_classes), ("stride", stride)):
        if whole is not None and type(whole) is not int:
            raise CamtrainTypeError(f"{argument} must be an integer or None, got {whole!r}.")
    check_task(task)
    name = full_name(backbone)
    found = find_weights(name, weights)
    own = None if found is None else found.own
    if own is not None:
        cut, stride, backbone_args = unsaid_from_own(own, cut, stride, backbone_args)
        own_classes = own.recipe["num_classes"]
    else:
        backbone_args = backbone_args_for(name, weights, in_chans, backbone_args or {})
        own_classes = _classes_of(name, found, in_chans, backbone_args)
    keeps_classes = num_classes is None
    num_classes = own_classes if num_classes is None else num_classes
    if num_classes is None or num_classes < 1:
        raise CamtrainValueError(
            f"num_classes must be at least 1 where the weights do not say it, got {num_classes} "
            f"for {name} with weights={weights!r}."
        )
    recipe = {
        "backbone": name,
        "num_classes": num_classes,
        "cut": cut,
        "stride": stride,
        "neck": list(neck),
        "neck_kernel": neck_kernel,
        "neck_groups": neck_groups,
        "neck_norm": neck_norm,
        "pool": pool,
        "dropout": dropout,
        "task": task,
        "in_chans": in_chans,
        "backbone_args": backbone_args,
    }
    recipe = with_paper_defaults(recipe)
    if found is not None and own is not None:
        return _from_own(recipe, found, own, keeps_classes=keeps_classes)
    net = None
    if not neck and cut is None and num_classes == own_classes and name not in PAPER_NETWORKS:
        with suppress(NotCamReadyError, NoGraphError):
            net = _with_own_head(recipe, found)
            keeps_classes = True
    if net is None:
        net = _with_new_head(recipe, found)
    if found is not None and found.class_names and keeps_classes:
        net.name_classes(found.class_names)
    return net


def from_recipe(recipe: dict[str, Any]) -> CAMNet:
    """The architecture that ``CAMNet.recipe`` describes, with random weights."""
    build = _with_own_head if recipe.get("own_head") else _with_new_head
    # Recipes from before there were other tasks do not say theirs.
    return build({**recipe, "task": recipe.get("task", "multiclass")}, None)


def _from_own(
    recipe: dict[str, Any], found: Weights, own: OwnWeights, *, keeps_classes: bool
) -> CAMNet:
    """A network that goes on from a bundle."""
    check_same_trunk(recipe, own)
    with_head = keeps_head(recipe, own, keeps_classes=keeps_classes)
    net = from_recipe({**recipe, "own_head": with_head and own.recipe.get("own_head", False)})
    fill_from_own(net, found.tensors, own, with_head=with_head)
    if keeps_classes and own.class_names is not None:
        net.name_classes(own.class_names)
    return net


def _with_own_head(recipe: dict[str, Any], found: Weights | None) -> CAMNet:
    """A cam-ready classifier as it is."""
    classifier = build_classifier(
        recipe["backbone"],
        num_classes=recipe["num_classes"],
        in_chans=recipe["in_chans"],
        backbone_args=recipe["backbone_args"],
    )
    if found is not None:
        tensors = adapt_in_chans(classifier, found.tensors, recipe["in_chans"])
        load_weights(classifier, tensors, source=found.source)
    net = convert(classifier, stride=recipe["stride"])
    net.dropout.p = recipe["dropout"]
    net.pool = recipe["pool"]
    net.task = check_task(recipe["task"])
    net.recipe = {**recipe, "own_head": True}
    net.preprocessing = usual_preprocessing(
        recipe["backbone"], recipe["in_chans"], recipe["backbone_args"]
    )
    return net


def _with_new_head(recipe: dict[str, Any], found: Weights | None) -> CAMNet:
    """A trunk with a new neck and a new head."""
    name, in_chans = recipe["backbone"], recipe["in_chans"]
    preprocessing = usual_preprocessing(name, in_chans, recipe["backbone_args"])
    network = build_classifier(
        name, num_classes=None, in_chans=in_chans, backbone_args=recipe["backbone_args"]
    )
    backbone, probed = trunk_of(network, name, recipe["cut"], in_chans, preprocessing.size)
    if found is not None:
        inside = backbone.get_submodule("trunk")
        tensors = adapt_in_chans(inside, found.tensors, in_chans)
        load_weights(inside, tensors, source=found.source)
    if recipe["stride"] is not None:
        set_stride(backbone, recipe["stride"], in_chans)
    neck, channels = _neck(probed.shape[1], recipe)
    net = CAMNet(
        backbone,
        nn.Linear(channels, recipe["num_classes"]),
        neck=neck,
        pool=recipe["pool"],
        dropout=recipe["dropout"],
        task=recipe["task"],
        preprocessing=preprocessing,
        recipe={**recipe, "own_head": False},
    )
    if has_paper_neck(recipe):
        tensors, source = (found.tensors, found.source) if found else ({}, "")
        complete_paper_network(net, tensors, source=source)
    return net


def trunk_of(
    network: nn.Module, name: str, cut: str | None, in_chans: int, size_hw: tuple[int, int]
) -> tuple[nn.Module, Probe]:
    """The backbone that a library's classifier becomes; the classifier is used up.

    Args:
        network: As ``build_classifier`` makes it.
        name: The name it was built by.
        cut: The layer after which it is cut off; None for the usual one.
        in_chans: Channels of the images.
        size_hw: (H, W) of the images it is built for.

    Returns:
        It, and what a forward pass of such images meets.

    Raises:
        CamtrainValueError: It has no such layer, or no feature map there.
    """
    if cut is None and name.startswith("camtrain/"):
        trunk = nn.Sequential(OrderedDict(trunk=network))  # named like every backbone
        return trunk, probe(trunk, in_chans, size_hw)
    backbone: Backbone
    if cut is not None:
        backbone = _cut_after(network, name, cut, in_chans, size_hw)
    elif name in CUTS:
        backbone = GraphBackbone(network, CUTS[name])
    elif name.startswith("timm/"):
        backbone = TimmBackbone(network)
    else:
        backbone = GraphBackbone(network, default_cut(trace(network)))
    probed = backbone.find_layout(
        in_chans,
        size_hw,
        channels=getattr(network, "num_features", None),
        prefix=getattr(network, "num_prefix_tokens", None),
    )
    if isinstance(backbone, TimmBackbone):  # the others hold nothing that they do not use
        if isinstance(probed.layers[-1].module, nn.MaxPool2d):
            backbone.set_submodule(probed.layers[-1].name, nn.Identity())
            probed = probe(backbone, in_chans, size_hw)
        drop_unused(backbone, probed)
    return backbone, probed


def _cut_after(
    network: nn.Module, name: str, cut: str, in_chans: int, size_hw: tuple[int, int]
) -> Backbone:
    try:
        check_cut(network, cut, in_chans, size_hw)
        return GraphBackbone(network, cut)
    except NoGraphError:
        if not name.startswith("timm/"):
            raise
        return TimmBlocks(network, cut)


def _neck(in_channels: int, recipe: dict[str, Any]) -> tuple[nn.Module | None, int]:
    """The added convolutions, and how many channels come out of them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, kernel, norm = in_channels, recipe["neck_kernel"], recipe["neck_norm"]
    if recipe["neck"] and channels % recipe["neck_groups"]:
        raise CamtrainValueError(
            f"neck_groups must divide the {channels} channels of the backbone, got "
            f"{recipe['neck_groups']}."
        )
    for number, out in enumerate(recipe["neck"], start=1):
        layers[f"conv{number}"] = nn.Conv2d(
            channels,
            out,
            kernel,
            padding=kernel // 2,
            groups=recipe["neck_groups"],
            bias=norm is None,
        )
        if norm is not None:
            layers[f"norm{number}"] = nn.BatchNorm2d(out)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        channels = out
    return (nn.Sequential(layers) if layers else None), channels


def _classes_of(
    name: str, found: Weights | None, in_chans: int, backbone_args: dict[str, Any]
) -> int | None:
    """How many classes the weights tell apart: the rows of the classifier's last weight."""
    if found is None:
        return None
    if name.startswith("camtrain/"):
        head = found.tensors.get("head.weight") if name in PAPER_NETWORKS else None
        return None if head is None else len(head)
    with torch.device("meta"):
        skeleton = build_classifier(
            name, num_classes=None, in_chans=in_chans, backbone_args=backbone_args
        )
    wanted = skeleton.state_dict()
    # timm says it; in torchvision it is the last.
    config: Any = getattr(skeleton, "pretrained_cfg", {})
    layer = config.get("classifier") or list(wanted)[-1].rpartition(".")[0]
    layer = layer if isinstance(layer, str) else layer[0]
    weight = renamed(found.tensors, wanted).get(f"{layer}.weight")
    return None if weight is None else len(weight)


def _check_arguments(
    neck: Sequence[int],
    neck_kernel: int,
    neck_groups: int,
    neck_norm: str | None,
    pool: str,
    dropout: float,
) -> None:
    is_list = isinstance(neck, Sequence) and not isinstance(neck, str)
    if not is_list or not all(isinstance(channels, int) for channels in neck):
        raise CamtrainTypeError(f"neck must be a list of channel counts, got {neck!r}.")
    for name, value in (("neck_kernel", neck_kernel), ("neck_groups", neck_groups)):
        if not isinstance(value, int):
            raise CamtrainTypeError(f"{name} must be an integer, got {value!r}.")
    if not isinstance(dropout, (int, float)):
        raise CamtrainTypeError(f"dropout must be a number, got {dropout!r}.")
    if neck_groups < 1 or any(channels < 1 or channels % neck_groups for channels in neck):
        raise CamtrainValueError(
            f"neck must hold channel counts that neck_groups={neck_groups} divides, got "
            f"{tuple(neck)}."
        )
    if neck_kernel < 1 or neck_kernel % 2 == 0:
        raise CamtrainValueError(
            f"neck_kernel must be odd, so that the map keeps its size, got {neck_kernel}."
        )
    if neck_norm not in (None, *get_args(NormName)):
        raise CamtrainValueError(f"neck_norm must be batch or None, got {neck_norm!r}.")
    if pool not in get_args(PoolName):
        raise CamtrainValueError(
            f"pool must be one of {', '.join(get_args(PoolName))}, got {pool!r}."
        )
    if not 0 <= dropout < 1:
        raise CamtrainValueError(f"dropout must lie in [0, 1), got {dropout}.")
