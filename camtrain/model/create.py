"""Building a CAM network by the name of its backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from camtrain.errors import CamtrainTypeError, CamtrainValueError, check_choice
from camtrain.header import Description
from camtrain.labels import Task, check_task
from camtrain.maps import PoolName
from camtrain.model.backbones import (
    backbone_args_for,
    build_classifier,
    full_name,
    usual_preprocessing,
)
from camtrain.model.bundle_weights import (
    architecture_of,
    check_same_trunk,
    default_from_bundle,
    keeps_head,
    load_bundle_into,
)
from camtrain.model.camnet import CAMNet
from camtrain.model.convert import NotCamReadyError, find_maps, with_original_head
from camtrain.model.cut import NoGraphError
from camtrain.model.recipes import (
    PAPER_NETWORKS,
    has_paper_neck,
    set_paper_values,
    with_paper_defaults,
)
from camtrain.model.stride import set_stride
from camtrain.model.trunk import Classifier, trunk_of
from camtrain.model.weights import Weights, find_weights, load_part, renamed

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
    recipe: dict[str, Any] = {
        "backbone": full_name(backbone),
        "num_classes": num_classes,
        "cut": cut,
        "stride": stride,
        "neck": neck,
        "neck_kernel": neck_kernel,
        "neck_groups": neck_groups,
        "neck_norm": neck_norm,
        "pool": pool,
        "dropout": dropout,
        "task": task,
        "in_chans": in_chans,
        "backbone_args": backbone_args or {},
    }
    _check_arguments(recipe)
    recipe["neck"] = list(neck)
    loaded = find_weights(recipe["backbone"], weights)
    if loaded is not None and loaded.description is not None:
        return _from_bundle(recipe, loaded, loaded.description)
    recipe["backbone_args"] = backbone_args_for(
        recipe["backbone"], weights, in_chans, recipe["backbone_args"]
    )
    classifier = _build(recipe, None)
    weights_classes = None if loaded is None else _classes_of(classifier, loaded.tensors)
    recipe = _completed(recipe, weights_classes, weights)
    if loaded is None:
        return _with_new_head(recipe, classifier, None)
    net = None
    is_same_head = recipe["num_classes"] == weights_classes and not neck and cut is None
    if is_same_head and recipe["backbone"] not in PAPER_NETWORKS:
        if _classes_of(classifier, classifier.network.state_dict()) != weights_classes:
            classifier = _build(recipe, weights_classes)
        with suppress(NotCamReadyError, NoGraphError):
            net = _with_original_head(recipe, classifier, loaded)
    has_weights_classes = num_classes is None or net is not None
    if net is None:
        net = _with_new_head(recipe, classifier, loaded)
    if loaded.class_names and has_weights_classes:
        net.name_classes(loaded.class_names)
    return net


def from_recipe(recipe: Mapping[str, Any]) -> CAMNet:
    """The architecture that ``CAMNet.recipe`` describes, with random weights."""
    recipe = dict(recipe)
    if recipe.get("own_head"):
        return _with_original_head(recipe, _build(recipe, recipe["num_classes"]), None)
    return _with_new_head(recipe, _build(recipe, None), None)


def _build(recipe: dict[str, Any], num_classes: int | None) -> Classifier:
    """The classifier of a library with random weights, for its default classes with None."""
    name, in_chans, args = recipe["backbone"], recipe["in_chans"], recipe["backbone_args"]
    return Classifier(
        build_classifier(name, num_classes=num_classes, in_chans=in_chans, backbone_args=args),
        name,
        in_chans,
        usual_preprocessing(name, in_chans, args),
    )


def _completed(
    recipe: dict[str, Any], weights_classes: int | None, weights: str | Path | None
) -> dict[str, Any]:
    """The recipe with the number of classes, and with the paper's settings where it has some."""
    num_classes = recipe["num_classes"]
    num_classes = weights_classes if num_classes is None else num_classes
    if num_classes is None or num_classes < 1:
        raise CamtrainValueError(
            f"num_classes must be at least 1 where the weights do not say it, got {num_classes} "
            f"for {recipe['backbone']} with weights={weights!r}."
        )
    defaults = {name: value.default for name, value in signature(create_model).parameters.items()}
    has_usual_neck = recipe["neck"] == list(defaults["neck"]) and all(
        recipe[name] == defaults[name] for name in ("neck_kernel", "neck_groups", "neck_norm")
    )
    return with_paper_defaults(
        {**recipe, "num_classes": num_classes}, has_usual_neck=has_usual_neck
    )


def _from_bundle(recipe: dict[str, Any], loaded: Weights, description: Description) -> CAMNet:
    """A network that continues from a bundle."""
    stored = architecture_of(description)
    cut, stride, backbone_args = default_from_bundle(
        description, recipe["cut"], recipe["stride"], recipe["backbone_args"]
    )
    keeps_classes = recipe["num_classes"] is None
    recipe = _completed(
        {**recipe, "cut": cut, "stride": stride, "backbone_args": backbone_args},
        stored["num_classes"],
        loaded.source,
    )
    check_same_trunk(recipe, loaded)
    with_head = keeps_head(recipe, description, keeps_classes=keeps_classes)
    net = from_recipe({**recipe, "own_head": with_head and stored.get("own_head", False)})
    load_bundle_into(net, loaded, with_head=with_head)
    if keeps_classes and description.class_names is not None:
        net.name_classes(description.class_names)
    return net


def _with_original_head(
    recipe: dict[str, Any], classifier: Classifier, weights: Weights | None
) -> CAMNet:
    """A cam-ready classifier with the head that it has; raises as ``find_maps`` for any other."""
    network = classifier.network
    if weights is not None:
        weights.load_into(network, classifier.in_chans)
    net = with_original_head(network, *find_maps(network), stride=recipe["stride"])
    net.dropout.p = recipe["dropout"]
    net.pool = recipe["pool"]
    net.task = check_task(recipe["task"])
    net.recipe = {**recipe, "own_head": True}
    net.preprocessing = classifier.preprocessing
    return net


def _with_new_head(
    recipe: dict[str, Any], classifier: Classifier, weights: Weights | None
) -> CAMNet:
    """A trunk with a new neck and a new head."""
    backbone, probed = trunk_of(classifier, recipe["cut"])
    if weights is not None:
        weights.load_into(backbone.get_submodule("trunk"), classifier.in_chans)
    if recipe["stride"] is not None:
        set_stride(backbone, recipe["stride"], classifier.in_chans)
    neck, channels = _neck(probed.shape[1], recipe)
    net = CAMNet(
        backbone,
        nn.Linear(channels, recipe["num_classes"]),
        neck=neck,
        pool=recipe["pool"],
        dropout=recipe["dropout"],
        task=recipe["task"],
        preprocessing=classifier.preprocessing,
        recipe={**recipe, "own_head": False},
    )
    if has_paper_neck(recipe):
        set_paper_values(net)
        if weights is not None:
            _load_neck_and_head(net, weights)
    return net


def _load_neck_and_head(net: CAMNet, weights: Weights) -> None:
    """Load the paper's CAM convolutions and head where the weights hold them.

    A head for other classes is left out.
    """
    head = weights.tensors.get("head.weight")
    parts = ["neck"] if any(name.startswith("neck.") for name in weights.tensors) else []
    if head is not None and len(head) == net.head.out_features:
        parts.append("head")
    for part in parts:
        load_part(net, part, weights.tensors, source=weights.source)


def _neck(in_channels: int, recipe: dict[str, Any]) -> tuple[nn.Module | None, int]:
    """The added convolutions, None without any, and the channels of their result."""
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


def _classes_of(classifier: Classifier, tensors: dict[str, Tensor]) -> int | None:
    """How many classes weights of a classifier tell apart: the rows of its last layer's weight."""
    if classifier.name.startswith("camtrain/"):
        head = tensors.get("head.weight") if classifier.name in PAPER_NETWORKS else None
        return None if head is None else len(head)
    names = list(classifier.network.state_dict())
    # timm tells the layer's name; in torchvision it is the last.
    config: Any = getattr(classifier.network, "pretrained_cfg", {})
    layer = config.get("classifier") or names[-1].rpartition(".")[0]
    layer = layer if isinstance(layer, str) else layer[0]
    weight = renamed(tensors, names).get(f"{layer}.weight")
    return None if weight is None else len(weight)


def _check_arguments(recipe: dict[str, Any]) -> None:
    """Refuse arguments that no network can be built with."""
    for name in ("num_classes", "stride"):
        if recipe[name] is not None and type(recipe[name]) is not int:
            raise CamtrainTypeError(f"{name} must be an integer or None, got {recipe[name]!r}.")
    check_task(recipe["task"])
    neck, neck_groups, dropout = recipe["neck"], recipe["neck_groups"], recipe["dropout"]
    is_list = isinstance(neck, Sequence) and not isinstance(neck, str)
    if not is_list or not all(isinstance(channels, int) for channels in neck):
        raise CamtrainTypeError(f"neck must be a list of channel counts, got {neck!r}.")
    for name in ("neck_kernel", "neck_groups"):
        if not isinstance(recipe[name], int):
            raise CamtrainTypeError(f"{name} must be an integer, got {recipe[name]!r}.")
    if not isinstance(dropout, (int, float)):
        raise CamtrainTypeError(f"dropout must be a number, got {dropout!r}.")
    if neck_groups < 1 or any(channels < 1 or channels % neck_groups for channels in neck):
        raise CamtrainValueError(
            f"neck must hold channel counts that neck_groups={neck_groups} divides, got "
            f"{tuple(neck)}."
        )
    if recipe["neck_kernel"] < 1 or recipe["neck_kernel"] % 2 == 0:
        raise CamtrainValueError(
            f"neck_kernel must be odd, so that the map keeps its size, got {recipe['neck_kernel']}."
        )
    if recipe["neck_norm"] not in (None, *get_args(NormName)):
        raise CamtrainValueError(f"neck_norm must be batch or None, got {recipe['neck_norm']!r}.")
    check_choice("pool", recipe["pool"], get_args(PoolName))
    if not 0 <= dropout < 1:
        raise CamtrainValueError(f"dropout must lie in [0, 1), got {dropout}.")
