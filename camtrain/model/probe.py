"""What a forward pass meets: shapes and layers, found without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from camtrain.model.calls import Calls
from camtrain.model.layout import last_of

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)

# Their results are like their first operands, which torch takes long to find out.
_SHAPE_KEEPING = frozenset(
    {
        *(F.batch_norm, F.group_norm, F.dropout, F.sigmoid, F.hardsigmoid, F.normalize),
        *(F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.gelu, F.silu, F.hardswish, torch.sigmoid),
    }
)
_BROADCASTING = frozenset({Tensor.add, Tensor.mul, torch.add, torch.mul})


class Layer(NamedTuple):
    """One layer as a forward pass met it; sizes are (H, W), (1, 1) for what is not a map."""

    name: str
    module: nn.Module
    in_hw: tuple[int, int]
    out_hw: tuple[int, int]
    out_shape: tuple[int, ...]


class Probe(NamedTuple):
    """What a forward pass without arithmetic tells.

    Attributes:
        shape: Of the result.
        layers: In the order of their calls.
        weights: Names of the parameters and buffers that something was computed with, in the order
            of their first use.
    """

    shape: tuple[int, ...]
    layers: list[Layer]
    weights: tuple[str, ...]


def probe(network: nn.Module, in_chans: int, size_hw: tuple[int, int]) -> Probe:
    """Shapes of a forward pass on the meta device: nothing is computed or changed."""
    layers: list[Layer] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            in_shape, shape = _shape(inputs[0] if inputs else None), _shape(output)
            layers.append(Layer(name, module, _hw(in_shape), _hw(shape), shape))

        return hook

    tensors = {
        f"{name}.{key}" if name else key: tensor
        for name, module in network.named_modules()
        for key, tensor in chain(
            module.named_parameters(recurse=False), module.named_buffers(recurse=False)
        )
    }
    # A tensor that several layers share stays one.
    once = {id(tensor): tensor.detach().to("meta") for tensor in tensors.values()}
    on_meta = {name: once[id(tensor)] for name, tensor in tensors.items()}
    leaves = [(name, module) for name, module in network.named_modules() if is_leaf(module)]
    handles = [module.register_forward_hook(note(name)) for name, module in leaves]
    try:
        with evaluating(network), torch.no_grad(), torch.device("meta"), _Operands() as operands:
            images = torch.empty(1, in_chans, *size_hw)
            result = torch.func.functional_call(network, on_meta, (images,), tie_weights=False)
    finally:
        for handle in handles:
            handle.remove()
    names: dict[int, list[str]] = {}
    for name, tensor in on_meta.items():
        names.setdefault(id(tensor), []).append(name)
    weights = tuple(name for found in operands.found for name in names.get(found, ()))
    return Probe(tuple(last_of(result).shape), layers, weights)


def probe_if_taken(network: nn.Module, in_chans: int, size_hw: tuple[int, int]) -> Probe | None:
    """See ``probe``; None where a network has no result for images of this size."""
    try:
        return probe(network, in_chans, size_hw)
    except Exception:  # each network complains in its own way
        return None


def takes(network: nn.Module, in_chans: int, size_hw: tuple[int, int]) -> bool:
    """Whether a network has a result for images of this size."""
    return probe_if_taken(network, in_chans, size_hw) is not None


def drop_unused(backbone: nn.Module, probed: Probe) -> None:
    """Take out layers whose weights ``probed`` did not compute with, such as the old head.

    Layers without weights stay: attention asks its dropout for the probability without calling it.
    """
    used = {*(layer.name for layer in probed.layers), *probed.weights}
    names = {name[:end] for name in used for end in _ends_of_parts(name)}
    # By identity: some networks use a layer under several names.
    needed = {id(module) for name, module in backbone.named_modules() if name in names}
    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if id(child) not in needed and any(True for _ in child.parameters()):
                setattr(module, name, nn.Identity())


class _Operands(Calls):
    """Notes which tensors anything is computed with, in the order of their first use."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, None] = {}

    def answer(
        self, func: Callable[..., object], args: tuple[Any, ...], options: dict[str, Any]
    ) -> object:
        """The result, or what has its shape."""
        if getattr(func, "__name__", "") != "__get__":  # asking for a shape or a type is no use
            self.found |= dict.fromkeys(id(leaf) for leaf in tree_leaves((args, options)))
        shape = _shape_of_result(func, args, options)
        if shape is None:
            return func(*args, **options)
        first: Tensor = args[0]
        return first if shape == first.shape else first.new_empty(shape)


def _shape_of_result(
    func: object, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[int, ...] | None:
    """Of what torch takes long to find out; None where it is to be asked, or to complain."""
    if func in _SHAPE_KEEPING:
        return tuple(args[0].shape)
    if len(args) < 2 or not isinstance(args[0], Tensor):
        return None
    shape = tuple(args[0].shape)
    if func is F.layer_norm:  # that of a whole map takes maps of one size
        return shape if shape[len(shape) - len(args[1]) :] == tuple(args[1]) else None
    if func is F.linear:
        *rows, columns = args[1].shape
        return (*shape[:-1], *rows) if shape[-1] == columns else None
    if func in _BROADCASTING and args[0].is_floating_point():
        return np.broadcast_shapes(shape, _shape(args[1]))
    is_attention = func is F.scaled_dot_product_attention and len(args) == 3
    if is_attention and options.get("attn_mask") is None:
        keys, values = _shape(args[1]), _shape(args[2])
        fits = keys == (*shape[:-2], *keys[-2:-1], shape[-1]) and keys[:-1] == values[:-1]
        return (*shape[:-1], values[-1]) if fits else None
    return None


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module returns to the mode it had."""
    training = [module for module in network.modules() if module.training]
    if training:
        network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def is_leaf(module: nn.Module) -> bool:
    """Whether nothing inside a module is looked at on its own."""
    # timm's norms hold their activation as a child, but their forward branches on tensors.
    return isinstance(module, _NORMS) or not any(True for _ in module.children())


def _ends_of_parts(name: str) -> list[int]:
    """Where ``a``, ``a.b`` and ``a.b.c`` end in ``a.b.c``."""
    return [*(i for i, letter in enumerate(name) if letter == "."), len(name)]


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _hw(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)
