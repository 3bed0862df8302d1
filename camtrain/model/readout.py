"""How a classifier reads its logits off a feature map: found by structure, proven by running it.

Whether the logits are a linear layer of the *mean* of some feature map cannot be told from names:
there are too many ways to write an average. So what follows a candidate is run on a small random
feature map, with random numbers in place of the weights, and has to give what a CAM network gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from camtrain.model.cut import TracedGraph
from camtrain.model.layout import Layout
from camtrain.model.pooled_norm import NormKind, PooledNorm, normalized
from camtrain.model.probe import evaluating
from camtrain.model.tail import Tail, random_numbers

# The map that is tried: of a free size, then of the sizes of networks that average a fixed window.
_FREE_HW, _OTHER_HW = (5, 7), (6, 5)
_MAPS = (
    *((Layout("nchw"), size_hw) for size_hw in (_FREE_HW, (7, 7), (8, 8), (6, 6), (4, 4))),
    *((Layout("nlc", prefix), _FREE_HW) for prefix in range(6)),
    (Layout("nhwc"), _FREE_HW),
)
_TOLERANCE = 1e-8  # of float64, relative to the largest value


class Readout(NamedTuple):
    """What makes logits of a feature map.

    Attributes:
        features: The operation whose result is the feature map.
        layout: How that result is stored.
        norm: The norm between the average and the linear layer, if there is one.
        head: The linear layer, (K, C) and (K,), with the norm's gain and bias in it; None where the
            average is the logit.
        map_hw: The only size of the map for which this holds, where a fixed window is averaged.
        dropout: Probability before the linear layer.
    """

    features: fx.Node
    layout: Layout
    norm: PooledNorm | None
    head: nn.Linear | None
    dropout: float
    map_hw: tuple[int, int] | None = None


def find_readout(traced: TracedGraph, *, may_be_input: bool = False) -> Readout | None:
    """The readout of a classifier, or None where its logits are not linear in an average.

    Args:
        traced: The classifier, or what it does to its features.
        may_be_input: The features may be what goes into the graph.
    """
    with evaluating(traced.network), torch.no_grad():
        weights: dict[str, Tensor] = {}
        for node in _backwards(traced):
            tail = Tail(traced, node, weights)
            if tail.is_too_much() or (node.op == "placeholder" and not may_be_input):
                return None
            if traced.is_average(traced.skip_reshapes(node)):
                continue  # a pixel is no map, though it is its own average
            found = _averaging_layout(tail)
            if found is not None:
                return _readout(tail, *found)
    return None


def _backwards(traced: TracedGraph) -> Iterator[fx.Node]:
    """The operations that the logits depend on, the last first."""
    needed = {traced.output()}
    for node in reversed(list(traced.graph.nodes)):
        if node in needed:
            needed.update(node.all_input_nodes)
            yield node


def _averaging_layout(tail: Tail) -> tuple[Layout, tuple[int, int]] | None:
    """How the result of an operation is stored, if nothing but its average over space matters."""
    channels = tail.channels()
    for layout, size_hw in _MAPS:
        shape = (3, channels, *size_hw)
        try:
            if tail(_stored(torch.empty(shape, device="meta"), layout)).ndim != 2:
                continue
            if size_hw == _FREE_HW and not _has_one_shape(tail, channels, layout):
                continue
            maps = random_numbers(shape)
            result = tail(_stored(maps, layout))
            of_mean = tail(_stored(_constant(maps.mean((-2, -1)), size_hw), layout))
        except Exception:  # a wrong guess can make anything raise
            continue
        if result.std(0).amax() > 0 and _equal(result, of_mean):
            return layout, size_hw
    return None


def _has_one_shape(tail: Tail, channels: int, layout: Layout) -> bool:
    """Whether maps of two sizes give results of one shape; what is only flattened does not."""
    shapes = {
        tail(_stored(torch.empty(3, channels, *size_hw, device="meta"), layout)).shape
        for size_hw in (_FREE_HW, _OTHER_HW)
    }
    return len(shapes) == 1


def _readout(tail: Tail, layout: Layout, size_hw: tuple[int, int]) -> Readout | None:
    """The linear layer on the average, or on its norm; None where there is neither."""

    def logits_of(pooled: Tensor) -> Tensor:
        return tail(_stored(_constant(pooled, size_hw), layout))

    channels = tail.channels()
    pooled = random_numbers((5, channels))
    logits = logits_of(pooled)
    map_hw: tuple[int, int] | None = size_hw
    if size_hw == _FREE_HW:
        if not _equal(logits, tail(_stored(_constant(pooled, _OTHER_HW), layout))):
            return None  # a sum, which grows with the map
        map_hw = None
    if _equal(logits, pooled):
        is_conv = _comes_from_convolution(tail)
        return Readout(tail.start, layout, None, None, 0.0, map_hw) if is_conv else None
    if _is_affine(logits_of, channels):
        head = _linear(tail, logits_of, channels)
        return Readout(tail.start, layout, None, head, tail.dropout(), map_hw)
    logits_of(pooled)
    found = _readout_after_norm(tail, layout, pooled)
    return None if found is None else found._replace(map_hw=map_hw)


def _comes_from_convolution(tail: Tail) -> bool:
    """Whether a convolution makes the map: a trunk that ends in anything else is no classifier."""
    node = tail.traced.skip_reshapes(tail.start)
    while node.all_input_nodes and tail.traced.is_layer(node, nn.ReLU, nn.Dropout):
        node = tail.traced.before(node)
    return tail.traced.is_layer(node, nn.Conv2d)


def _readout_after_norm(tail: Tail, layout: Layout, pooled: Tensor) -> Readout | None:
    """The linear layer on a norm of the average; ``tail`` has just run on ``pooled``."""
    node = next((n for n in tail.nodes if isinstance(_eps_of(tail, n), float)), None)
    if node is None:
        return None
    layer = tail.traced.network.get_submodule(str(node.target))
    gain, shift = (tail.random.get(f"{node.target}.{name}") for name in ("weight", "bias"))
    if not _equal(tail.results[node.all_input_nodes[0]].flatten(1), pooled):
        return None  # other layers come between
    result = tail.results[node]
    found = _norm_of(layer, pooled, result.flatten(1), gain, shift)
    after = Tail(tail.traced, node, tail.random)

    def logits_of(vectors: Tensor) -> Tensor:
        return after(vectors.view(-1, *result.shape[1:]))

    if found is None or not _is_affine(logits_of, pooled.shape[1]):
        return None
    linear = _linear(after, logits_of, pooled.shape[1])
    weight, bias = linear.weight.double(), linear.bias.double()
    if shift is not None:
        bias = bias + weight @ layer.get_parameter("bias").to(weight).flatten()
    if gain is not None:
        weight = weight * layer.get_parameter("weight").to(weight).flatten()
    return Readout(tail.start, layout, found, _as_linear(weight, bias), tail.dropout())


def _eps_of(tail: Tail, node: fx.Node) -> object:
    return getattr(tail.traced.module(node), "eps", None)


def _norm_of(
    layer: nn.Module, before: Tensor, after: Tensor, gain: Tensor | None, shift: Tensor | None
) -> PooledNorm | None:
    """The norm that a layer computes over channels, if it is one."""
    eps: Any = getattr(layer, "eps", None)
    for kind in get_args(NormKind) if isinstance(eps, float) else ():
        expected = normalized(before, before, kind, eps)
        expected = expected if gain is None else expected * gain.flatten()
        expected = expected if shift is None else expected + shift.flatten()
        if _equal(after, expected):
            return PooledNorm(kind, eps)
    return None


def _linear(tail: Tail, logits_of: Callable[[Tensor], Tensor], channels: int) -> nn.Linear:
    """The linear layer that ``logits_of``, which is known to be affine, computes."""
    layers = list(tail.layers.items())
    node, only = layers[0] if len(layers) == 1 else (None, None)
    if node is not None and isinstance(only, (nn.Linear, nn.Conv2d)):
        weight, bias = (tail.random.get(f"{node.target}.{name}") for name in ("weight", "bias"))
        vectors = random_numbers((2, channels))
        if weight is not None:  # None where it is computed from others, as by weight norm
            expected = F.linear(vectors, weight.flatten(1), bias)
            if _equal(logits_of(vectors), expected):
                return _as_linear(only.weight, only.bias)
    zeros = torch.zeros(1, channels, dtype=torch.float64, device="cpu")
    if any(tensor.is_meta for _, layer in layers for tensor in layer.parameters()):
        return nn.Linear(channels, logits_of(zeros).shape[1], device="meta")
    tail.uses_random = False
    bias = logits_of(zeros)
    weight = logits_of(torch.eye(channels, dtype=torch.float64, device="cpu")) - bias
    return _as_linear(weight.T, bias[0])


def _as_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    weight = weight.flatten(1)  # (K, C), of a 1x1 convolution too
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    linear.weight = nn.Parameter(weight.detach().float())
    linear.bias = nn.Parameter(bias.detach().float())
    return linear


def _is_affine(function: Callable[[Tensor], Tensor], channels: int) -> bool:
    a, b = random_numbers((2, 5, channels))
    of_a, of_b, of_zero = function(a), function(b), function(torch.zeros_like(a))
    return _equal(function(a - 2 * b), of_a - 2 * of_b + 2 * of_zero)


def _constant(vectors: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return vectors[..., None, None].expand(*vectors.shape, *size_hw)


def _stored(maps: Tensor, layout: Layout) -> Tensor:
    """Maps (B, C, h, w) as a network would give them; prefix tokens hold other numbers."""
    if layout.order == "nchw":
        return maps
    if layout.order == "nhwc":
        return maps.permute(0, 2, 3, 1)
    tokens = maps.flatten(2).transpose(1, 2)
    # Other ones each time, so that a result that depends on them is noticed.
    name = "" if maps.is_meta else str(maps.amax().item())
    others = random_numbers((len(maps), layout.prefix, maps.shape[1]), name).to(maps)
    return torch.cat((others, tokens), dim=1)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().amax() <= _TOLERANCE * a.abs().amax())
