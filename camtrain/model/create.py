"""Building a CAM network by the name of its backbone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.header import Description
from camtrain.labels import Task, check_task
from camtrain.maps import PoolName
from camtrain.model.arguments import NormName, check_arguments, check_unchanged
from camtrain.model.backbones import (
    backbone_args_for,
    build_classifier,
    full_name,
    usual_preprocessing,
)
from camtrain.model.builtin import conv_stack
from camtrain.model.camnet import CAMNet
from camtrain.model.convert import NotCamReadyError, find_maps, with_original_head
from camtrain.model.cut import NoGraphError
from camtrain.model.hub import hub_network, is_hub_name
from camtrain.model.limits import as_large_as
from camtrain.model.modules import (
    UserNetwork,
    check_user,
    is_import_path,
    reinitialize,
    set_in_chans,
    user_network,
)
from camtrain.model.recipes import (
    PAPER_NETWORKS,
    USUAL_NECK,
    classes_of,
    complete_recipe,
    has_paper_neck,
    set_paper_values,
    with_paper_defaults,
)
from camtrain.model.stride import set_stride
from camtrain.model.trunk import Classifier, trunk_of
from camtrain.model.weights import Weights, find_weights

_TRUNK = ("backbone", "cut", "in_chans", "backbone_args")  # what the trunk's weights depend on


def create_model(
    backbone: str | nn.Module | Callable[..., nn.Module],
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
    foreground: bool = False,
    in_chans: int = 3,
    backbone_args: dict[str, Any] | None = None,
) -> CAMNet:
    """Build a CAM network on the trunk of a known CNN: backbone, neck, pool, linear head.

    The defaults are the paper's: its cut for VGG16, AlexNet and GoogLeNet, the last feature map for
    every other network; one 3x3 convolution of 1024 channels with ReLU; global average pooling.

    ``camtrain/vgg16-cam``, ``camtrain/googlenet-cam`` and ``camtrain/alexnet-plus-cam`` are the
    paper's networks as released. If all four neck arguments have their defaults, these networks get
    the authors' CAM convolutions (3x3, 2 groups, 1024 outputs; two of 512 in AlexNet+). A dropout
    of 0 becomes the authors' (0.5 in VGG16 and AlexNet+, except for the 205 classes of Places205;
    set ``net.dropout.p`` for none). Other values are taken as given. Without a file their weights
    are random; a ``.caffemodel`` also fills the CAM convolutions, and the head if K is the same.
    ``backbone_args={"width": 0.125}`` builds a miniature.

    Args:
        backbone: ``torchvision/...``, ``timm/...`` or ``camtrain/...``; the library may be left
            out. Also ``timm/hf-hub:ORG/NAME[@REVISION]`` and ``timm/local-dir:PATH``, which bring
            their own arguments, preprocessing, classes and weights, and channels unless 3.
            Or a network of yours: a module, which is copied, or a class or function that
            builds one, or its import path, ``mypackage.nets.MyNet``. It is cut off before its first
            fully connected layer or flattening, and before the last pooling.
        num_classes: K. None means the classes of the weights.
        weights: ``DEFAULT`` or another name that the library publishes, a file, or None (random).
            For a network of yours ``DEFAULT`` means the weights that it has.
            A bundle, the file of a network of this project, gives its trunk, which must be the
            same; its neck if that is the same; its head if neck and K are the same and there is no
            neck or ``num_classes`` is None; and its preprocessing. Where ``cut``, ``stride`` or
            ``backbone_args`` is None, the bundle's is taken.
        cut: The layer after which the network is cut off: any layer, or one of the blocks that the
            network lists where timm's forward pass cannot be read as a graph.
        stride: Pixels of the image per pixel of the map, smaller than the backbone's own; by
            dilation.
        neck: Output channels of each added convolution; empty for none.
        neck_kernel: Kernel size of these convolutions, odd; the size of the map is kept.
        neck_groups: Number of groups of these convolutions.
        neck_norm: ``batch``, or None for a bias instead.
        pool: How a class map becomes its logit: ``avg``, ``max``, ``lse``, ``gmp``.
        dropout: Probability, before the head.
        task: ``multiclass``, or ``multilabel``: any number of classes per picture, each with a
            sigmoid of its own.
        foreground: Add a head that learns where a thing is, see ``CAMNet.add_foreground``.
        in_chans: Channels of the images. For a network of yours 3 means those that it takes.
        backbone_args: Further arguments of the library's builder, such as ``{"pad_type": "same"}``,
            or of your class or function.

    Returns:
        The network, in training mode. Where the backbone is cam-ready, ``neck`` is empty and K is
        that of the weights, the original head is kept, so that nothing needs training.

    Raises:
        CamtrainTypeError: An argument has a wrong type.
        CamtrainValueError: An argument cannot work; the message says which, and the next step.
        CamtrainFileNotFoundError: A weights file does not exist or could not be downloaded.
    """
    hub = hub_network(str(backbone)) if is_hub_name(backbone) else None
    if hub is not None:
        backbone, in_chans = hub.backbone, hub.in_chans if in_chans == 3 else in_chans
        backbone_args = {**hub.backbone_args, **(backbone_args or {})}
    user = user_network(backbone)
    recipe: dict[str, Any] = {
        "backbone": full_name(str(backbone)) if user is None else user.path,
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
    recipe |= {"foreground": foreground} if foreground else {}
    check_arguments(recipe)
    recipe["neck"] = list(neck)
    if isinstance(backbone, CAMNet):
        unchanging = {**recipe, "weights": weights, "foreground": False}  # a head may be added
        check_unchanged(backbone, unchanging, create_model)
        return backbone.add_foreground() if foreground else backbone
    is_default = weights == "DEFAULT"
    pretrained = None if hub is None or not is_default else hub.weights()
    if not is_default or (hub is None and user is None):
        pretrained = find_weights(recipe["backbone"], weights)
    if pretrained is not None and pretrained.description is not None:
        return _continue_bundle(recipe, pretrained, pretrained.description, user)
    if user is None:
        recipe["backbone_args"] = backbone_args_for(
            recipe["backbone"], weights, in_chans, recipe["backbone_args"]
        )
    config = hub and hub.config
    classifier = _build(recipe, None, user, config)
    recipe["in_chans"] = classifier.in_chans
    if user is not None and weights is None:
        reinitialize(classifier.network)
    if user is not None and is_default:
        pretrained = Weights(classifier.network.state_dict(), user.path)
    weights_classes = None
    if pretrained is not None:
        pretrained = pretrained.fitted_to(classifier.network)
        weights_classes = classes_of(classifier.network, classifier.name, pretrained.tensors)
        if num_classes is weights_classes is None:
            # Weights of another network are refused as such, before the classes are asked for.
            any_head = with_paper_defaults({**recipe, "num_classes": 1})
            _with_new_head(any_head, classifier, pretrained)
    recipe = complete_recipe(recipe, weights_classes, weights)
    if pretrained is None:
        return _with_new_head(recipe, classifier, None)
    net = None
    is_same_head = recipe["num_classes"] == weights_classes and not neck and cut is None
    if is_same_head and recipe["backbone"] not in PAPER_NETWORKS:
        if (
            classes_of(classifier.network, classifier.name, classifier.network.state_dict())
            != weights_classes
        ):
            classifier = _build(recipe, weights_classes, user, config)
        with suppress(NotCamReadyError, NoGraphError):
            net = _with_original_head(recipe, classifier, pretrained)
    has_weights_classes = num_classes is None or net is not None
    net = net or _with_new_head(recipe, classifier, pretrained)
    if pretrained.class_names and has_weights_classes:
        net.name_classes(pretrained.class_names)
    return net


def from_recipe(recipe: Mapping[str, Any], user: UserNetwork | None = None) -> CAMNet:
    """The architecture that ``CAMNet.recipe`` describes, with random weights.

    Where only the user's code can build it, ``user`` does so; it may also give a whole CAMNet.
    """
    recipe = dict(recipe)
    check_arguments(recipe)
    check_user(recipe, user)
    if user is not None and isinstance(user.source, nn.Module):
        recipe["backbone_args"] = {}
    classifier = _build(recipe, recipe["num_classes"] if recipe.get("own_head") else None, user)
    if isinstance(classifier.network, CAMNet):
        return _with_foreground(classifier.network, recipe)
    if recipe.get("is_whole"):
        raise CamtrainTypeError(
            f"This network was built by hand, got a {type(classifier.network).__name__}; give "
            "backbone= a CAMNet, or a function that builds one."
        )
    if recipe.get("own_head"):
        return _with_original_head(recipe, classifier, None)
    return _with_new_head(recipe, classifier, None)


def _build(
    recipe: dict[str, Any],
    num_classes: int | None,
    user: UserNetwork | None,
    config: object = None,
) -> Classifier:
    """The library's or the user's classifier; None stands for a library's default classes.

    For ``config`` see ``usual_preprocessing``.
    """
    name, in_chans, args = recipe["backbone"], recipe["in_chans"], recipe["backbone_args"]
    if user is not None:
        network = user.build(args, in_chans)
        if not isinstance(network, CAMNet):
            in_chans = set_in_chans(network, in_chans)
        return Classifier(network, name, in_chans, None)
    return Classifier(
        build_classifier(name, num_classes=num_classes, in_chans=in_chans, backbone_args=args),
        name,
        in_chans,
        usual_preprocessing(name, in_chans, args, config),
    )


def _continue_bundle(
    recipe: dict[str, Any], bundle: Weights, description: Description, user: UserNetwork | None
) -> CAMNet:
    """A network with the trunk of a bundle, and with its neck and head where they fit.

    The head fits for as many classes on the same features. After a neck it is kept only if nobody
    has asked for a number of classes.
    """
    architecture = description.architecture
    assert architecture is not None  # `find_weights` has checked it
    keeps_classes = recipe["num_classes"] is None
    optional = ("cut", "stride", "backbone_args")
    defaults = {name: architecture[name] for name in optional if recipe[name] in (None, {})}
    recipe = complete_recipe({**recipe, **defaults}, architecture["num_classes"], bundle.source)
    # The file holds lists where the caller may give tuples.
    recipe["backbone_args"] = json.loads(json.dumps(recipe["backbone_args"]))
    if user is not None and is_import_path(architecture["backbone"]):
        # Its own code may have moved; its weights are compared by name and shape.
        recipe |= {name: architecture[name] for name in ("backbone", "backbone_args", "in_chans")}
    different = [name for name in _TRUNK if recipe[name] != architecture[name]]
    if different:
        changes = [f"{name} was {architecture[name]!r}, got {recipe[name]!r}" for name in different]
        options = " ".join(f"--model.{name} {_as_option(architecture[name])}" for name in different)
        raise CamtrainValueError(
            f"{bundle.source} holds weights of another backbone: {'; '.join(changes)}. Give "
            f"{options}, or other weights."
        )
    is_same_neck = all(recipe[name] == architecture[name] for name in USUAL_NECK)
    is_same_head = is_same_neck and recipe["num_classes"] == architecture["num_classes"]
    keeps_head = is_same_head and (keeps_classes or not recipe["neck"])
    keeps_head_layer = keeps_head and architecture.get("own_head", False)
    with as_large_as(bundle.tensors):  # arguments of the backbone may be the file's
        net = from_recipe({**recipe, "own_head": keeps_head_layer}, user)
    for part, is_kept in {"backbone": True, "neck": is_same_neck, "head": keeps_head}.items():
        if is_kept:
            bundle.load_part(net, part)
    net.preprocessing = description.preprocessing
    if recipe.get("foreground") and description.foreground:
        net.set_refine(net.refine, description.refine_layers)
        bundle.load_part(net, "foreground")
    if keeps_classes and description.class_names is not None:
        net.name_classes(description.class_names)
    return net


def _as_option(value: object) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else f"'{json.dumps(value)}'"


def _with_foreground(net: CAMNet, recipe: dict[str, Any]) -> CAMNet:
    return net.add_foreground() if recipe.get("foreground") else net


def _with_original_head(
    recipe: dict[str, Any], classifier: Classifier, weights: Weights | None
) -> CAMNet:
    """A cam-ready classifier with its own head; raises as ``find_maps`` for any other."""
    network = classifier.network
    if weights is not None:
        weights.load_into(network, classifier.in_chans)
    net = with_original_head(network, *find_maps(network), stride=recipe["stride"])
    net.dropout.p = recipe["dropout"]
    net.pool = recipe["pool"]
    net.task = check_task(recipe["task"])
    net.recipe = {**recipe, "own_head": True}
    net.preprocessing = classifier.preprocessing
    return _with_foreground(net, recipe)


def _with_new_head(
    recipe: dict[str, Any], classifier: Classifier, weights: Weights | None
) -> CAMNet:
    """A trunk with a new neck and a new head."""
    backbone, record = trunk_of(classifier, recipe["cut"])
    if weights is not None:
        weights.load_into(backbone.get_submodule("trunk"), classifier.in_chans)
    if recipe["stride"] is not None:
        set_stride(backbone, recipe["stride"], classifier.in_chans)
    channels, neck, groups = record.shape[1], recipe["neck"], recipe["neck_groups"]
    if neck and channels % groups:
        raise CamtrainValueError(
            f"neck_groups must divide the {channels} channels of the backbone, got {groups}."
        )
    has_norms = recipe["neck_norm"] is not None
    kernel = recipe["neck_kernel"]
    convs = conv_stack(channels, neck, kernel=kernel, groups=groups, has_norms=has_norms)
    net = CAMNet(
        backbone,
        nn.Linear((channels, *neck)[-1], recipe["num_classes"]),
        neck=convs if neck else None,
        pool=recipe["pool"],
        dropout=recipe["dropout"],
        task=recipe["task"],
        preprocessing=classifier.preprocessing,
        recipe={**recipe, "own_head": False},
    )
    if has_paper_neck(recipe):
        set_paper_values(net)
        if weights is not None and any(name.startswith("neck.") for name in weights.tensors):
            weights.load_part(net, "neck")
        tensors = {} if weights is None else weights.tensors
        count = classes_of(classifier.network, classifier.name, tensors)
        if weights is not None and count == net.head.out_features:
            weights.load_part(net, "head")
    return _with_foreground(net, recipe)
