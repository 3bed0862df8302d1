"""Running the end of a network, after one of its operations, with numbers in place of weights."""

from __future__ import annotations

import zlib
from itertools import chain
from operator import attrgetter, getitem
from typing import Any

import torch
from torch import Tensor, fx, nn

from camtrain.model.cut import TracedGraph

_MOST_LAYERS = 6


class Tail:
    """What a network does after one of its operations, in float64 and with random weights."""

    def __init__(self, traced: TracedGraph, start: fx.Node, weights: dict[str, Tensor]) -> None:
        self.traced, self.start, self.end = traced, start, traced.output()
        every = list(traced.graph.nodes)
        self.nodes = every[every.index(start) + 1 : every.index(self.end) + 1]
        # Layers that have weights.
        self.layers = {
            node: layer
            for node in self.nodes
            if (layer := traced.module(node)) is not None and any(True for _ in layer.parameters())
        }
        self.random = weights
        self.uses_random = True
        self.results: dict[fx.Node, Any] = {}
        before = every[: every.index(start)]
        self.batch_sizes = [n for n in before if n.target == "size" and n.args[1:] == (0,)]
        self.shapes = [n for n in before if n.target is getattr and n.args[1] == "shape"]
        self.nodes = [
            *(n for n in before if n.target is getitem and n.args[0] in self.shapes),
            *self.nodes,
        ]

    def __call__(self, value: Tensor) -> Tensor:
        """The result for ``value`` in place of what the first operation gives."""
        self.results = {self.start: value.clone()}  # what follows may work in place
        # The number of images is often asked of what came earlier.
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
            numbers = random_numbers(tuple(tensor.shape), name)
            self.random[name] = numbers.abs() + 0.5 if name.endswith("var") else numbers
        return self.random[name]

    def is_too_much(self) -> bool:
        """Whether this is no head any more: many layers, or one that sees other pixels."""
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
        """Of the feature map, as the first layer that follows takes it."""
        for layer in self.layers.values():
            for name in ("in_features", "in_channels", "num_features"):
                if hasattr(layer, name):
                    return int(getattr(layer, name))
            return next(layer.parameters()).numel()
        return 6  # any


def random_numbers(shape: tuple[int, ...], name: str = "") -> Tensor:
    """Random float64, the same for a name, that leave torch's own random state alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator)
