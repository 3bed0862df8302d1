"""How a classifier computes logits from a feature map: found in its graph, proven by running it.

Names do not tell whether the logits are a linear layer of the *mean* of some feature map: there are
too many ways to write an average. So the operations after a candidate are run on a small random
feature map, with random numbers in place of the weights, and must give what a CAM network gives.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from operator import getitem
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from camtrain.model.cut import Operations
from camtrain.model.probe import Layout, evaluating

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
    """The steps from a feature map to the logits."""

    cut: str | None  # the layer that gives the feature map; None for the input of the graph
    layout: Layout  # how that map is stored
    # Kind and epsilon of a norm between the average and the linear layer.
    norm: tuple[NormKind, float] | None = None
    # (K, C) and (K,), with the norm's gain and bias folded in; None where the average is the logit.
    head: nn.Linear | None = None
    dropout: float = 0.0  # probability before the linear layer
    # The only size of the map for which this holds, where a fixed window is averaged.
    map_hw: tuple[int, int] | None = None


def find_readout(operations: Operations, *, may_be_input: bool = False) -> Readout | None:
    """The readout of a classifier, or None where its logits are not linear in an average.

    With ``may_be_input`` the graph may be that of a head alone, whose input is the feature map.
    """
    with evaluating(operations.network), torch.no_grad():
        random_weights: dict[str, Tensor] = {}
        for node in _backwards(operations):
            head = _HeadProbe(operations, node, random_weights)
            if head.is_more_than_head() or (node.op == "placeholder" and not may_be_input):
                return None
            if operations.is_average(operations.skip_reshapes(node)):
                continue  # a pixel is no map, though it is its own average
            layout_and_size = _averaging_layout(head)
            if layout_and_size is not None:
                return _readout(head, *layout_and_size)
    return None


def _backwards(operations: Operations) -> Iterator[fx.Node]:
    """The operations that the logits depend on, the last first."""
    needed = {operations.output()}
    for node in reversed(list(operations.graph.nodes)):
        if node in needed:
            needed.update(node.all_input_nodes)
            yield node


class _HeadProbe(fx.Interpreter):
    """Runs the operations of a network after one of them, in float64 and with random weights."""

    def __init__(self, operations: Operations, start: fx.Node, weights: dict[str, Tensor]) -> None:
        super().__init__(operations.network, garbage_collect_values=False, graph=operations.graph)
        self.operations, self.start, self.end = operations, start, operations.output()
        nodes = list(operations.graph.nodes)
        place = nodes.index(start)
        before, following = nodes[:place], nodes[place + 1 : nodes.index(self.end) + 1]
        # Layers that have weights.
        self.layers = {
            node: layer
            for node in following
            if (layer := operations.module(node)) is not None
            and any(True for _ in layer.parameters())
        }
        self.random, self.uses_random = weights, True
        self.device = torch.device("cpu")
        self.batch_sizes = [n for n in before if n.target == "size" and n.args[1:] == (0,)]
        self.shapes = [n for n in before if n.target is getattr and n.args[1] == "shape"]
        shape_items = [n for n in before if n.target is getitem and n.args[0] in self.shapes]
        self.nodes = [*shape_items, *following]

    def __call__(self, value: Tensor) -> Tensor:
        """The final result with ``value`` as the result of the first operation."""
        self.device = value.device
        self.env = {self.start: value.clone()}  # later operations may work in place
        # Networks often take the number of images from an earlier tensor.
        self.env |= {node: value.shape[0] for node in self.batch_sizes}
        self.env |= {node: value.shape[:1] for node in self.shapes}
        for node in self.nodes:
            if all(needed in self.env for needed in node.all_input_nodes):
                self.env[node] = self.run_node(node)
        result: Tensor = self.env[self.end]
        return result

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """The result of a layer with other weights."""
        module = self.operations.network.get_submodule(target)
        tensors = chain(module.named_parameters(), module.named_buffers())
        weights = {name: self._weights(f"{target}.{name}", tensor) for name, tensor in tensors}
        return torch.func.functional_call(module, weights, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """The result of a tensor's method; nothing leaves float64."""
        return args[0] if target == "float" else super().call_method(target, args, kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """The value that stands for a weight."""
        return self._weights(target, super().get_attr(target, args, kwargs))

    def _weights(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor that takes the place of a weight or a buffer."""
        if self.device.type == "meta":
            return tensor.to("meta")
        if not tensor.is_floating_point():  # indices, masks, counters
            return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.to("cpu")
        if not self.uses_random:
            return tensor.detach().to("cpu", torch.float64)
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
        layers = [self.operations.module(node) for node in self.nodes]
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
                head(_in_layout(torch.empty(3, channels, *hw, device="meta"), layout)).shape
                for hw in sizes
            }
            if len(shapes) > 1 or len(shapes.pop()) != 2:
                continue  # a flattened map, or no logits
            maps = _random_numbers(shape)
            result = head(_in_layout(maps, layout))
            mean_result = head(_in_layout(_constant_maps(maps.mean((-2, -1)), size_hw), layout))
        except Exception:  # a wrong guess can make anything raise
            continue
        if result.std(0).amax() > 0 and _equal(result, mean_result):
            return layout, size_hw
    return None


def _readout(head: _HeadProbe, layout: Layout, size_hw: tuple[int, int]) -> Readout | None:
    """The linear layer on the average, or on its norm; None where there is neither."""

    def logits_of(average: Tensor) -> Tensor:
        return head(_in_layout(_constant_maps(average, size_hw), layout))

    channels = head.channels()
    average = _random_numbers((5, channels))
    logits = logits_of(average)
    is_free = size_hw == _FREE_HW
    if is_free and not _equal(logits, head(_in_layout(_constant_maps(average, _OTHER_HW), layout))):
        return None  # a sum, which grows with the map
    is_input = head.start.op == "placeholder"
    cut = None if is_input else head.operations.names[head.start]
    readout = Readout(cut, layout, map_hw=None if is_free else size_hw)
    if _equal(logits, average):
        return readout if _comes_from_convolution(head) else None
    if _is_affine(logits_of, channels):
        return readout._replace(head=_linear(head, logits_of, channels), dropout=head.dropout())
    logits_of(average)
    norm_and_linear = _norm_and_linear(head, average)
    if norm_and_linear is None:
        return None
    norm, linear = norm_and_linear
    return readout._replace(norm=norm, head=linear, dropout=head.dropout())


def _comes_from_convolution(head: _HeadProbe) -> bool:
    """Whether a convolution makes the map: a trunk that ends in anything else is no classifier."""
    node = head.operations.skip_reshapes(head.start)
    while node.all_input_nodes and head.operations.is_layer(node, nn.ReLU, nn.Dropout):
        node = head.operations.before(node)
    return head.operations.is_layer(node, nn.Conv2d)


def _norm_and_linear(
    head: _HeadProbe, average: Tensor
) -> tuple[tuple[NormKind, float], nn.Linear] | None:
    """A norm of the average and the linear layer on it; ``head`` has just run on ``average``."""
    layers = ((node, head.operations.module(node)) for node in head.nodes)
    norms = ((n, layer) for n, layer in layers if isinstance(getattr(layer, "eps", None), float))
    node, layer = next(norms, (None, None))
    if node is None or layer is None:
        return None
    if not _equal(head.env[node.all_input_nodes[0]].flatten(1), average):
        return None  # other layers come between
    gain, shift = (t if t is None else t.flatten() for t in head.random_parameters(node))
    result, channels = head.env[node], average.shape[1:]
    eps: Any = layer.eps
    expected: dict[NormKind, Tensor] = {
        "layer": F.layer_norm(average, channels, gain, shift, eps),
        "rms": F.rms_norm(average, channels, gain, eps) + (0 if shift is None else shift),
    }
    kind = next((kind for kind, norm in expected.items() if _equal(result.flatten(1), norm)), None)
    after = _HeadProbe(head.operations, node, head.random)

    def logits_of(vectors: Tensor) -> Tensor:
        return after(vectors.view(-1, *result.shape[1:]))

    if kind is None or not _is_affine(logits_of, *channels):
        return None
    linear = _linear(after, logits_of, *channels)
    weight, bias = linear.weight.double(), linear.bias.double()
    if shift is not None:
        bias = bias + weight @ layer.get_parameter("bias").to(weight).flatten()
    if gain is not None:
        weight = weight * layer.get_parameter("weight").to(weight).flatten()
    return (kind, eps), as_linear(weight, bias)


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
                return as_linear(only.weight, only.bias)
    zeros = torch.zeros(1, channels, dtype=torch.float64, device="cpu")
    if any(tensor.is_meta for _, layer in layers for tensor in layer.parameters()):
        return nn.Linear(channels, logits_of(zeros).shape[1], device="meta")
    head.uses_random = False
    bias = logits_of(zeros)
    weight = logits_of(torch.eye(channels, dtype=torch.float64, device="cpu")) - bias
    return as_linear(weight.T, bias[0])


def as_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """The linear layer with the weight (K, C), or (K, C, 1, 1), and the bias (K,) or zeros."""
    weight = weight.flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    linear.weight = nn.Parameter(weight.detach().float())
    linear.bias = nn.Parameter(bias.detach().float())
    return linear


def _is_affine(function: Callable[[Tensor], Tensor], channels: int) -> bool:
    """Whether a function of vectors is a linear layer, tried on random vectors."""
    a, b = _random_numbers((2, 5, channels))
    value_a, value_b, value_zero = function(a), function(b), function(torch.zeros_like(a))
    return _equal(function(a - 2 * b), value_a - 2 * value_b + 2 * value_zero)


def _constant_maps(vectors: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) that hold the vectors (B, C) at every pixel."""
    return vectors[..., None, None].expand(*vectors.shape, *size_hw)


def _in_layout(maps: Tensor, layout: Layout) -> Tensor:
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
    """Whether both have the same shape and, to rounding, the same values."""
    return a.shape == b.shape and bool((a - b).abs().amax() <= _TOLERANCE * a.abs().amax())
