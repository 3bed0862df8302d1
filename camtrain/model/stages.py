"""The stages of a trunk, layers by whose results affinity refinement compares places.

They are found in the graph of the trunk, not by names: at five, six and seven eighths of the way,
counted in convolutions and linear layers, at the ends of blocks through which all later results
pass. Earlier ones tell colours and textures apart and not things, later ones are too alike.
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
from camtrain.model.cut import block_of, is_inside, leaf_types
from camtrain.model.layout import Layout, find_layout, last_of
from camtrain.model.probe import evaluating
from camtrain.model.trunk import Backbone, GraphBackbone, TimmBackbone, TimmBlocks

_PARTS = (5 / 8, 6 / 8, 7 / 8)
_MOST_EARLIER = 1 / 8  # than the first of them
_LARGEST_BLOCK = 1 / 4

# A function of trunk and images that gives the features and the results of chosen layers.
Run = Callable[[nn.Module, Tensor], tuple[object, Sequence[object]]]


class Stages(NamedTuple):
    """Layers of a trunk, and the layout and the channels of their results."""

    layers: tuple[str, ...]
    layouts: tuple[Layout, ...]
    channels: tuple[int, ...]


# A run is made from the trunk's graph when it is first needed; it is no part of the trunk's state.
_RUNS: WeakKeyDictionary[nn.Module, tuple[tuple[str, ...], Run]] = WeakKeyDictionary()


def find_stages(
    backbone: nn.Module, in_chans: int, size_hw: tuple[int, int], layers: Sequence[str] | None
) -> Stages:
    """The stages of a backbone, as this module chooses them or by name.

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
        maps = _maps_of(backbone, reader, layers, in_chans, size_hw)
        without_map = [name for name in layers if name not in maps]
        if without_map:
            raise CamtrainValueError(
                "refine_layers must name layers that give feature maps, got "
                f"{without_map} among them."
            )
    else:
        ends = reader.ends()
        maps = _maps_of(backbone, reader, list(ends), in_chans, size_hw)
        usable = [n for n in ends if n in maps and _PARTS[0] - _MOST_EARLIER <= ends[n]]
        nearest = [min(usable, key=lambda n: abs(ends[n] - part), default="") for part in _PARTS]
        maps = {name: maps[name] for name in dict.fromkeys(nearest) if name}
        if not maps:
            raise CamtrainValueError(
                f"{type(_trunk(backbone)).__name__} has no stage by which refinement could compare "
                "places; name layers that give feature maps with refine_layers=."
            )
    layouts, channels = zip(*maps.values(), strict=True)
    return Stages(tuple(maps), layouts, channels)


def reads_convolutions(backbone: nn.Module, stages: Stages) -> bool:
    """Whether a stage is a convolution itself, whose result a norm folded into it would change."""
    trunk = _trunk(backbone)
    return any(isinstance(trunk.get_submodule(name), nn.Conv2d) for name in stages.layers)


def run_with_stages(
    backbone: nn.Module, stages: Stages, images: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The features of a backbone and the results of its stages, from one forward pass.

    Args:
        backbone: In evaluation mode.
        stages: Of ``find_stages``.
        images: (B, in_chans, H, W).

    Returns:
        Features (B, C, h, w), equal to ``backbone(images)``, and the stages (B, C_i, h_i, w_i).
    """
    layers, run = _RUNS.get(backbone, (None, None))
    if run is None or layers != stages.layers:
        run = _reader_of(backbone).run(stages.layers)
        _RUNS[backbone] = stages.layers, run
    results: list[object] = []

    def features_of(images: Tensor) -> object:
        features, of_layers = run(_trunk(backbone), images)
        results.extend(of_layers)
        return features

    if isinstance(backbone, Backbone):
        features = backbone.features_by(features_of, images)
    else:
        features = last_of(features_of(images))
    image_hw = (images.shape[2], images.shape[3])
    pairs = zip(stages.layouts, results, strict=True)
    return features, [layout.to_map(result, image_hw) for layout, result in pairs]


class _GraphReader:
    """Finds and runs the layers of a trunk whose forward pass is a graph."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        self.network, self.graph = network, graph
        self.nodes = list(graph.nodes)
        self._paths = [str(n.target) if n.op == "call_module" else "" for n in self.nodes]
        layers = [network.get_submodule(path) if path else None for path in self._paths]
        # Convolutions and matrices up to each operation.
        self._counts = list(
            accumulate(
                sum(p.ndim > 1 for p in layer.parameters()) if layer else 0 for layer in layers
            )
        )
        self._bottlenecks = self._find_bottlenecks()

    def ends(self) -> dict[str, float]:
        """How far along the trunk its blocks end, in (0, 1), those that all later results use."""
        total = self._counts[-1]
        names: dict[int, str] = {}
        for name in self._blocks():
            end = self._end(name)
            if end in self._bottlenecks and 0 < self._counts[end] < total:
                names[self._counts[end]] = name  # of several with the same count the last
        return {name: count / total for count, name in names.items()}

    def check(self, names: Sequence[str]) -> None:
        missing = [n for n in names if not any(is_inside(path, n) for path in self._paths)]
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
        features = fx.node.map_arg(self.nodes[-1].args[0], copies.__getitem__)
        features = features["features"] if isinstance(features, dict) else features
        results = [self._unchanged(graph, self.nodes[self._end(name)], copies) for name in names]
        graph.output((features, results))
        code = graph.python_code("self")
        scope: dict[str, Any] = dict(code.globals)
        exec(code.src, scope)
        return cast("Run", scope["forward"])

    def _unchanged(self, graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> fx.Node:
        """The result of an operation before the next layer changes it in place."""
        paths = [str(user.target) for user in node.users if user.op == "call_module"]
        if not any(getattr(self.network.get_submodule(path), "inplace", False) for path in paths):
            return copies[node]
        with graph.inserting_after(copies[node]):
            return graph.call_method("clone", (copies[node],))

    def _blocks(self) -> list[str]:
        """The largest modules with at most a quarter of the layers, in the order of their ends."""
        total, names = self._counts[-1], dict[str, None]()
        for path in filter(None, self._paths):
            parts = path.split(".")
            prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
            name = next((p for p in prefixes if self._size(p) <= _LARGEST_BLOCK * total), path)
            names[name] = None
        return list(names)

    def _size(self, name: str) -> int:
        inside = self._indices(name)
        before = self._counts[inside[0] - 1] if inside[0] else 0
        return int(self._counts[inside[-1]] - before)

    def _indices(self, name: str) -> list[int]:
        return [i for i, path in enumerate(self._paths) if is_inside(path, name)]

    def _end(self, name: str) -> int:
        """The operation that gives the result of a module, such as a sum after its last layer."""
        last = end = self._indices(name)[-1]
        while self.nodes[end + 1].op in ("call_function", "call_method", "get_attr"):
            end += 1
        # The first bottleneck: a later one may belong to the next module.
        return min((i for i in range(last, end + 1) if i in self._bottlenecks), default=last)

    def _find_bottlenecks(self) -> set[int]:
        """The operations whose result is the only one that later operations use."""
        place = {node: index for index, node in enumerate(self.nodes)}
        last_use = {n: max((place[user] for user in n.users), default=0) for n in self.nodes}
        bottlenecks, reach, sizes = set[int](), 0, set[fx.Node]()
        for index, node in enumerate(self.nodes):
            inputs = node.all_input_nodes
            is_option = node.op == "placeholder" and index > 0
            is_size = node.target in ("size", "dim", getattr)
            if is_option or is_size or (inputs and sizes.issuperset(inputs)):
                sizes.add(node)  # numbers computed from sizes carry nothing of the images
                continue
            if reach <= index and node.op.startswith("call"):
                bottlenecks.add(index)
            if node.op != "get_attr":
                reach = max(reach, last_use[node])
        return bottlenecks


class _BlockReader:
    """Runs the blocks that a timm trunk lists, where its forward pass is no graph."""

    def __init__(self, network: nn.Module, cut: int | None) -> None:
        listed: Any = getattr(network, "feature_info", ())
        self.kind, self.cut = type(network).__name__, cut
        self.names = [str(info["module"]) for info in listed][: None if cut is None else cut + 1]

    def ends(self) -> dict[str, float]:
        """How far along the trunk its blocks end, in (0, 1)."""
        total = len(self.names)
        return {name: place / total for place, name in enumerate(self.names[:-1], start=1)}

    def check(self, names: Sequence[str]) -> None:
        if not names or not set(names) <= set(self.names):
            raise CamtrainValueError(
                f"refine_layers must name blocks of {self.kind}, whose forward pass "
                f"cannot be read as a graph, got {list(names)}; its blocks are: "
                f"{', '.join(self.names)}."
            )

    def run(self, names: Sequence[str]) -> Run:
        indices, cut = [self.names.index(name) for name in names], self.cut
        every = sorted({*indices, *(() if cut is None else (cut,))})

        def run(trunk: nn.Module, images: Tensor) -> tuple[object, Sequence[object]]:
            intermediates = cast("Callable[..., Any]", trunk.forward_intermediates)
            if cut is None:
                features, results = intermediates(images, indices=every)
            else:
                results = intermediates(
                    images, indices=every, intermediates_only=True, stop_early=True
                )
                features = results[-1]
            by_index = dict(zip(every, results, strict=True))
            return features, [by_index[index] for index in indices]

        return run


def _reader_of(backbone: nn.Module) -> _GraphReader | _BlockReader:
    if isinstance(backbone, GraphBackbone):
        return _GraphReader(backbone.trunk, cast("fx.Graph", backbone.trunk.eval_graph))
    network = _trunk(backbone)
    if isinstance(backbone, TimmBlocks):
        return _BlockReader(network, backbone.index)
    tracer = NodePathTracer(leaf_modules=leaf_types(network))
    tracer.proxy_buffer_attributes = True  # else they would become constants, which never move
    if isinstance(backbone, TimmBackbone):
        tracer.traced_func_name = "forward_features"
    try:
        with evaluating(network):
            graph = tracer.trace(network)
        _refuse_constants(network, graph)
        return _GraphReader(network, graph)
    except Exception as error:  # tracing runs the network's code, which may raise anything
        if not hasattr(network, "forward_intermediates"):
            raise CamtrainValueError(
                f"The forward pass of {type(network).__name__} cannot be read as a graph "
                f"({error}), and it lists no stages, so that its maps cannot be refined; choose "
                "refine none."
            ) from error
        return _BlockReader(network, None)


def _refuse_constants(network: nn.Module, graph: fx.Graph) -> None:
    """Delete tensor constants added by tracing; a network that needs them cannot be traced."""
    constants = {str(n.target) for n in graph.nodes if "_tensor_constant" in str(n.target)}
    for name in constants:
        delattr(network, name)
    if constants:
        raise CamtrainValueError("it computes with tensors that are neither weights nor buffers")


def _trunk(backbone: nn.Module) -> nn.Module:
    return backbone.trunk if isinstance(backbone, Backbone) else backbone


def _maps_of(
    backbone: nn.Module,
    reader: _GraphReader | _BlockReader,
    names: Sequence[str],
    in_chans: int,
    size_hw: tuple[int, int],
) -> dict[str, tuple[Layout, int]]:
    """Layout and channels of the results that are maps, by layer."""
    run, network = reader.run(names), _trunk(backbone)
    weight = next(network.parameters(), torch.zeros(0))
    images = torch.zeros(1, in_chans, *size_hw, dtype=weight.dtype, device=weight.device)
    with evaluating(network), torch.no_grad():
        results = run(network, images)[1]
    maps = {}
    for name, result in zip(names, results, strict=True):
        if isinstance(result, Tensor):
            with suppress(CamtrainValueError):
                layout = find_layout(result.shape, size_hw)
                maps[name] = layout, layout.to_map(result, size_hw).shape[1]
    return maps
