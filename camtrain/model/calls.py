"""Standing between a network and torch's functions for a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode


class Calls(TorchFunctionMode):
    """Every call of a torch function inside a ``with`` block goes through ``answer``."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """What torch calls."""
        return self.answer(func, args, kwargs or {})

    def answer(
        self, func: Callable[..., object], args: tuple[Any, ...], options: dict[str, Any]
    ) -> object:
        """What is given in place of ``func(*args, **options)``."""
        raise NotImplementedError
