"""The paper's networks as their authors released them: trunk, CAM convolutions, head, input.

Source: Zhou et al., CVPR 2016 (arXiv 1512.04150), section 3, and the authors' Caffe definitions.

They trained them by SGD with momentum 0.9, weight decay 5e-4 (none on biases) and batches of 64,
GoogLeNet-CAM for 160,000 steps at a learning rate of 1e-3, a tenth of it after each 40,000; biases
learned twice as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from camtrain.errors import CamtrainValueError
from camtrain.model.builtin import (
    alexnet_plus_trunk,
    caffe_name,
    fill,
    googlenet_trunk,
    scaled,
    vgg16_trunk,
)
from camtrain.model.camnet import CAMNet
from camtrain.preprocessing import Preprocessing

_STRIDE = 16  # of all three
_MEAN_BGR = (104.0, 117.0, 123.0)  # of pixels 0..255
_RESIZED = 256  # the short side, of which the middle is cut out


@dataclass(frozen=True)
class PaperNetwork:
    """One of the paper's networks, at full width.

    Attributes:
        trunk: Builds the layers before the CAM convolutions, from ``in_chans`` and ``width``.
        neck: Outputs of the CAM convolutions: 3x3, 2 groups, each with ReLU.
        neck_layers: Their Caffe names.
        neck_bias: First value of their biases; their first weights are gaussian, 0.01.
        head_layer: The Caffe name of the linear classifier.
        head_std: Of its first weights, gaussian; None for Caffe's "xavier".
        side: Height and width of the input, in pixels.
        dropout: Before the head.
        no_dropout_for: A number of classes for which the authors' network has none.
    """

    trunk: Callable[..., nn.Sequential]
    neck: tuple[int, ...] = (1024,)
    neck_layers: tuple[str, ...] = ("CAM_conv",)
    neck_bias: float = 1.0
    head_layer: str = "CAM_fc"
    head_std: float | None = 0.01
    side: int = 224
    dropout: float = 0.5
    no_dropout_for: int | None = None


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


def with_paper_defaults(recipe: dict[str, Any], *, has_usual_neck: bool) -> dict[str, Any]:
    """A recipe in which the paper's neck and dropout replace the usual ones.

    Only for the paper's networks. Neck arguments that are all ``create_model``'s defaults mean the
    CAM convolutions of the paper, a dropout of 0 the authors' dropout; other values stay.
    """
    paper = PAPER_NETWORKS.get(recipe["backbone"])
    if paper is None:
        return recipe
    completed = {**recipe, **(_paper_neck(paper, recipe) if has_usual_neck else {})}
    if recipe["dropout"] == 0 and recipe["num_classes"] != paper.no_dropout_for:
        completed["dropout"] = paper.dropout
    return completed


def has_paper_neck(recipe: dict[str, Any]) -> bool:
    """Whether a recipe is a network of the paper as a whole, at any width: trunk and neck."""
    paper = PAPER_NETWORKS.get(recipe["backbone"])
    if paper is None or recipe["cut"] is not None:
        return False
    return all(recipe[name] == value for name, value in _paper_neck(paper, recipe).items())


def _paper_neck(paper: PaperNetwork, recipe: dict[str, Any]) -> dict[str, Any]:
    width = recipe["backbone_args"].get("width", 1.0)
    neck = [scaled(channels, width) for channels in paper.neck]
    return {"neck": neck, "neck_kernel": 3, "neck_groups": 2, "neck_norm": None}


def set_paper_values(net: CAMNet) -> None:
    """Give neck and head the paper's first values, and the neck its dilation, in place.

    ``net.recipe`` has the paper's neck.
    """
    assert net.recipe is not None
    paper = PAPER_NETWORKS[net.recipe["backbone"]]
    for conv in net.neck.children():
        if isinstance(conv, nn.Conv2d):
            fill(conv, bias=paper.neck_bias, std=0.01)
            # The CAM convolutions are trained layers too: at a smaller stride they look at the
            # pixels they were trained for, as the trunk's layers do.
            spread = _STRIDE // (net.recipe["stride"] or _STRIDE)
            conv.dilation = conv.padding = (spread, spread)
    fill(net.head, bias=0.0, std=paper.head_std)


def caffe_layers(name: str) -> dict[str, str]:
    """The layers of a network of the paper that have weights: Caffe's name, and ours.

    Our names are those of ``CAMNet`` without ``backbone.trunk.``.

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
