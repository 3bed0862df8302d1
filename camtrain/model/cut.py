"""Cutting a network: its graph, the trunk up to one of its layers, and the trunk's shapes."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from camtrain.errors import CamtrainValueError
from camtrain.model.layout import map_hw_of
from camtrain.model.probe import evaluating, is_leaf, probe

_CHANGES_NOTHING = (nn.Flatten, nn.Dropout, nn.Identity)


class NoGraphError(CamtrainValueError):
    """The forward pass of a network branches on the values of its input."""


class TracedGraph(NamedTuple):
    """The operations of a network in evaluation mode, and the layer each one belongs to."""

    network: nn.Module
    graph: fx.Graph
    names: dict[fx.Node, str]

    def output(self) -> fx.Node:
        """The operation that makes the network's result."""
        (result,) = next(n for n in self.graph.nodes if n.op == "output").args
        return _first(result)

    def before(self, node: fx.Node) -> fx.Node:
        """The operation whose result goes into ``node``."""
        return node.all_input_nodes[0]

    def module(self, node: fx.Node) -> nn.Module | None:
        """The layer that ``node`` calls, or None for a function."""
        return self.network.get_submodule(str(node.target)) if node.op == "call_module" else None

    def is_layer(self, node: fx.Node, *kinds: type[nn.Module]) -> bool:
        """Whether ``node`` calls a layer of one of these types."""
        return isinstance(self.module(node), kinds)

    def skip_reshapes(self, node: fx.Node) -> fx.Node:
        """The nearest operation, from ``node`` backwards, that is no reshape and no dropout."""
        while node.all_input_nodes and (
            self.is_layer(node, *_CHANGES_NOTHING)
            or _calls(node, "flatten", "view", "reshape", "squeeze", "dropout")
        ):
            node = self.before(node)
        return node

    def is_average(self, node: fx.Node) -> bool:
        """Whether ``node`` averages over space, to one pixel or to a few."""
        if self.is_layer(node, nn.AdaptiveAvgPool2d) or _calls(node, "adaptive_avg_pool2d"):
            return True
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        return _calls(node, "mean") and dims in ([2, 3], (2, 3), [-2, -1], (-2, -1))

    def is_class_token(self, node: fx.Node) -> bool:
        """Whether ``node`` takes the first token of (B, L, C)."""
        return _calls(node, "getitem") and node.args[1] == (slice(None), 0)


def trace(network: nn.Module) -> TracedGraph:
    """The graph of a network in evaluation mode.

    Raises:
        NoGraphError: The forward pass branches on the values of its input, so it has no one graph.
    """
    tracer = NodePathTracer(leaf_modules=leaf_types(network))
    with evaluating(network):
        try:
            graph = tracer.trace(network)
        except Exception as error:  # what user code raises under tracing cannot be known
            raise NoGraphError(
                f"The forward pass of {type(network).__name__} cannot be read as a graph "
                f"({error}); build the network with camtrain.create_model and its default cut."
            ) from error
    return TracedGraph(network, graph, dict(tracer.node_to_qualname))


def default_cut(traced: TracedGraph) -> str:
    """The last features: what the network averages, before a trailing max pooling.

    In a transformer that reads its class token they are all tokens.
    """
    node = traced.output()
    while node.all_input_nodes and not (traced.is_average(node) or traced.is_class_token(node)):
        node = traced.before(node)
    if not node.all_input_nodes:
        raise CamtrainValueError(
            f"{type(traced.network).__name__} does not average a feature map; name the layer to "
            "cut after with cut=."
        )
    node = traced.before(node)
    while traced.is_layer(node, nn.MaxPool2d):
        node = traced.before(node)
    return traced.names[node]


def check_cut(network: nn.Module, cut: str, in_chans: int, size_hw: tuple[int, int]) -> None:
    """Refuse a cut that the network does not have, and list those it has.

    Raises:
        CamtrainValueError: No layer of that name gives a feature map.
    """
    names = set(trace(network).names.values())
    if any(name == cut or name.startswith(f"{cut}.") for name in names):
        return
    layers = probe(network, in_chans, size_hw).layers
    found = [(layer.name, map_hw_of(layer.out_shape, size_hw)) for layer in layers]
    blocks = {block_of(name): size_hw[0] // hw[0] for name, hw in found if hw is not None}
    listed = ", ".join(f"{name} (stride {stride})" for name, stride in blocks.items())
    near = difflib.get_close_matches(cut, [layer.name for layer in layers], n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise CamtrainValueError(
        f"cut must name a layer of {type(network).__name__}, got {cut!r}.{hint} Its blocks are: "
        f"{listed}."
    )


def leaf_types(network: nn.Module) -> list[type[nn.Module]]:
    """The layers that are not looked into when a network is traced."""
    # torchvision's extractor never looks into torchvision.ops, so neither may `trace`. An empty
    # nn.Sequential (the usual identity shortcut) must not make leaves of those with layers.
    return list(
        {
            type(module)
            for module in network.modules()
            if (is_leaf(module) and not isinstance(module, nn.Sequential))
            or type(module).__module__.startswith("torchvision.ops")
        }
    )


def _first(value: object) -> fx.Node:
    while isinstance(value, (tuple, list)) and len(value) == 1:
        value = value[0]
    if not isinstance(value, fx.Node):
        raise CamtrainValueError(
            f"Expected a network that computes one tensor from its images, got {value!r}."
        )
    return value


def _calls(node: fx.Node, *names: str) -> bool:
    if node.op == "call_method":
        return node.target in names
    return node.op == "call_function" and getattr(node.target, "__name__", "") in names


def block_of(layer_name: str) -> str:
    """``layer3`` of ``layer3.0.conv1``, ``features.17`` of ``features.17.conv.2``."""
    parts = layer_name.split(".")
    end = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: end + 1] if parts[0] in ("features", "blocks", "stages") else parts[:1])
