"""The stages of a trunk, layers by whose results affinity refinement compares places.

They are found in the graph of the trunk, not by names: at five, six and seven eighths of the way,
counted in convolutions and linear layers, at the ends of blocks through which all later results
pass. Earlier layers tell colours and textures apart and not things; later ones are too alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from itertools import accumulate
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from camtrain.errors import CamtrainValueError
from camtrain.model.cut import block_of, is_inside, leaf_types, unchanged_caches
from camtrain.model.probe import Layout, evaluating, find_layout, last_of
from camtrain.model.trunk import Backbone, GraphBackbone, TimmBackbone, TimmBlocks, listed_blocks

_PARTS = (5 / 8, 6 / 8, 7 / 8)
_EARLIEST = 4 / 8
_LARGEST_BLOCK = 1 / 4

# A function from trunk and images to the features and the results of chosen layers.
Run = Callable[[Any, Tensor], tuple[object, Sequence[object]]]
# A run is made from the trunk's graph when it is first needed; it is no part of the trunk's state.
_RUNS: WeakKeyDictionary[nn.Module, dict[tuple[tuple[str, ...], bool], Run]] = WeakKeyDictionary()


class Stages(NamedTuple):
    """Layers of a trunk, and the layout and the channels of their results."""

    layers: tuple[str, ...]
    layouts: tuple[Layout, ...]
    channels: tuple[int, ...]


def find_stages(
    backbone: nn.Module, in_chans: int, size_hw: tuple[int, int], layers: Sequence[str] | None
) -> Stages:
    """The stages of a backbone that is built for images (B, in_chans, H, W).

    ``layers`` are their names, as ``cut`` takes them; None stands for the usual ones.

    Raises:
        CamtrainValueError: It has no such layer, or one gives no feature map.
    """
    reader = _reader_of(backbone)
    if layers is not None:
        if not layers or not all(map(reader.has, layers)):
            raise CamtrainValueError(
                f"refine_layers must name {reader.choice}, got {list(layers)}; the blocks are: "
                f"{', '.join(reader.blocks)}."
            )
        maps = _find_maps(backbone, reader, layers, in_chans, size_hw)
        without_map = [name for name in layers if name not in maps]
        if without_map:
            raise CamtrainValueError(
                "refine_layers must name layers that give feature maps, got "
                f"{without_map} among them."
            )
    else:
        maps = _usual_maps(backbone, reader, in_chans, size_hw)
        if not maps:
            bypassed = _usual_maps(backbone, reader, in_chans, size_hw, bypassed=True)
            advice = (
                f"name some that give feature maps with refine_layers=, such as {list(bypassed)}"
                if bypassed
                else "choose refine none"
            )
            raise CamtrainValueError(
                f"{type(_trunk(backbone)).__name__} has no layer in its second half through which "
                f"all later results pass, by which refinement could compare places; {advice}."
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

    The features (B, C, h, w) are equal to ``backbone(images)``. The results are feature maps
    (B, C_i, h_i, w_i).
    """
    # A backbone that is trained takes another way through dropout, for example.
    key = stages.layers, _trunk(backbone).training
    runs = _RUNS.setdefault(backbone, {})
    if key not in runs:
        runs[key] = _reader_of(backbone, is_training=key[1]).run(stages.layers)
    run = runs[key]
    results: list[object] = []

    def run_features(images: Tensor) -> object:
        features, stage_results = run(_trunk(backbone), images)
        results.extend(stage_results)
        return features

    if isinstance(backbone, Backbone):
        features = backbone.features_by(run_features, images)
    else:
        features = last_of(run_features(images))
    image_hw = (images.shape[2], images.shape[3])
    pairs = zip(stages.layouts, results, strict=True)
    return features, [layout.to_map(result, image_hw) for layout, result in pairs]


class _GraphReader:
    """Finds and runs the layers of a trunk whose forward pass is a graph."""

    choice = "layers before the cut"

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        self.graph, self.nodes = graph, list(graph.nodes)
        self.paths = [str(n.target) if n.op == "call_module" else "" for n in self.nodes]
        self.blocks = list(dict.fromkeys(block_of(path) for path in self.paths if path))
        self.layers = [network.get_submodule(path) if path else None for path in self.paths]
        # Convolutions and matrices up to each operation.
        self.counts = list(
            accumulate(
                sum(p.ndim > 1 for p in layer.parameters()) if layer else 0 for layer in self.layers
            )
        )
        self.bottlenecks = self._find_bottlenecks()

    def has(self, name: str) -> bool:
        """Whether the trunk has a layer of this name."""
        return any(is_inside(path, name) for path in self.paths)

    def ends(self, *, bypassed: bool) -> dict[str, float]:
        """Where each block ends, as a part in (0, 1) of the trunk.

        They are those that all later results use, or with ``bypassed`` all.
        """
        total = self.counts[-1]
        names: dict[int, str] = {}
        for name in dict.fromkeys(self._block_around(path) for path in self.paths if path):
            end = self._end(name)
            if (bypassed or end in self.bottlenecks) and 0 < self.counts[end] < total:
                names[self.counts[end]] = name  # of several with the same count the last
        return {name: count / total for count, name in names.items()}

    def run(self, names: Sequence[str]) -> Run:
        """A function that computes the features and the results of these layers."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(self.graph, copies)
        features = fx.node.map_arg(self.nodes[-1].args[0], copies.__getitem__)
        layer_of = dict(zip(self.nodes, self.layers, strict=True))
        results = []
        for node in (self.nodes[self._end(name)] for name in names):
            results.append(copies[node])
            if any(getattr(layer_of[user], "inplace", False) for user in node.users):
                with graph.inserting_after(copies[node]):
                    results[-1] = graph.call_method("clone", (copies[node],))
        graph.output((features, results))
        code = graph.python_code("self")
        scope: dict[str, Any] = dict(code.globals)
        exec(code.src, scope)
        return cast("Run", scope["forward"])

    def _block_around(self, path: str) -> str:
        """The largest module with this layer in it and with at most a quarter of all layers."""
        most = _LARGEST_BLOCK * self.counts[-1]
        modules = accumulate(path.split("."), "{}.{}".format)
        return next((name for name in modules if self._size(name) <= most), path)

    def _size(self, name: str) -> int:
        """The number of convolutions and matrices from the first to the last layer of a module."""
        inside = self._indices(name)
        return self.counts[inside[-1]] - (self.counts[inside[0] - 1] if inside[0] else 0)

    def _indices(self, name: str) -> list[int]:
        """The places of a module's layers among the operations."""
        return [i for i, path in enumerate(self.paths) if is_inside(path, name)]

    def _end(self, name: str) -> int:
        """The place of a module's last operation, such as a sum after its last layer."""
        last = end = self._indices(name)[-1]
        while self.nodes[end + 1].op in ("call_function", "call_method", "get_attr"):
            end += 1
        # The first bottleneck: a later one may belong to the next module.
        return min((i for i in range(last, end + 1) if i in self.bottlenecks), default=last)

    def _find_bottlenecks(self) -> set[int]:
        """The places of the operations whose result is all of the images that later ones use."""
        place = {node: index for index, node in enumerate(self.nodes)}
        last_use = {n: max((place[user] for user in n.users), default=0) for n in self.nodes}
        bottlenecks, reach, constants = set[int](), 0, set[fx.Node]()
        for index, node in enumerate(self.nodes):
            inputs = node.all_input_nodes
            is_size = node.target in ("size", "dim", getattr)
            if index > 0 and (is_size or constants.issuperset(inputs)):
                constants.add(node)  # what is computed of sizes and weights
                continue
            if reach <= index and node.op.startswith("call"):
                bottlenecks.add(index)
            reach = max(reach, last_use[node])
        return bottlenecks


class _BlockReader:
    """Runs the blocks that a timm trunk lists, where its forward pass is no graph."""

    def __init__(self, network: nn.Module, cut: int | None) -> None:
        self.cut = cut
        names = [name for name, _ in listed_blocks(network)]
        self.blocks = names if cut is None else names[: cut + 1]
        kind = type(network).__name__
        self.choice = f"blocks of {kind}, whose forward pass cannot be read as a graph"

    def has(self, name: str) -> bool:
        """Whether the trunk lists a block of this name."""
        return name in self.blocks

    def ends(self, *, bypassed: bool) -> dict[str, float]:
        """Where each block ends, as a part in (0, 1) of the trunk; what passes by is unknown."""
        total = len(self.blocks)
        return {name: place / total for place, name in enumerate(self.blocks[:-1], start=1)}

    def run(self, names: Sequence[str]) -> Run:
        """A function that computes the features and the results of these blocks."""
        blocks, cut = [self.blocks.index(name) for name in names], self.cut
        indices = sorted({*blocks} if cut is None else {*blocks, cut})

        def run(trunk: Any, images: Tensor) -> tuple[object, Sequence[object]]:  # noqa: ANN401
            if cut is None:
                features, results = trunk.forward_intermediates(
                    images, indices=indices, stop_early=False
                )
            else:
                results = trunk.forward_intermediates(
                    images, indices=indices, intermediates_only=True, stop_early=True
                )
                features = results[-1]
            return features, [results[indices.index(block)] for block in blocks]

        return run


def _reader_of(backbone: nn.Module, *, is_training: bool = False) -> _GraphReader | _BlockReader:
    """A reader of the graph of the trunk in a mode, or else of the blocks that it lists."""
    network = _trunk(backbone)
    if isinstance(backbone, GraphBackbone):
        graph = getattr(network, "train_graph", None) if is_training else None
        return _GraphReader(network, graph or backbone.graph)
    if isinstance(backbone, TimmBlocks):
        return _BlockReader(network, backbone.index)
    tracer = NodePathTracer(leaf_modules=leaf_types(network))
    tracer.proxy_buffer_attributes = True  # else they would become constants, which never move
    if isinstance(backbone, TimmBackbone):
        tracer.traced_func_name = "forward_features"
    try:
        with nullcontext() if is_training else evaluating(network), unchanged_caches(network):
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
    """The module that the names of layers begin at."""
    trunk: nn.Module = backbone.trunk if isinstance(backbone, Backbone) else backbone
    return trunk


def _usual_maps(
    backbone: nn.Module,
    reader: _GraphReader | _BlockReader,
    in_chans: int,
    size_hw: tuple[int, int],
    *,
    bypassed: bool = False,
) -> dict[str, tuple[Layout, int]]:
    """The blocks nearest to the usual parts that give maps, as in `_find_maps`; none if none do."""
    ends = reader.ends(bypassed=bypassed)
    maps = _find_maps(backbone, reader, list(ends), in_chans, size_hw)
    usable = [name for name in ends if name in maps and ends[name] >= _EARLIEST]
    parts = _PARTS if usable else ()
    nearest = (min(usable, key=lambda name: abs(ends[name] - part)) for part in parts)
    return {name: maps[name] for name in nearest}


def _find_maps(
    backbone: nn.Module,
    reader: _GraphReader | _BlockReader,
    names: Sequence[str],
    in_chans: int,
    size_hw: tuple[int, int],
) -> dict[str, tuple[Layout, int]]:
    """Layout and channels of the layers' results, by layer, without those that are no maps."""
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
