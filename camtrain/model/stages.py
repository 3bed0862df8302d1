"""The stages of a trunk that affinity refinement compares places by, and how they are run.

They are found in the graph of the trunk, not by names: at five, six and seven eighths of the way,
counted in convolutions and linear layers, where blocks end and everything that comes later passes
through. Earlier ones tell colours and textures apart and not things, later ones are too alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from camtrain.errors import CamtrainValueError
from camtrain.model.cut import block_of, leaf_types
from camtrain.model.layout import Layout, find_layout, last_of
from camtrain.model.probe import evaluating
from camtrain.model.trunk import Backbone, GraphBackbone, TimmBackbone, TimmBlocks

_PARTS = (5 / 8, 6 / 8, 7 / 8)
_MOST_EARLIER = 1 / 8  # than the first of them
_LARGEST_BLOCK = 1 / 4

Run = Callable[[nn.Module, Tensor], tuple[object, Sequence[object]]]


class Stages(NamedTuple):
    """Layers of a trunk and how their results are stored.

    Attributes:
        layers: Their names.
        layouts: One each.
        channels: One number each.
    """

    layers: tuple[str, ...]
    layouts: tuple[Layout, ...]
    channels: tuple[int, ...]


# What runs a trunk is made of its graph when it is first needed; it is no part of its state.
_RUNS: WeakKeyDictionary[nn.Module, tuple[tuple[str, ...], Run]] = WeakKeyDictionary()


def find_stages(
    backbone: nn.Module, in_chans: int, size_hw: tuple[int, int], layers: Sequence[str] | None
) -> Stages:
    """The stages of a backbone, see the module.

    Args:
        backbone: Of a ``CAMNet``.
        in_chans: Channels of the images.
        size_hw: (H, W) of the images it is built for.
        layers: Their names as ``cut`` takes them; None for the usual ones.

    Raises:
        CamtrainValueError: It has no such layer, or one gives no feature map.
    """
    reader = _reader_of(backbone)
    if layers is not None:
        reader.check(layers)
        results = _results(backbone, reader, layers, in_chans, size_hw)
        lost = [name for name in layers if name not in results]
        if lost:
            raise CamtrainValueError(
                f"refine_layers must name layers that give feature maps, got {lost} among them."
            )
    else:
        ends = reader.ends()
        results = _results(backbone, reader, list(ends), in_chans, size_hw)
        usable = [n for n in ends if n in results and _PARTS[0] - _MOST_EARLIER <= ends[n]]
        nearest = [min(usable, key=lambda n: abs(ends[n] - part), default="") for part in _PARTS]
        results = {name: results[name] for name in dict.fromkeys(nearest) if name}
        if not results:
            raise CamtrainValueError(
                f"{_name(_trunk(backbone))} has no stage by which refinement could compare places; "
                "name layers that give feature maps with refine_layers=."
            )
    layouts, channels = zip(*results.values(), strict=True)
    return Stages(tuple(results), layouts, channels)


def reads_convolutions(backbone: nn.Module, stages: Stages) -> bool:
    """Whether a stage is a convolution itself, whose result a norm folded into it would change."""
    trunk = _trunk(backbone)
    return any(isinstance(trunk.get_submodule(name), nn.Conv2d) for name in stages.layers)


def run_with_stages(
    backbone: nn.Module, stages: Stages, images: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """What a backbone makes of images, and what its stages have made on the way.

    Args:
        backbone: In evaluation mode.
        stages: Of ``find_stages``.
        images: (B, in_chans, H, W).

    Returns:
        Features (B, C, h, w), equal to ``backbone(images)``, and the stages (B, C_i, h_i, w_i).
    """
    known = _RUNS.get(backbone)
    if known is None or known[0] != stages.layers:
        known = stages.layers, _reader_of(backbone).run(stages.layers)
        _RUNS[backbone] = known
    image_hw = (images.shape[2], images.shape[3])
    kept: list[object] = []

    def run(pictures: Tensor) -> object:
        features, found = known[1](_trunk(backbone), pictures)
        kept.extend(found)
        return features

    features = backbone.features_by(run, images) if isinstance(backbone, Backbone) else run(images)
    maps = [
        layout.to_map(stage, image_hw) for layout, stage in zip(stages.layouts, kept, strict=True)
    ]
    return last_of(features), maps


class _Graph:
    """A trunk whose forward pass is a graph."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        self.network, self.graph = network, graph
        self.nodes = list(graph.nodes)
        self._paths = [str(n.target) if n.op == "call_module" else "" for n in self.nodes]
        counted = [_matrices(network.get_submodule(path)) if path else 0 for path in self._paths]
        self._counts = list(accumulate(counted))
        self._widest = self._passed_by_all()

    def ends(self) -> dict[str, float]:
        """How far along the trunk its blocks end, in (0, 1), those that everything passes."""
        total = self._counts[-1]
        names: dict[int, str] = {}
        for name in self._blocks():
            end = self._end(name)
            if end in self._widest and 0 < self._counts[end] < total:
                names[self._counts[end]] = name  # with nothing counted in between, the last
        return {name: count / total for count, name in names.items()}

    def check(self, names: Sequence[str]) -> None:
        missing = [n for n in names if not any(_is_in(path, n) for path in self._paths)]
        if missing or not names:
            blocks = ", ".join(dict.fromkeys(block_of(path) for path in self._paths if path))
            raise CamtrainValueError(
                f"refine_layers must name layers before the cut, got {list(names)}; the blocks "
                f"are: {blocks}."
            )

    def run(self, names: Sequence[str]) -> Run:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(self.graph, copies)
        *_, output = self.nodes
        features = fx.node.map_arg(output.args[0], copies.__getitem__)
        features = features["features"] if isinstance(features, dict) else features
        found = [self._as_it_is(graph, self.nodes[self._end(name)], copies) for name in names]
        graph.output((features, found))
        code = graph.python_code("self")
        scope: dict[str, Any] = dict(code.globals)
        exec(code.src, scope)
        return cast("Run", scope["forward"])

    def _as_it_is(self, graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> fx.Node:
        """The result of an operation, before what follows works on it in place."""
        layers = [
            self.network.get_submodule(str(user.target))
            for user in node.users
            if user.op == "call_module"
        ]
        if not any(getattr(layer, "inplace", False) for layer in layers):
            return copies[node]
        with graph.inserting_after(copies[node]):
            return graph.call_method("clone", (copies[node],))

    def _blocks(self) -> list[str]:
        """The largest modules with at most a quarter of the layers, in the order of their ends."""
        total, names = self._counts[-1], dict[str, None]()
        for path in filter(None, self._paths):
            parts = path.split(".")
            prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
            chosen = next((p for p in prefixes if self._size(p) <= _LARGEST_BLOCK * total), path)
            names[chosen] = None
        return list(names)

    def _size(self, name: str) -> int:
        inside = [i for i, path in enumerate(self._paths) if _is_in(path, name)]
        before = self._counts[inside[0] - 1] if inside[0] else 0
        return int(self._counts[inside[-1]] - before)

    def _end(self, name: str) -> int:
        """The operation that gives the result of a module, such as a sum after its last layer."""
        last = end = max(i for i, path in enumerate(self._paths) if _is_in(path, name))
        while self.nodes[end + 1].op in ("call_function", "call_method", "get_attr"):
            end += 1
        # The first: what comes after it may belong to the next module.
        return min((i for i in range(last, end + 1) if i in self._widest), default=last)

    def _passed_by_all(self) -> set[int]:
        """Operations whose result all that comes later is made of, and nothing earlier."""
        place = {node: index for index, node in enumerate(self.nodes)}
        last_use = {n: max((place[user] for user in n.users), default=0) for n in self.nodes}
        found, reach, plain = set(), 0, set[fx.Node]()
        for index, node in enumerate(self.nodes):
            inputs = node.all_input_nodes
            is_option = node.op == "placeholder" and index > 0
            is_size = node.target in ("size", "dim", getattr)
            if is_option or is_size or (inputs and plain.issuperset(inputs)):
                plain.add(node)  # what is computed from sizes is no way for the pictures
                continue
            if reach <= index and node.op.startswith("call"):
                found.add(index)
            if node.op != "get_attr":
                reach = max(reach, last_use[node])
        return found


class _Listed:
    """A timm trunk that is no graph, but that gives the results of the blocks that it lists."""

    def __init__(self, network: nn.Module, cut: int | None) -> None:
        listed: Any = getattr(network, "feature_info", ())
        self.kind, self.cut = _name(network), cut
        self.names = [str(info["module"]) for info in listed][: None if cut is None else cut + 1]

    def ends(self) -> dict[str, float]:
        """How far along the trunk its blocks end, in (0, 1)."""
        total = len(self.names)
        return {name: place / total for place, name in enumerate(self.names[:-1], start=1)}

    def check(self, names: Sequence[str]) -> None:
        missing = [name for name in names if name not in self.names]
        if missing or not names:
            raise CamtrainValueError(
                f"refine_layers must name blocks of {self.kind}, whose forward pass "
                f"cannot be read as a graph, got {list(names)}; its blocks are: "
                f"{', '.join(self.names)}."
            )

    def run(self, names: Sequence[str]) -> Run:
        indices, cut = [self.names.index(name) for name in names], self.cut

        def run(trunk: nn.Module, images: Tensor) -> tuple[object, Sequence[object]]:
            intermediates = cast("Callable[..., Any]", trunk.forward_intermediates)
            if cut is None:
                features, found = intermediates(images, indices=sorted(set(indices)))
            else:
                wanted = sorted({*indices, cut})
                found = intermediates(
                    images, indices=wanted, intermediates_only=True, stop_early=True
                )
                features = found[-1]
            by_index = dict(zip(sorted({*indices}), found, strict=False))
            return features, [by_index[index] for index in indices]

        return run


def _reader_of(backbone: nn.Module) -> _Graph | _Listed:
    if isinstance(backbone, GraphBackbone):
        return _Graph(backbone.trunk, cast("fx.Graph", backbone.trunk.eval_graph))
    network = _trunk(backbone)
    if isinstance(backbone, TimmBlocks):
        return _Listed(network, backbone.index)
    tracer = NodePathTracer(leaf_modules=leaf_types(network))
    tracer.proxy_buffer_attributes = True  # else they would become constants, which never move
    if isinstance(backbone, TimmBackbone):
        tracer.traced_func_name = "forward_features"
    try:
        with evaluating(network):
            graph = tracer.trace(network)
        _refuse_constants(network, graph)
        return _Graph(network, graph)
    except Exception as error:  # what somebody's code raises under tracing cannot be known
        if not hasattr(network, "forward_intermediates"):
            raise CamtrainValueError(
                f"The forward pass of {_name(network)} cannot be read as a graph ({error}), and it "
                "lists no stages, so that its maps cannot be refined; choose refine none."
            ) from error
        return _Listed(network, None)


def _refuse_constants(network: nn.Module, graph: fx.Graph) -> None:
    """Take away what tracing has left on a network; who needs it is no graph of weights alone."""
    constants = {str(n.target) for n in graph.nodes if "_tensor_constant" in str(n.target)}
    for name in constants:
        delattr(network, name)
    if constants:
        raise CamtrainValueError("it computes with tensors that are neither weights nor buffers")


def _trunk(backbone: nn.Module) -> nn.Module:
    return backbone.trunk if isinstance(backbone, Backbone) else backbone


def _results(
    backbone: nn.Module,
    reader: _Graph | _Listed,
    names: Sequence[str],
    in_chans: int,
    size_hw: tuple[int, int],
) -> dict[str, tuple[Layout, int]]:
    """How the results of those layers that give maps are stored, and their channels."""
    run, network = reader.run(names), _trunk(backbone)
    weight = next(network.parameters(), torch.zeros(0))
    images = torch.zeros(1, in_chans, *size_hw, dtype=weight.dtype, device=weight.device)
    with evaluating(network), torch.no_grad():
        found = run(network, images)[1]
    results = {}
    for name, result in zip(names, found, strict=True):
        if isinstance(result, Tensor):
            with suppress(CamtrainValueError):
                layout = find_layout(result.shape, size_hw)
                results[name] = layout, layout.to_map(result, size_hw).shape[1]
    return results


def _matrices(layer: nn.Module) -> int:
    """How many convolutions and matrices a layer holds."""
    return sum(parameter.ndim > 1 for parameter in layer.parameters())


def _is_in(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def _name(network: nn.Module) -> str:
    return type(network).__name__
