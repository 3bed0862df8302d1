"""The graph of a network, and the layers after which it can be cut off."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from camtrain.errors import CamtrainValueError
from camtrain.model.probe import evaluating, is_leaf, map_hw_of, probe

# The cut where it is not what `default_cut` finds: the paper's, or before a layer of class scores.
CUTS = {
    "torchvision/googlenet": "inception4e",
    "torchvision/squeezenet1_0": "features",
    "torchvision/squeezenet1_1": "features",
    # Its forward_features ends in the class token.
    **{
        f"timm/pit_{size}{distilled}_224": "transformers.2.reshape"
        for size in ("b", "s", "ti", "xs")
        for distilled in ("", "_distilled")
    },
}
_CHANGES_NOTHING = (nn.Flatten, nn.Dropout, nn.Identity)


class NoGraphError(CamtrainValueError):
    """The forward pass of a network branches on the values of its input."""


class Operations(NamedTuple):
    """The operations of a network in evaluation mode, and the name of each one's layer."""

    network: nn.Module
    graph: fx.Graph
    names: dict[fx.Node, str]

    def output(self) -> fx.Node:
        """The operation that makes the network's result."""
        (result,) = next(n for n in self.graph.nodes if n.op == "output").args
        while isinstance(result, (tuple, list)) and len(result) == 1:
            result = result[0]
        if not isinstance(result, fx.Node):
            raise CamtrainValueError(
                f"Expected a network that computes one tensor from its images, got {result!r}."
            )
        return result

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


def trace(network: nn.Module) -> Operations:
    """The graph of a network in evaluation mode; raises NoGraphError where there is none."""
    tracer = NodePathTracer(leaf_modules=leaf_types(network))
    with evaluating(network), of_images_alone(network):
        try:
            graph = tracer.trace(network)
        except Exception as error:  # tracing runs the network's code, which may raise anything
            raise NoGraphError(
                f"The forward pass of {type(network).__name__} cannot be read as a graph "
                f"({error}); build the network with camtrain.create_model and its default cut."
            ) from error
    return Operations(network, graph, dict(tracer.node_to_qualname))


@contextmanager
def of_images_alone(network: nn.Module) -> Iterator[None]:
    """Give a network a forward pass of images alone: its other arguments keep their defaults.

    A tracer would take them for values that are given, and trace other branches.
    """
    kind = type(network)
    further = list(inspect.signature(kind.forward).parameters.values())[2:]
    if further and all(p.default is not p.empty for p in further):

        def forward(self: Any, images: Any) -> Any:  # noqa: ANN401
            return kind.forward(self, images)

        body = {"forward": forward, "__module__": kind.__module__}
        network.__class__ = type(kind.__name__, (kind,), body)
    try:
        yield
    finally:
        network.__class__ = kind


def default_cut(network: nn.Module) -> str:
    """The name of the layer whose result the network averages, without a max pooling between.

    In a transformer that reads its class token, it is the layer that gives all tokens.
    """
    operations = trace(network)
    node = operations.output()
    while node.all_input_nodes and not (
        operations.is_average(node) or operations.is_class_token(node)
    ):
        node = operations.before(node)
    if not node.all_input_nodes:
        raise CamtrainValueError(
            f"{type(network).__name__} does not average a feature map; name the layer to "
            "cut after with cut=."
        )
    node = operations.before(node)
    while operations.is_layer(node, nn.MaxPool2d):
        node = operations.before(node)
    return operations.names[node]


def check_cut(network: nn.Module, cut: str, in_chans: int, size_hw: tuple[int, int]) -> None:
    """Raise CamtrainValueError with a list of the blocks where no layer has the name ``cut``."""
    if any(is_inside(name, cut) for name in trace(network).names.values()):
        return
    layers = probe(network, in_chans, size_hw).layers
    maps = [(layer.name, map_hw_of(layer.out_shape, size_hw)) for layer in layers]
    blocks = {block_of(name): size_hw[0] // hw[0] for name, hw in maps if hw is not None}
    block_list = ", ".join(f"{name} (stride {stride})" for name, stride in blocks.items())
    suggestions = difflib.get_close_matches(cut, [layer.name for layer in layers], n=3)
    hint = f" Did you mean {' or '.join(suggestions)}?" if suggestions else ""
    raise CamtrainValueError(
        f"cut must name a layer of {type(network).__name__}, got {cut!r}.{hint} Its blocks are: "
        f"{block_list}."
    )


def leaf_types(network: nn.Module) -> list[type[nn.Module]]:
    """The types of layers that are one operation of the graph."""
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


def is_inside(path: str, name: str) -> bool:
    """Whether a layer is the one of this name, or a part of it."""
    return path == name or path.startswith(f"{name}.")


def block_of(layer_name: str) -> str:
    """The block that a layer belongs to.

    Example:
        >>> block_of("layer3.0.conv1"), block_of("features.17.conv.2")
        ('layer3', 'features.17')
    """
    parts = layer_name.split(".")
    end = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: end + 1] if parts[0] in ("features", "blocks", "stages") else parts[:1])


def _calls(node: fx.Node, *names: str) -> bool:
    """Whether an operation calls one of these functions or methods."""
    if node.op == "call_method":
        return node.target in names
    return node.op == "call_function" and getattr(node.target, "__name__", "") in names
