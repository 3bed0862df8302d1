"""What a forward pass meets: shapes and layers, found without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class Layer(NamedTuple):
    """One layer as a forward pass met it; sizes are (H, W), (1, 1) for what is not a map."""

    name: str
    module: nn.Module
    in_hw: tuple[int, int]
    out_hw: tuple[int, int]


class Probe(NamedTuple):
    """What a forward pass without arithmetic tells: the result's shape, the layers in order."""

    shape: tuple[int, ...]
    layers: list[Layer]


def probe(network: nn.Module, in_chans: int, size_hw: tuple[int, int]) -> Probe:
    """Shapes of a forward pass on the meta device: nothing is computed or changed."""
    layers: list[Layer] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            layers.append(Layer(name, module, _hw(inputs[0]), _hw(output)))

        return hook

    tensors = chain(network.named_parameters(), network.named_buffers())
    on_meta = {name: tensor.detach().to("meta") for name, tensor in tensors}
    leaves = [(name, module) for name, module in network.named_modules() if is_leaf(module)]
    handles = [module.register_forward_hook(note(name)) for name, module in leaves]
    try:
        with evaluating(network), torch.no_grad(), torch.device("meta"):
            images = torch.empty(1, in_chans, *size_hw)
            result = torch.func.functional_call(network, on_meta, (images,))
    finally:
        for handle in handles:
            handle.remove()
    return Probe(tuple(result.shape), layers)


def drop_unused(backbone: nn.Module, layers: list[Layer]) -> None:
    """Take out what the forward pass never reaches (the old head) and a last max pooling."""
    used = {id(layer.module) for layer in layers}
    if isinstance(layers[-1].module, nn.MaxPool2d):
        used.discard(id(layers[-1].module))
    for parent in list(backbone.modules()):
        for name, child in parent.named_children():
            if not any(id(module) in used for module in child.modules()):
                setattr(parent, name, nn.Identity())


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module returns to the mode it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def is_leaf(module: nn.Module) -> bool:
    """Whether nothing inside a module is looked at on its own."""
    # timm's norms hold their activation as a child, but their forward branches on tensors.
    return isinstance(module, _NORMS) or not any(True for _ in module.children())


def _hw(value: object) -> tuple[int, int]:
    if isinstance(value, Tensor) and value.ndim == 4:
        return value.shape[2], value.shape[3]
    return 1, 1
