"""Classifiers that are CAM networks already: found by structure, not a weight is touched."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.model.camnet import CAMNet
from camtrain.model.cut import GraphBackbone, TracedGraph, trace
from camtrain.model.probe import probe
from camtrain.model.stride import PROBE_HW, set_stride
from camtrain.preprocessing import Preprocessing


class NotCamReadyError(CamtrainValueError):
    """A classifier does not end in global average pooling and a linear layer."""


def convert(
    classifier: nn.Module,
    *,
    stride: int | None = None,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> CAMNet:
    """The CAM network that a classifier ending in global average pooling and a linear layer is.

    The logits stay as they were, to float32 rounding, at the classifier's own stride; nothing is
    retrained. Where the last layer is a convolution before the pooling (SqueezeNet), its outputs
    are the class maps and the head is the identity.

    Args:
        classifier: (B, in_chans, H, W) to (B, K). Left as it is: the CAM network holds a copy.
        stride: Pixels of the image per pixel of the map; smaller than the classifier's own gives
            larger maps from the same weights, by dilation.
        class_names: K names.
        preprocessing: What the classifier expects to be done to its pictures.

    Raises:
        CamtrainTypeError: ``classifier`` is not a ``torch.nn.Module``.
        NotCamReadyError: It does not end in global average pooling and a linear layer.
        CamtrainValueError: Its forward pass has no one graph, or the stride cannot be had.
    """
    if not isinstance(classifier, nn.Module):
        raise CamtrainTypeError(
            f"classifier must be a torch.nn.Module, got {type(classifier).__name__}; "
            "to build a network by name use camtrain.create_model."
        )
    traced = trace(copy.deepcopy(classifier))
    cut, head = _split(traced)
    backbone = GraphBackbone(traced.network, cut)
    convs = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    if not convs:
        raise _refusal(traced, "it has no convolution")
    in_chans = convs[0].in_channels
    if stride is not None:
        set_stride(backbone, stride, in_chans)
    if head is None:
        head = _identity_head(probe(backbone, in_chans, PROBE_HW).shape[1])
    net = CAMNet(backbone, head, class_names=class_names, preprocessing=preprocessing)
    return net.train(classifier.training)


def _split(traced: TracedGraph) -> tuple[str, nn.Linear | None]:
    """The layer before the global average pooling, and the linear layer after it, if any."""
    node = traced.skip_reshapes(traced.output())
    if traced.is_global_average(node):
        return traced.names[traced.skip_reshapes(traced.before(node))], None
    linear = traced.module(node)
    if not isinstance(linear, nn.Linear):
        raise _refusal(traced, f"its last operation is {traced.names[node]}, not a torch.nn.Linear")
    pool = traced.skip_reshapes(traced.before(node))
    if not traced.is_global_average(pool):
        raise _refusal(
            traced,
            f"its linear layer follows {traced.names[pool]}, not a global average pooling",
        )
    return traced.names[traced.before(pool)], _with_bias(linear)


def _identity_head(classes: int) -> nn.Linear:
    head = nn.Linear(classes, classes)
    with torch.no_grad():
        nn.init.eye_(head.weight)
        nn.init.zeros_(head.bias)
    return head


def _with_bias(linear: nn.Linear) -> nn.Linear:
    if linear.bias is None:
        linear.bias = nn.Parameter(torch.zeros_like(linear.weight[:, 0]))
    return linear


def _refusal(traced: TracedGraph, reason: str) -> NotCamReadyError:
    return NotCamReadyError(
        f"{type(traced.network).__name__} is not cam-ready: {reason}. To cut it, add a new head "
        'and train that, use camtrain.create_model("LIBRARY/NAME", num_classes=...).'
    )
