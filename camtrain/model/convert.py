"""Conversion of classifiers that end in an average and a linear layer; no weight is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torchvision.models as tv
from torch import Tensor, nn

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.model.backbones import build_classifier
from camtrain.model.camnet import CAMNet
from camtrain.model.cut import Operations, trace
from camtrain.model.modules import UserNetwork, import_path_of, recipe_of
from camtrain.model.probe import drop_unused, probe, takes
from camtrain.model.readout import NormKind, Readout, as_linear, find_readout
from camtrain.model.stride import PROBE_HW, set_stride
from camtrain.model.trunk import Backbone, GraphBackbone, TimmBackbone
from camtrain.preprocessing import Preprocessing


class NotCamReadyError(CamtrainValueError):
    """The logits of a classifier are no linear function of an averaged feature map."""


class PooledNorm(nn.Module):
    """Normalizes features by the mean and the variance of their own average over space.

    Heads with a norm after the pooling (ConvNeXt and Swin in timm) normalize the pooled vector over
    its channels. For one image that is an affine map with constants, so it may be applied to every
    pixel before the average: the class maps of the result average to the logits exactly. Gain and
    bias of the norm are folded into the head.

    Args:
        kind: With v the features and p their average over space, over the channels of p:
            ``layer``: (v - mean) / sqrt(var + eps), Ba et al., arXiv 1607.06450, equation 4.
            ``rms``: v / sqrt(mean square + eps), Zhang and Sennrich, arXiv 1910.07467, equation 4.
        eps: Added to the square before the root.

    Example:
        >>> PooledNorm("layer", 0.0)(torch.tensor([[[[1.0]], [[3.0]]]])).flatten().tolist()
        [-1.0, 1.0]
    """

    def __init__(self, kind: NormKind, eps: float) -> None:
        super().__init__()
        self.kind: NormKind = kind
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h, w), float32."""
        features = features.float()
        average = features.mean((-2, -1), keepdim=True)  # (B, C, 1, 1)
        if self.kind == "layer":
            mean = average.mean(1, keepdim=True)
            features, average = features - mean, average - mean
        return features * torch.rsqrt(average.square().mean(1, keepdim=True) + self.eps)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{self.kind}, eps={self.eps}"


def convert(
    classifier: nn.Module,
    *,
    stride: int | None = None,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> CAMNet:
    """Make a CAM network of a classifier that ends in global average pooling and a linear layer.

    The logits stay as they were, to float32 rounding, at the classifier's own stride; nothing is
    retrained. Between the average and the logits there may be

    * nothing: the last layer is a convolution before the pooling (SqueezeNet). Its outputs are the
      class maps and the head is the identity;
    * a linear layer, or several layers that are linear together in evaluation mode (BatchNorm, the
      average of two heads): they become one head;
    * a LayerNorm or RMSNorm before the linear layer (ConvNeXt): see ``PooledNorm``, which becomes
      the neck.

    The average may be that of a map, of a map with its channels last, or of the tokens of patches.

    Args:
        classifier: (B, in_chans, H, W) to (B, K). Left as it is: the CAM network holds a copy.
        stride: Pixels of the image per pixel of the map; smaller than the classifier's own gives
            larger maps from the same weights, by dilation.
        class_names: K names.
        preprocessing: What the classifier expects to be done to its pictures.

    Raises:
        CamtrainTypeError: ``classifier`` is not a ``torch.nn.Module``.
        NotCamReadyError: Its logits are no linear function of an average; says what they are, and
            which call of ``create_model`` would convert it.
        CamtrainValueError: Its forward pass has no one graph, or the stride is not possible.
    """
    if not isinstance(classifier, nn.Module):
        raise CamtrainTypeError(
            f"classifier must be a torch.nn.Module, got {type(classifier).__name__}; "
            "to build a network by name use camtrain.create_model."
        )
    if isinstance(classifier, CAMNet):
        raise CamtrainTypeError("classifier is a CAM network already; use its class_maps.")
    network = UserNetwork(import_path_of(classifier), classifier).build({})
    try:
        in_chans, operations, readout = find_maps(network)
    except NotCamReadyError as error:
        raise NotCamReadyError(
            f"{error} To cut it, add a new head and train that, use "
            f"camtrain.create_model({_argument_of(network)}, num_classes=...)."
        ) from error
    net = with_original_head(network, in_chans, operations, readout, stride=stride)
    head, dropout = net.head, net.dropout.p
    changes = {"stride": stride, "dropout": dropout, "own_head": True}
    net.recipe = recipe_of(classifier, head.out_features, in_chans, **changes)
    net.preprocessing = preprocessing
    if class_names is not None:
        net.name_classes(class_names)
    return net


def with_original_head(
    network: nn.Module,
    in_chans: int,
    operations: Operations,
    readout: Readout,
    *,
    stride: int | None,
) -> CAMNet:
    """The CAM network of a classifier, which is taken apart, by the results of ``find_maps``."""
    modes = {id(module): module.training for module in network.modules()}
    backbone: Backbone
    if readout.cut is None:
        backbone = TimmBackbone(network)
        backbone.layout, backbone.size_hw = readout.layout, _size_hw(network)
        drop_unused(backbone, probe(backbone, in_chans, _size_hw(network)))
    else:
        backbone = GraphBackbone(operations, readout.cut)
        backbone.layout, backbone.map_hw = readout.layout, readout.map_hw
    if stride is not None:
        set_stride(backbone, stride, in_chans)
    net = CAMNet(
        backbone,
        readout.head or as_linear(torch.eye(probe(backbone, in_chans, PROBE_HW).shape[1]), None),
        neck=None if readout.norm is None else PooledNorm(*readout.norm),
        dropout=readout.dropout or float(getattr(network, "drop_rate", 0.0)),
    )
    net.train(network.training)
    for module in net.modules():  # some may be frozen in evaluation mode
        module.training = modes.get(id(module), module.training)
    return net


def find_maps(network: nn.Module) -> tuple[int, Operations, Readout]:
    """The channels of the images, the operations and the readout of a classifier.

    Its cut is None where the feature map is the result of ``forward_features`` of a timm network.

    Raises:
        NotCamReadyError: The logits are no linear function of an average; says what they are.
    """
    in_chans = _in_chans(network)
    if getattr(network, "num_classes", None) == 0:
        raise _not_cam_ready(network, "it has no classifier")
    # The `forward` of a class derived from timm's may do more.
    is_timm = type(network).__module__.startswith("timm.") and hasattr(network, "forward_head")
    operations = trace(_TimmHead(network) if is_timm else network)
    readout = find_readout(operations, may_be_input=is_timm)
    if readout is None or (is_timm and readout.cut is not None):
        raise _not_cam_ready(network, _last_operation(operations))
    return in_chans, operations, readout


def _in_chans(network: nn.Module) -> int:
    """Channels of the images: the first convolution's, unless pixels are rearranged before it."""
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if not convs:
        raise _not_cam_ready(network, "it has no convolution")
    channels = convs[0].in_channels
    return channels if channels == 3 or not takes(network, 3, _size_hw(network)) else 3


def _size_hw(network: nn.Module) -> tuple[int, int]:
    """(H, W) of the images that a timm network was made for; any other is taken to be free."""
    built_for = getattr(getattr(network, "patch_embed", None), "img_size", None)
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    height, width = built_for or config.get("input_size", (3, *PROBE_HW))[1:]
    return height, width


class _TimmHead(nn.Module):
    """The head of a timm network alone, which can be traced also where the trunk cannot."""

    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network.forward_head(features)
        return logits


def _last_operation(operations: Operations) -> str:
    """Why a classifier is not cam-ready, by its last layers."""
    names = {node: name.removeprefix("network.") for node, name in operations.names.items()}
    node = operations.skip_reshapes(operations.output())
    if not isinstance(operations.module(node), (nn.Linear, nn.Conv2d)):
        return f"its last operation is {names[node]}, not a torch.nn.Linear"
    earlier_node = operations.skip_reshapes(operations.before(node))
    if operations.is_class_token(earlier_node):
        return "its linear layer reads the class token"
    return f"its linear layer follows {names[earlier_node]}, not a global average pooling"


def _not_cam_ready(network: nn.Module, reason: str) -> NotCamReadyError:
    return NotCamReadyError(f"{type(network).__name__} is not cam-ready: {reason}.")


def _argument_of(network: nn.Module) -> str:
    """What ``create_model`` takes for a network: its library's name, found by shapes, or itself."""
    config: Any = getattr(network, "pretrained_cfg", None)
    if config:
        return f'"timm/{config["architecture"]}"'
    home, shapes = type(network).__module__, _shapes(network)
    for model in tv.list_models(module=tv):
        if tv.get_model_builder(model).__module__ != home:
            continue
        name = f"torchvision/{model}"
        with torch.device("meta"):
            candidate = build_classifier(name, num_classes=None, in_chans=3, backbone_args={})
        if _shapes(candidate) == shapes:
            return f'"{name}"'
    return "classifier"


def _shapes(network: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of all weights but those of the last layer, whose classes may have been changed."""
    return [tuple(tensor.shape) for tensor in network.parameters()][:-2]
