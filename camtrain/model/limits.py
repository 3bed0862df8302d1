"""A limit for networks that a file describes: building one takes no more than its weights say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.model.probe import Intercepted

# Beside the weights of the file there is the head of the library's network, which is cut off: in
# VGG half a gigabyte. A tensor takes some memory and time however small it is, and programs make
# lists of numbers.
_MOST_MORE, _PER_TENSOR, _PER_NUMBER = 2**29, 2**12, 64
_NUMBERS = frozenset({torch.linspace, torch.arange, torch.logspace})
_MAKERS = _NUMBERS | {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.empty_strided),
    *(torch.rand, torch.randn, torch.randint, torch.randperm),
}


@contextmanager
def as_large_as(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse to build a network that is far larger than the weights that a file has for it.

    Raises:
        CamtrainValueError: It would be; nothing of that size has been allocated.
    """
    storages = [tensor.untyped_storage() for tensor in tensors.values()]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}  # a file may repeat one
    stored = sum(sizes.values())
    left = _MOST_MORE + 2 * stored

    def counted(
        func: Callable[..., object], args: tuple[Any, ...], options: dict[str, Any]
    ) -> object:
        nonlocal left
        if func in _MAKERS and torch.device(options.get("device") or "cpu").type != "meta":
            plain = {n: option for n, option in options.items() if n not in ("generator", "out")}
            made: Any = func(*args, **{**plain, "device": "meta"})
            left -= made.nbytes * (_PER_NUMBER if func in _NUMBERS else 1) + _PER_TENSOR
            if left < 0:
                raise CamtrainValueError(
                    f"it describes a network far larger than its {stored} bytes of weights"
                )
        return func(*args, **options)

    with Intercepted(counted):
        yield


def check_head(tensors: Mapping[str, Tensor], num_classes: object) -> None:
    """Raise CamtrainValueError unless the head of a file's weights has so many classes."""
    weight = tensors.get("head.weight")
    if weight is None or weight.ndim != 2 or len(weight) != num_classes:
        shape = None if weight is None else tuple(weight.shape)
        raise CamtrainValueError(
            f"it has {num_classes!r:.50} classes, and a head.weight of {shape}"
        )
