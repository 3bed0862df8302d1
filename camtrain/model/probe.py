"""Shapes and layers of a forward pass, recorded on the meta device without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from camtrain.model.layout import last_of

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)

# Their results have the shape of their first operands, which torch takes long to infer.
_SHAPE_KEEPING = frozenset(
    {
        *(F.batch_norm, F.group_norm, F.dropout, F.sigmoid, F.hardsigmoid, F.normalize),
        *(F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.gelu, F.silu, F.hardswish, torch.sigmoid),
    }
)
_BROADCASTING = frozenset({Tensor.add, Tensor.mul, torch.add, torch.mul})


class Layer(NamedTuple):
    """One call of a layer in a forward pass; sizes are (H, W), (1, 1) for what is not a map."""

    name: str
    module: nn.Module
    in_hw: tuple[int, int]
    out_hw: tuple[int, int]
    out_shape: tuple[int, ...]


class Probe(NamedTuple):
    """The record of a forward pass.

    Attributes:
        shape: Of the result.
        layers: In the order of their calls.
        weights: Names of the parameters and buffers that take part in it, in the order of their
            first use.
    """

    shape: tuple[int, ...]
    layers: list[Layer]
    weights: tuple[str, ...]


def probe(network: nn.Module, in_chans: int, size_hw: tuple[int, int]) -> Probe:
    """Record a forward pass on the meta device: nothing is computed or changed."""
    layers: list[Layer] = []

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
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
    # Layers that share a tensor go on sharing it.
    meta_by_id = {id(tensor): tensor.detach().to("meta") for tensor in tensors.values()}
    on_meta = {name: meta_by_id[id(tensor)] for name, tensor in tensors.items()}
    leaves = [(name, module) for name, module in network.named_modules() if is_leaf(module)]
    handles = [module.register_forward_hook(recorder(name)) for name, module in leaves]
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
    weights = tuple(name for operand in operands.ids for name in names.get(operand, ()))
    return Probe(tuple(last_of(result).shape), layers, weights)


def probe_or_none(network: nn.Module, in_chans: int, size_hw: tuple[int, int]) -> Probe | None:
    """``probe``, or None where the network fails on images of this size."""
    try:
        return probe(network, in_chans, size_hw)
    except Exception:  # each network fails in its own way
        return None


def takes(network: nn.Module, in_chans: int, size_hw: tuple[int, int]) -> bool:
    """Whether a network accepts images of this size."""
    return probe_or_none(network, in_chans, size_hw) is not None


def drop_unused(backbone: nn.Module, probed: Probe) -> None:
    """Remove the layers whose weights take no part in ``probed``, such as the old head.

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


class _Operands(TorchFunctionMode):
    """Records which tensors take part in a computation, in the order of their first use."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: dict[int, None] = {}

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """The result, or a tensor of its shape."""
        options = kwargs or {}
        if getattr(func, "__name__", "") != "__get__":  # asking for a shape or a type is no use
            self.ids |= dict.fromkeys(id(leaf) for leaf in tree_leaves((args, options)))
        shape = _shape_of_result(func, args, options)
        if shape is None:
            return func(*args, **options)
        first: Tensor = args[0]
        return first if shape == first.shape else first.new_empty(shape)


def _shape_of_result(
    func: object, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[int, ...] | None:
    """The shape where torch takes long to infer it; None where torch shall do so, or complain."""
    if func in _SHAPE_KEEPING:
        return tuple(args[0].shape)
    if len(args) < 2 or not isinstance(args[0], Tensor):
        return None
    shape = tuple(args[0].shape)
    if func is F.layer_norm:  # one over a whole map takes maps of one size
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
    """Whether a module is one layer, whose children are not looked at."""
    # timm's norms hold their activation as a child, but their forward branches on tensors.
    return isinstance(module, _NORMS) or not any(True for _ in module.children())


def _ends_of_parts(name: str) -> list[int]:
    """Where ``a``, ``a.b`` and ``a.b.c`` end in ``a.b.c``."""
    return [*(i for i, letter in enumerate(name) if letter == "."), len(name)]


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _hw(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)
