"""The paper's networks as their authors released them: trunk, CAM convolutions, head, input.

Source: Zhou et al., CVPR 2016 (arXiv 1512.04150), section 3, and the authors' Caffe definitions.

They trained them by SGD with momentum 0.9, weight decay 5e-4 (none on biases) and batches of 64,
GoogLeNet-CAM for 160,000 steps at a learning rate of 1e-3, a tenth of it after each 40,000; biases
learned twice as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camtrain.errors import CamtrainValueError
from camtrain.model.builtin import (
    alexnet_plus_trunk,
    caffe_name,
    fill,
    googlenet_trunk,
    scale_channels,
    vgg16_trunk,
)
from camtrain.model.camnet import CAMNet
from camtrain.model.modules import is_import_path, output_classes
from camtrain.preprocessing import Preprocessing

# The default neck of `create_model`.
USUAL_NECK = {"neck": [1024], "neck_kernel": 3, "neck_groups": 1, "neck_norm": None}
_STRIDE = 16  # of all three networks
_MEAN_BGR = (104.0, 117.0, 123.0)  # of pixels 0..255
_RESIZED = 256  # the short side in pixels, before the middle is cut out


@dataclass(frozen=True)
class PaperNetwork:
    """One of the paper's networks, at full width."""

    trunk: Callable[..., nn.Sequential]  # builds the layers before the CAM convolutions
    neck: tuple[int, ...] = (1024,)  # outputs of the CAM convolutions: 3x3, 2 groups, with ReLU
    neck_layers: tuple[str, ...] = ("CAM_conv",)  # their Caffe names
    neck_bias: float = 1.0  # first value of their biases; their first weights are gaussian, 0.01
    head_layer: str = "CAM_fc"  # the Caffe name of the linear classifier
    head_std: float | None = 0.01  # of its first weights, gaussian; None for Caffe's "xavier"
    side: int = 224  # height and width of the input, in pixels
    dropout: float = 0.5  # before the head
    no_dropout_for: int | None = None  # a number of classes for which the authors have none


PAPER_NETWORKS = {
    "camtrain/vgg16-cam": PaperNetwork(vgg16_trunk, neck_bias=0.0),
    "camtrain/googlenet-cam": PaperNetwork(googlenet_trunk, head_std=None, dropout=0.0),
    "camtrain/alexnet-plus-cam": PaperNetwork(
        alexnet_plus_trunk,
        neck=(512, 512),
        neck_layers=("conv6", "conv7"),
        head_layer="fc9",
        side=227,
        no_dropout_for=205,  # Places205
    ),
}


def with_paper_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe in which the paper's neck and dropout replace the usual ones.

    This concerns only the paper's networks: a usual neck becomes the paper's CAM convolutions, and
    a dropout of 0 the authors' dropout. Other values stay.
    """
    paper = PAPER_NETWORKS.get(recipe["backbone"])
    if paper is None:
        return recipe
    new_recipe = dict(recipe)
    if all(recipe[name] == value for name, value in USUAL_NECK.items()):
        new_recipe |= _paper_neck(paper, recipe)
    if recipe["dropout"] == 0 and recipe["num_classes"] != paper.no_dropout_for:
        new_recipe["dropout"] = paper.dropout
    return new_recipe


def complete_recipe(
    recipe: dict[str, Any], weights_classes: int | None, weights: str | Path | None
) -> dict[str, Any]:
    """The recipe with the number of classes, and with the paper's settings for its networks."""
    num_classes = weights_classes if recipe["num_classes"] is None else recipe["num_classes"]
    if num_classes is None or num_classes < 1:
        raise CamtrainValueError(
            f"num_classes must be at least 1 where the weights do not say it, got {num_classes} "
            f"for {recipe['backbone']} with weights={weights!r}."
        )
    return with_paper_defaults({**recipe, "num_classes": num_classes})


def has_paper_neck(recipe: dict[str, Any]) -> bool:
    """Whether a recipe has both trunk and neck of a network of the paper, at any width."""
    paper = PAPER_NETWORKS.get(recipe["backbone"])
    if paper is None or recipe["cut"] is not None:
        return False
    return all(recipe[name] == value for name, value in _paper_neck(paper, recipe).items())


def _paper_neck(paper: PaperNetwork, recipe: dict[str, Any]) -> dict[str, Any]:
    """The neck arguments of the paper's CAM convolutions, at the width of a recipe."""
    width = recipe["backbone_args"].get("width", 1.0)
    neck = [scale_channels(channels, width) for channels in paper.neck]
    return {"neck": neck, "neck_kernel": 3, "neck_groups": 2, "neck_norm": None}


def set_paper_values(net: CAMNet) -> None:
    """Give a network with the paper's neck its first values and the neck its dilation, in place."""
    assert net.recipe is not None
    paper = PAPER_NETWORKS[net.recipe["backbone"]]
    for conv in net.neck.children():
        if isinstance(conv, nn.Conv2d):
            fill(conv, bias=paper.neck_bias, std=0.01)
            # At a smaller stride these trained layers, too, see the pixels they were trained for.
            spread = _STRIDE // (net.recipe["stride"] or _STRIDE)
            conv.dilation = conv.padding = (spread, spread)
    fill(net.head, bias=0.0, std=paper.head_std)


def classes_of(network: nn.Module, name: str, tensors: dict[str, Tensor]) -> int | None:
    """The number of classes of a classifier's weights: the rows of its last layer's weight."""
    if name.startswith("camtrain/"):
        head = tensors.get("head.weight") if name in PAPER_NETWORKS else None
        return None if head is None else len(head)
    if is_import_path(name):
        return output_classes(network)
    # timm gives the layer's name; in torchvision it is the last.
    config: Any = getattr(network, "pretrained_cfg", {})
    names = list(network.state_dict())
    layer = config.get("classifier") or names[-1].rpartition(".")[0]
    layer = layer if isinstance(layer, str) else layer[0]
    weight = tensors.get(f"{layer}.weight")
    return None if weight is None else len(weight)


def caffe_layers(name: str) -> dict[str, str]:
    """Our names of the layers with weights, without ``backbone.trunk.``, by their Caffe names.

    Raises:
        CamtrainValueError: ``name`` is none of the paper's networks.
    """
    if name not in PAPER_NETWORKS:
        raise CamtrainValueError(
            f"A .caffemodel fits the paper's networks, {', '.join(PAPER_NETWORKS)}, not {name}; "
            "choose one of them as the backbone, or other weights."
        )
    paper = PAPER_NETWORKS[name]
    with torch.device("meta"):
        trunk = paper.trunk()
    convs = [path for path, layer in trunk.named_modules() if isinstance(layer, nn.Conv2d)]
    layers = {caffe_name(path): path for path in convs}
    layers |= {layer: f"neck.conv{n}" for n, layer in enumerate(paper.neck_layers, start=1)}
    return {**layers, paper.head_layer: "head"}


def paper_preprocessing(name: str, in_chans: int) -> Preprocessing:
    """Pixels 0..255 in the order BGR minus their mean; other channels minus the mean of the three.

    The short side becomes 256 pixels long and the middle is cut out. (The authors warp pictures to
    256 x 256 and average ten such cuts.)
    """
    side = PAPER_NETWORKS[name].side
    is_colour = in_chans == 3
    mean = _MEAN_BGR if is_colour else (sum(_MEAN_BGR) / 3,) * in_chans
    return Preprocessing(
        size=(side, side),
        mean=tuple(value / 255 for value in mean),
        std=(1 / 255,) * in_chans,
        resize_mode="crop",
        crop_pct=side / _RESIZED,
        channel_order="bgr" if is_colour else "rgb",
    )
