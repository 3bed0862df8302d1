"""The graph of a network, and the layers after which it can be cut off."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from camtrain.errors import CamtrainValueError, first_line
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
    """The operations of a network in one mode, and the name of each one's layer."""

    network: nn.Module
    graph: fx.Graph
    names: dict[fx.Node, str]
    asks_for_mode: bool  # whether they may be others in the other mode
    keeps_buffers: bool  # see `trace`

    def output(self) -> fx.Node:
        """The operation that makes the network's result."""
        (result,) = next(n for n in self.graph.nodes if n.op == "output").args
        while isinstance(result, (tuple, list)) and len(result) == 1:
            result = result[0]
        if not isinstance(result, fx.Node):
            raise CamtrainValueError(
                f"Expected a network that computes one tensor from its images, got {result!r}; "
                "wrap it in a module that returns its logits alone, or name the layer to cut after "
                "with cut=."
            )
        return result

    def before(self, node: fx.Node) -> fx.Node:
        """The operation whose result goes into ``node``."""
        return node.all_input_nodes[0]

    def inputs_of(self, node: fx.Node) -> list[fx.Node]:
        """The images, all operations that ``node`` depends on, and ``node`` itself, in order."""
        nodes = list(self.graph.nodes)
        needed, inputs = {node}, list[fx.Node]()
        for earlier in reversed(nodes[: nodes.index(node) + 1]):
            changed = earlier.all_input_nodes[:1] if self.is_in_place(earlier) else []
            if not needed.isdisjoint([earlier, *changed]) or earlier.op == "placeholder":
                inputs.insert(0, earlier)
                needed.update(earlier.all_input_nodes)
        return inputs

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

    def is_in_place(self, node: fx.Node) -> bool:
        """Whether ``node`` may write into its first input."""
        module = self.module(node)
        if module is not None or "inplace" in node.kwargs:
            return bool(node.kwargs.get("inplace") or getattr(module, "inplace", False))
        name = getattr(node.target, "__name__", str(node.target))
        return name == "setitem" or (name.endswith("_") and not name.endswith("__"))

    def is_class_token(self, node: fx.Node) -> bool:
        """Whether ``node`` takes the first token of (B, L, C)."""
        return _calls(node, "getitem") and node.args[1] == (slice(None), 0)


class _Tracer(NodePathTracer):  # type: ignore[misc]  # torchvision has no types
    """Traces a network as a function of its images alone: other arguments have their defaults."""

    def create_args_for_root(
        self,
        root_fn: Any,  # noqa: ANN401
        is_module: bool,
        concrete_args: object = None,
    ) -> tuple[Any, list[Any]]:
        """The function to trace, and what it is called with."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def create_arg(self, a: Any) -> Any:  # noqa: ANN401
        """As it is in the graph; of an object with logits, such as Hugging Face's, these."""
        logits = None if isinstance(a, fx.Proxy | nn.Module) else getattr(a, "logits", None)
        return super().create_arg(a if logits is None else logits)


def trace(network: nn.Module, *, training: bool = False, keeps_buffers: bool = False) -> Operations:
    """The graph of a network in one mode; raises NoGraphError where there is none.

    With ``keeps_buffers`` what is computed of buffers follows them. Without it becomes a constant:
    checkpoints of libraries' networks hold such constants by name.
    """
    tracer = _Tracer(leaf_modules=leaf_types(network))
    tracer.proxy_buffer_attributes = keeps_buffers
    asked: list[nn.Module] = []

    def mode_of(module: nn.Module) -> bool:
        asked.append(module)
        return bool(module.__dict__["training"])

    mode = property(mode_of, lambda module, value: module.__dict__.update(training=value))
    modes_before = [(module, module.training) for module in network.modules()]
    try:
        network.train(training)
        with patch.object(nn.Module, "training", mode, create=True), unchanged_caches(network):
            graph = tracer.trace(network)
    except Exception as error:  # tracing runs the network's code, which may raise anything
        raise NoGraphError(
            f"The forward pass of {type(network).__name__} cannot be read as a graph "
            f"({first_line(error)}); build the network with camtrain.create_model and its default "
            "cut."
        ) from error
    finally:
        for module, was_training in modes_before:
            module.training = was_training
    return Operations(network, graph, dict(tracer.node_to_qualname), bool(asked), keeps_buffers)


@contextmanager
def unchanged_caches(network: nn.Module) -> Iterator[None]:
    """Empty what modules put into dictionaries of theirs for a while.

    Tracing would leave its proxies there, which the next trace would take for its results.
    """
    dictionaries = [
        (attribute, dict(attribute))
        for module in network.modules()
        for name, attribute in vars(module).items()
        if type(attribute) is dict and not name.startswith("_")
    ]
    try:
        yield
    finally:
        for attribute, items in dictionaries:
            attribute.clear()
            attribute.update(items)


def graph_until(operations: Operations, cut: str) -> fx.Graph:
    """The operations up to the last one of the layer ``cut``, whose result is that of the graph."""
    names = operations.names
    last = next(
        node
        for node in reversed(operations.graph.nodes)
        if node in names and is_inside(names[node], cut)
    )
    graph = fx.Graph(tracer_cls=operations.graph._tracer_cls)
    copies: dict[fx.Node, fx.Node] = {}
    for node in operations.inputs_of(last):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[last])
    return graph


def default_cut(operations: Operations) -> str:
    """The name of the layer whose result the network averages, without a max pooling between.

    In a transformer that reads its class token, it is the layer that gives all tokens.
    """
    node = operations.output()
    while node.all_input_nodes and not (
        operations.is_average(node) or operations.is_class_token(node)
    ):
        node = operations.before(node)
    if not node.all_input_nodes:
        raise CamtrainValueError(
            f"{type(operations.network).__name__} does not average a feature map; name the layer "
            "to cut after with cut=."
        )
    node = operations.before(node)
    while operations.is_layer(node, nn.MaxPool2d):
        node = operations.before(node)
    return operations.names[node]


def cut_before_head(operations: Operations, in_chans: int, size_hw: tuple[int, int]) -> str:
    """The layer of the last feature map before what is fully connected, without the last pooling.

    Whatever it is made of: it is found by the shapes of all results. A convolution that gives the
    class scores, as in SqueezeNet, does not belong to the trunk.

    Raises:
        CamtrainValueError: There is no feature map.
    """
    node = output = operations.output()
    shapes = _shapes(operations, in_chans, size_hw)
    needed = operations.inputs_of(output)
    named = [n for n in needed if n in operations.names and n.op != "placeholder"]
    maps = [n for n in named if len(shape := shapes.get(n, ())) == 4 and max(shape[2:]) > 1]
    if not maps:
        raise CamtrainValueError(
            f"{type(operations.network).__name__} makes no feature map (B, C, h, w) before its "
            "output; name the layer to cut after with cut=."
        )
    node = maps[-1]
    following = set(needed) - set(operations.inputs_of(node))
    if node is not output and not any(_has_weights(operations, n) for n in following):
        node = _before_scores(operations, node)
    while node.all_input_nodes and operations.before(node) in maps:
        if not _is_pooling(operations, node) and operations.skip_reshapes(node) is node:
            break
        node = operations.before(node)
    return operations.names[node]


def _before_scores(operations: Operations, node: fx.Node) -> fx.Node:
    """What goes into the 1x1 convolution that makes the class scores ``node``; else ``node``."""
    conv = node
    while len(conv.all_input_nodes) == 1 and not _has_weights(operations, conv):
        conv = operations.before(conv)
    module = operations.module(conv)
    is_score = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    return operations.before(conv) if is_score else node


def _has_weights(operations: Operations, node: fx.Node) -> bool:
    module = operations.module(node)
    return node.op == "get_attr" or (module is not None and any(True for _ in module.parameters()))


def _is_pooling(operations: Operations, node: fx.Node) -> bool:
    module = operations.module(node)
    name = str(getattr(node.target, "__name__", "")) if module is None else type(module).__name__
    return "pool" in name.lower()


def _shapes(
    operations: Operations, in_chans: int, size_hw: tuple[int, int]
) -> dict[fx.Node, tuple[int, ...]]:
    """Shapes of the results, up to an operation that fails: a linear layer may fix the size."""
    network = copy.deepcopy(operations.network).to("meta")
    interpreter = fx.Interpreter(network, garbage_collect_values=False, graph=operations.graph)
    results: dict[fx.Node, Any] = interpreter.env
    with evaluating(network), torch.no_grad(), torch.device("meta"), suppress(Exception):
        for node in operations.graph.nodes:
            is_input = node.op == "placeholder"
            images = torch.empty(1, in_chans, *size_hw)
            results[node] = images if is_input else interpreter.run_node(node)
    return {node: tuple(r.shape) for node, r in results.items() if isinstance(r, Tensor)}


def check_cut(operations: Operations, cut: str, in_chans: int, size_hw: tuple[int, int]) -> None:
    """Raise CamtrainValueError with a list of the blocks where no layer has the name ``cut``."""
    if any(is_inside(name, cut) for name in operations.names.values()):
        return
    network = operations.network
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
