"""How a classifier computes logits from a feature map: found in its graph, proven by running it.

Names do not tell whether the logits are a linear layer of the *mean* of some feature map: there are
too many ways to write an average. So the operations after a candidate are run on a small random
feature map, with random numbers in place of the weights, and must give what a CAM network gives.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from operator import attrgetter, getitem
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from camtrain.model.cut import TracedGraph
from camtrain.model.layout import Layout
from camtrain.model.probe import evaluating

NormKind = Literal["layer", "rms"]

# The maps to try: of a free size, then of the sizes of networks that average a fixed window.
_FREE_HW, _OTHER_HW = (5, 7), (6, 5)
_MAPS = (
    *((Layout("nchw"), size_hw) for size_hw in (_FREE_HW, (7, 7), (8, 8), (6, 6), (4, 4))),
    *((Layout("nlc", prefix), _FREE_HW) for prefix in range(6)),
    (Layout("nhwc"), _FREE_HW),
)
_TOLERANCE = 1e-8  # of float64, relative to the largest value
_MOST_LAYERS = 6  # of a head


class Readout(NamedTuple):
    """The steps from a feature map to the logits.

    Attributes:
        cut: The layer whose result is the feature map; None for the input of the graph.
        layout: How that result is stored.
        norm: Kind and epsilon of the norm between the average and the linear layer, or None.
        head: The linear layer, (K, C) and (K,), with the norm's gain and bias folded in; None where
            the average is the logit.
        dropout: Probability before the linear layer.
        map_hw: The only size of the map for which this holds, where a fixed window is averaged.
    """

    cut: str | None
    layout: Layout
    norm: tuple[NormKind, float] | None = None
    head: nn.Linear | None = None
    dropout: float = 0.0
    map_hw: tuple[int, int] | None = None


def find_readout(traced: TracedGraph, *, may_be_input: bool = False) -> Readout | None:
    """The readout of a classifier, or None where its logits are not linear in an average.

    Args:
        traced: The classifier, or its head alone.
        may_be_input: Whether the input of the graph may be the feature map.
    """
    with evaluating(traced.network), torch.no_grad():
        random_weights: dict[str, Tensor] = {}
        for node in _backwards(traced):
            head = _HeadProbe(traced, node, random_weights)
            if head.is_more_than_head() or (node.op == "placeholder" and not may_be_input):
                return None
            if traced.is_average(traced.skip_reshapes(node)):
                continue  # a pixel is no map, though it is its own average
            layout_and_size = _averaging_layout(head)
            if layout_and_size is not None:
                return _readout(head, *layout_and_size)
    return None


def _backwards(traced: TracedGraph) -> Iterator[fx.Node]:
    """The operations that the logits depend on, the last first."""
    needed = {traced.output()}
    for node in reversed(list(traced.graph.nodes)):
        if node in needed:
            needed.update(node.all_input_nodes)
            yield node


class _HeadProbe:
    """The operations of a network after one of them, run in float64 and with random weights."""

    def __init__(self, traced: TracedGraph, start: fx.Node, weights: dict[str, Tensor]) -> None:
        self.traced, self.start, self.end = traced, start, traced.output()
        every = list(traced.graph.nodes)
        before = every[: every.index(start)]
        following = every[every.index(start) + 1 : every.index(self.end) + 1]
        # Layers that have weights.
        self.layers = {
            node: layer
            for node in following
            if (layer := traced.module(node)) is not None and any(True for _ in layer.parameters())
        }
        self.random = weights
        self.uses_random = True
        self.results: dict[fx.Node, Any] = {}
        self.batch_sizes = [n for n in before if n.target == "size" and n.args[1:] == (0,)]
        self.shapes = [n for n in before if n.target is getattr and n.args[1] == "shape"]
        of_shapes = [n for n in before if n.target is getitem and n.args[0] in self.shapes]
        self.nodes = [*of_shapes, *following]

    def __call__(self, value: Tensor) -> Tensor:
        """The final result with ``value`` as the result of the first operation."""
        self.results = {self.start: value.clone()}  # later operations may work in place
        # Networks often take the number of images from an earlier tensor.
        self.results |= {node: value.shape[0] for node in self.batch_sizes}
        self.results |= {node: value.shape[:1] for node in self.shapes}
        for node in self.nodes:
            if all(needed in self.results for needed in node.all_input_nodes):
                self.results[node] = self._run(node, value.device)
        result: Tensor = self.results[self.end]
        return result

    def _run(self, node: fx.Node, device: torch.device) -> Tensor:
        args: Any = fx.node.map_arg(node.args, self.results.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, self.results.__getitem__)
        result: Tensor
        if node.op == "call_module":
            module = self.traced.network.get_submodule(str(node.target))
            tensors = chain(module.named_parameters(), module.named_buffers())
            weights = {n: self._weights(f"{node.target}.{n}", t, device) for n, t in tensors}
            result = torch.func.functional_call(module, weights, args, kwargs)
        elif node.op == "get_attr":
            name = str(node.target)
            result = self._weights(name, attrgetter(name)(self.traced.network), device)
        elif node.target == "float":  # float64 here
            result = args[0]
        elif node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            result = node.target(*args, **kwargs)
        return result

    def _weights(self, name: str, tensor: Tensor, device: torch.device) -> Tensor:
        if device.type == "meta":
            return tensor.to(device)
        if not tensor.is_floating_point():  # indices, masks, counters
            return torch.zeros_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
        if not self.uses_random:
            return tensor.detach().to(device, torch.float64)
        if name not in self.random:
            numbers = _random_numbers(tuple(tensor.shape), name)
            self.random[name] = numbers.abs() + 0.5 if name.endswith("var") else numbers
        return self.random[name]

    def random_parameters(self, node: fx.Node) -> tuple[Tensor | None, Tensor | None]:
        """The random weight and bias of a layer that has run."""
        return self.random.get(f"{node.target}.weight"), self.random.get(f"{node.target}.bias")

    def is_more_than_head(self) -> bool:
        """Whether there are too many layers for a head, or one that sees neighbouring pixels."""
        return len(self.layers) > _MOST_LAYERS or any(
            getattr(layer, "kernel_size", (1, 1)) != (1, 1)
            or isinstance(layer, nn.MultiheadAttention)
            for layer in self.layers.values()
        )

    def dropout(self) -> float:
        """The probability of the last dropout layer, 0 without one."""
        layers = [self.traced.module(node) for node in self.nodes]
        return next((layer.p for layer in reversed(layers) if isinstance(layer, nn.Dropout)), 0.0)

    def channels(self) -> int:
        """Channels of the feature map, as the first layer takes them."""
        for layer in self.layers.values():
            for name in ("in_features", "in_channels", "num_features"):
                if hasattr(layer, name):
                    return int(getattr(layer, name))
            return next(layer.parameters()).numel()
        return 6  # any number will do


def _averaging_layout(head: _HeadProbe) -> tuple[Layout, tuple[int, int]] | None:
    """Layout and size of a map of which only the average over space matters, or None."""
    channels = head.channels()
    for layout, size_hw in _MAPS:
        shape = (3, channels, *size_hw)
        try:
            sizes = (size_hw, _OTHER_HW) if size_hw == _FREE_HW else (size_hw,)
            shapes = {
                head(_stored(torch.empty(3, channels, *hw, device="meta"), layout)).shape
                for hw in sizes
            }
            if len(shapes) > 1 or len(shapes.pop()) != 2:
                continue  # a flattened map, or no logits
            maps = _random_numbers(shape)
            result = head(_stored(maps, layout))
            of_mean = head(_stored(_constant(maps.mean((-2, -1)), size_hw), layout))
        except Exception:  # a wrong guess can make anything raise
            continue
        if result.std(0).amax() > 0 and _equal(result, of_mean):
            return layout, size_hw
    return None


def _readout(head: _HeadProbe, layout: Layout, size_hw: tuple[int, int]) -> Readout | None:
    """The linear layer on the average, or on its norm; None where there is neither."""

    def logits_of(pooled: Tensor) -> Tensor:
        return head(_stored(_constant(pooled, size_hw), layout))

    channels = head.channels()
    pooled = _random_numbers((5, channels))
    logits = logits_of(pooled)
    is_free = size_hw == _FREE_HW
    if is_free and not _equal(logits, head(_stored(_constant(pooled, _OTHER_HW), layout))):
        return None  # a sum, which grows with the map
    is_input = head.start.op == "placeholder"
    cut = None if is_input else head.traced.names[head.start]
    readout = Readout(cut, layout, map_hw=None if is_free else size_hw)
    if _equal(logits, pooled):
        return readout if _comes_from_convolution(head) else None
    if _is_affine(logits_of, channels):
        return readout._replace(head=_linear(head, logits_of, channels), dropout=head.dropout())
    logits_of(pooled)
    norm_and_linear = _norm_and_linear(head, pooled)
    if norm_and_linear is None:
        return None
    norm, linear = norm_and_linear
    return readout._replace(norm=norm, head=linear, dropout=head.dropout())


def _comes_from_convolution(head: _HeadProbe) -> bool:
    """Whether a convolution makes the map: a trunk that ends in anything else is no classifier."""
    node = head.traced.skip_reshapes(head.start)
    while node.all_input_nodes and head.traced.is_layer(node, nn.ReLU, nn.Dropout):
        node = head.traced.before(node)
    return head.traced.is_layer(node, nn.Conv2d)


def _norm_and_linear(
    head: _HeadProbe, pooled: Tensor
) -> tuple[tuple[NormKind, float], nn.Linear] | None:
    """A norm of the average and the linear layer on it; ``head`` has just run on ``pooled``."""
    layers = ((node, head.traced.module(node)) for node in head.nodes)
    normed = ((n, layer) for n, layer in layers if isinstance(getattr(layer, "eps", None), float))
    node, layer = next(normed, (None, None))
    if node is None or layer is None:
        return None
    gain, shift = head.random_parameters(node)
    if not _equal(head.results[node.all_input_nodes[0]].flatten(1), pooled):
        return None  # other layers come between
    result = head.results[node]
    norm = _norm_of(layer, pooled, result.flatten(1), gain, shift)
    after = _HeadProbe(head.traced, node, head.random)

    def logits_of(vectors: Tensor) -> Tensor:
        return after(vectors.view(-1, *result.shape[1:]))

    if norm is None or not _is_affine(logits_of, pooled.shape[1]):
        return None
    linear = _linear(after, logits_of, pooled.shape[1])
    weight, bias = linear.weight.double(), linear.bias.double()
    if shift is not None:
        bias = bias + weight @ layer.get_parameter("bias").to(weight).flatten()
    if gain is not None:
        weight = weight * layer.get_parameter("weight").to(weight).flatten()
    return norm, _as_linear(weight, bias)


def _norm_of(
    layer: nn.Module, before: Tensor, after: Tensor, gain: Tensor | None, shift: Tensor | None
) -> tuple[NormKind, float] | None:
    """Kind and epsilon of the norm that a layer computes over channels, or None."""
    eps: Any = layer.eps
    channels = before.shape[1:]
    norms: dict[NormKind, Tensor] = {
        "layer": F.layer_norm(before, channels, eps=eps),
        "rms": F.rms_norm(before, channels, eps=eps),
    }
    for kind, expected in norms.items():
        expected = expected if gain is None else expected * gain.flatten()
        expected = expected if shift is None else expected + shift.flatten()
        if _equal(after, expected):
            return kind, eps
    return None


def _linear(head: _HeadProbe, logits_of: Callable[[Tensor], Tensor], channels: int) -> nn.Linear:
    """The linear layer that ``logits_of``, which is known to be affine, computes."""
    layers = list(head.layers.items())
    node, only = layers[0] if len(layers) == 1 else (None, None)
    if node is not None and isinstance(only, (nn.Linear, nn.Conv2d)):
        weight, bias = head.random_parameters(node)
        vectors = _random_numbers((2, channels))
        if weight is not None:  # None where it is computed from other tensors, as by weight norm
            expected = F.linear(vectors, weight.flatten(1), bias)
            if _equal(logits_of(vectors), expected):
                return _as_linear(only.weight, only.bias)
    zeros = torch.zeros(1, channels, dtype=torch.float64, device="cpu")
    if any(tensor.is_meta for _, layer in layers for tensor in layer.parameters()):
        return nn.Linear(channels, logits_of(zeros).shape[1], device="meta")
    head.uses_random = False
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
    a, b = _random_numbers((2, 5, channels))
    of_a, of_b, of_zero = function(a), function(b), function(torch.zeros_like(a))
    return _equal(function(a - 2 * b), of_a - 2 * of_b + 2 * of_zero)


def _constant(vectors: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return vectors[..., None, None].expand(*vectors.shape, *size_hw)


def _stored(maps: Tensor, layout: Layout) -> Tensor:
    """Maps (B, C, h, w) as a network would store them; prefix tokens hold other numbers."""
    if layout.order == "nchw":
        return maps
    if layout.order == "nhwc":
        return maps.permute(0, 2, 3, 1)
    tokens = maps.flatten(2).transpose(1, 2)
    # Other numbers each time, so that a result that depends on them is noticed.
    name = "" if maps.is_meta else str(maps.amax().item())
    prefix = _random_numbers((len(maps), layout.prefix, maps.shape[1]), name).to(maps)
    return torch.cat((prefix, tokens), dim=1)


def _random_numbers(shape: tuple[int, ...], name: str = "") -> Tensor:
    """Random float64, the same for a name, that leave torch's own random state alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().amax() <= _TOLERANCE * a.abs().amax())
