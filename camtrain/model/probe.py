"""Shapes and layers of a forward pass, recorded without computing, and which axes are a map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from camtrain.errors import CamtrainValueError

Order = Literal["nchw", "nhwc", "nlc", "ncl"]

_CHANNEL_AXES: dict[Order, int] = {"nchw": 1, "nhwc": 3, "nlc": 2, "ncl": 1}
_MOST_PREFIX_TOKENS = 16  # class, distillation and register tokens before those of the patches

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)

# Their results have the shape of their first operands, which torch takes long to infer.
_SHAPE_KEEPING = frozenset(
    {
        *(F.batch_norm, F.group_norm, F.dropout, F.sigmoid, F.hardsigmoid, F.normalize),
        *(F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.gelu, F.silu, F.hardswish, torch.sigmoid),
    }
)
_BROADCASTING = frozenset({Tensor.add, Tensor.mul, torch.add, torch.mul})


class Layout(NamedTuple):
    """How a feature map is stored: as a map, channels first or last, or as a row of tokens."""

    order: Order = "nchw"  # the axes; `l` is h * w patches in reading order
    prefix: int = 0  # tokens before the first patch

    def to_map(self, output: object, image_hw: tuple[int, int]) -> Tensor:
        """The output of a network, or the last of several, as a feature map (B, C, h, w)."""
        output = last_of(output)
        if self.order == "nchw":
            return output
        if self.order == "nhwc":
            return output.permute(0, 3, 1, 2)
        tokens = output.transpose(1, 2) if self.order == "nlc" else output  # (B, C, L)
        tokens = tokens[:, :, self.prefix :]
        return tokens.reshape(*tokens.shape[:2], *grid_of(tokens.shape[2], image_hw))


def last_of(output: object) -> Tensor:
    """The tensor itself, or the last one of several."""
    while isinstance(output, (tuple, list)):
        output = output[-1]
    assert isinstance(output, Tensor)
    return output


def find_layout(
    shape: Sequence[int],
    image_hw: tuple[int, int],
    *,
    channels: int | None = None,
    prefix: int | None = None,
) -> Layout:
    """The layout of features of this shape: the axes that have the proportions of the image.

    If the number of channels is known, it decides where several orders are possible. ``prefix`` is
    the number of tokens before the first patch, if that is known.

    Raises:
        CamtrainValueError: No axes of this shape are a map.

    Example:
        >>> find_layout((1, 197, 768), (224, 224))
        Layout(order='nlc', prefix=1)
        >>> find_layout((1, 7, 14, 512), (224, 448))
        Layout(order='nhwc', prefix=0)
    """
    layouts = list(_possible(shape, image_hw, prefix))
    if not layouts and len(shape) == 4:  # a network that changes the proportions
        return Layout()
    if not layouts:
        raise CamtrainValueError(
            "cut must give a feature map (B, C, h, w), or the tokens of its patches, got the shape "
            f"{tuple(shape)} for images of {image_hw[0]}x{image_hw[1]}; choose an earlier cut."
        )
    # The first one where `channels` is None: then none of them has this number of channels.
    return min(layouts, key=lambda layout: shape[_CHANNEL_AXES[layout.order]] != channels)


def map_hw_of(shape: Sequence[int], image_hw: tuple[int, int]) -> tuple[int, int] | None:
    """(h, w) of a result with the proportions of the image; None for any other, and for a pixel.

    Example:
        >>> map_hw_of((1, 197, 768), (224, 224)), map_hw_of((1, 3, 197, 64), (224, 224))
        ((14, 14), None)
    """
    return next((hw for hw in _possible(shape, image_hw).values() if hw != (1, 1)), None)


def grid_of(patches: int, image_hw: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a row of patches that covers an image of (H, W).

    Example:
        >>> grid_of(98, (224, 448))
        (7, 14)
    """
    h = max(1, round(math.sqrt(patches * image_hw[0] / image_hw[1])))
    return h, patches // h


def _possible(
    shape: Sequence[int], image_hw: tuple[int, int], prefix: int | None = None
) -> dict[Layout, tuple[int, int]]:
    """The layouts in which a shape has the proportions of the image, with the (h, w) of the map."""

    def is_grid(h: int, w: int) -> bool:  # to less than a pixel of the map
        return abs(h * image_hw[1] / image_hw[0] - w) < 1

    if len(shape) == 4:
        sides = {Layout("nchw"): (shape[2], shape[3]), Layout("nhwc"): (shape[1], shape[2])}
        return {layout: hw for layout, hw in sides.items() if is_grid(*hw)}
    grids: dict[Layout, tuple[int, int]] = {}
    token_axes: dict[Order, int] = {"nlc": 1, "ncl": 2} if len(shape) == 3 else {}
    for order, axis in token_axes.items():
        for tokens_before in range(_MOST_PREFIX_TOKENS + 1) if prefix is None else (prefix,):
            patches = shape[axis] - tokens_before
            h, w = grid_of(patches, image_hw) if patches > 0 else (0, 0)
            if h * w == patches > 0 and is_grid(h, w):
                grids[Layout(order, tokens_before)] = h, w
                break
    return grids


class Layer(NamedTuple):
    """One call of a layer in a forward pass; sizes are (H, W), (1, 1) for what is not a map."""

    name: str
    module: nn.Module
    in_hw: tuple[int, int]
    out_hw: tuple[int, int]
    out_shape: tuple[int, ...]


class Probe(NamedTuple):
    """The record of a forward pass."""

    shape: tuple[int, ...]  # of the result
    layers: list[Layer]  # in the order of their calls
    weights: tuple[str, ...]  # names of parameters and buffers, in the order of their first use


def probe(network: nn.Module, in_chans: int, size_hw: tuple[int, int]) -> Probe:
    """Record a forward pass on the meta device: nothing is computed or changed.

    A network whose forward pass branches on values does compute, on the CPU.
    """
    try:
        return _probe(network, in_chans, size_hw, "meta")
    except RuntimeError as error:
        if "meta tensor" not in str(error):
            raise
        return _probe(network, in_chans, size_hw, "cpu")


def _probe(network: nn.Module, in_chans: int, size_hw: tuple[int, int], device: str) -> Probe:
    layers: list[Layer] = []

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        in_shape, shape = _shape(inputs[0] if inputs else None), _shape(output)
        layers.append(Layer(name, module, _hw(in_shape), _hw(shape), shape))

    tensors = {
        f"{name}.{key}" if name else key: tensor
        for name, module in network.named_modules()
        for key, tensor in chain(
            module.named_parameters(recurse=False), module.named_buffers(recurse=False)
        )
    }
    # Layers that share a tensor go on sharing it.
    meta_by_id = {id(tensor): tensor.detach().to(device) for tensor in tensors.values()}
    on_meta = {name: meta_by_id[id(tensor)] for name, tensor in tensors.items()}
    handles = [
        module.register_forward_hook(partial(record, name))
        for name, module in network.named_modules()
        if is_leaf(module)
    ]
    operands = _Operands()
    try:
        with evaluating(network), torch.no_grad(), torch.device(device), Intercepted(operands):
            images = torch.zeros(1, in_chans, *size_hw)
            result = torch.func.functional_call(network, on_meta, (images,), tie_weights=False)
    finally:
        for handle in handles:
            handle.remove()
    weights = [name for name, tensor in on_meta.items() if id(tensor) in operands.first_use]
    weights.sort(key=lambda name: operands.first_use[id(on_meta[name])])
    return Probe(tuple(last_of(result).shape), layers, tuple(weights))


def probe_or_none(network: nn.Module, in_chans: int, size_hw: tuple[int, int]) -> Probe | None:
    """``probe``, or None where the network fails on images of this size."""
    try:
        return probe(network, in_chans, size_hw)
    except Exception:  # each network fails in its own way
        return None


def takes(network: nn.Module, in_chans: int, size_hw: tuple[int, int]) -> bool:
    """Whether a network accepts images of this size."""
    return probe_or_none(network, in_chans, size_hw) is not None


def drop_unused(backbone: nn.Module, record: Probe) -> None:
    """Remove the layers whose weights take no part in ``record``, such as the old head.

    Layers without weights stay: attention asks its dropout for the probability without calling it.
    """
    used = {*(layer.name for layer in record.layers), *record.weights}
    # `a`, `a.b` and `a.b.c` of `a.b.c`.
    names = {path for name in used for path in accumulate(name.split("."), "{}.{}".format)}
    # By identity: some networks use a layer under several names.
    needed = {id(module) for name, module in backbone.named_modules() if name in names}
    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if id(child) not in needed and any(True for _ in child.parameters()):
                setattr(module, name, nn.Identity())


class Intercepted(TorchFunctionMode):
    """Calls ``replacement(function, args, options)`` in place of every torch function."""

    def __init__(
        self, replacement: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], object]
    ) -> None:
        super().__init__()
        self._replacement = replacement

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """What the replacement returns."""
        return self._replacement(func, args, kwargs or {})


class _Operands:
    """Records which tensors take part in a computation, in the order of their first use."""

    def __init__(self) -> None:
        self.first_use: dict[int, int] = {}  # by the id of a tensor

    def __call__(
        self, func: Callable[..., object], args: tuple[Any, ...], options: dict[str, Any]
    ) -> object:
        """The result, or a tensor of its shape."""
        if getattr(func, "__name__", "") != "__get__":  # asking for a shape or a type is no use
            for leaf in tree_leaves((args, options)):
                self.first_use.setdefault(id(leaf), len(self.first_use))
        is_meta = bool(args) and isinstance(args[0], Tensor) and args[0].is_meta
        shape = _shape_of_result(func, args, options) if is_meta else None
        if shape is None:
            return func(*args, **options)
        first: Tensor = args[0]
        return first if shape == first.shape else first.new_empty(shape)


def _shape_of_result(
    func: object, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[int, ...] | None:
    """The shape of a result that torch takes long to infer; None leaves all others to torch."""
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


def first_conv(network: nn.Module) -> str:
    """The name of the convolution that takes the pictures."""
    modules = network.named_modules()
    return str(next(name for name, module in modules if isinstance(module, nn.Conv2d)))


def _shape(value: object) -> tuple[int, ...]:
    """The shape of a tensor; empty for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _hw(shape: tuple[int, ...]) -> tuple[int, int]:
    """(H, W) of a map's shape; (1, 1) for anything else."""
    return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)
