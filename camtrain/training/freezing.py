"""Frozen means frozen: neither parameters nor buffers of a frozen module change."""

from __future__ import annotations

from torch import nn


def freeze(module: nn.Module) -> None:
    """Stop training a module: no gradients; evaluation mode, which keeps BatchNorm statistics."""
    module.requires_grad_(False)
    module.eval()


def keep_in_eval(module: nn.Module, is_frozen: bool) -> None:
    """Undo a ``train()`` call on a frozen module: BatchNorm would drift, dropout would drop."""
    if is_frozen:
        module.eval()
