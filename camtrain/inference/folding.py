"""Batch norms folded into the convolutions before them: the same network with less to compute."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(network: nn.Module) -> None:
    """Fold, in place, every batch norm that directly follows a convolution; evaluation mode only.

    Logits and maps stay the same but for the rounding of float32. Only traced trunks are searched
    (``fx.GraphModule``), since only these say what follows what; others are left as they are.

    Source: Jacob et al., arXiv 1712.05877, section 3.2: w' = w g / sqrt(v + eps), with the bias
        that follows from it.
    """
    for traced in [module for module in network.modules() if isinstance(module, fx.GraphModule)]:
        for conv, norm in _pairs(traced):
            first, second = traced.get_submodule(conv), traced.get_submodule(norm)
            assert isinstance(first, nn.Conv2d)
            assert isinstance(second, nn.BatchNorm2d)
            _replace(traced, conv, fuse_conv_bn_eval(first, second))
            _replace(traced, norm, nn.Identity())


def can_fold(network: nn.Module) -> bool:
    """Whether there is a batch norm to fold."""
    return any(_pairs(module) for module in network.modules() if isinstance(module, fx.GraphModule))


def _pairs(traced: fx.GraphModule) -> list[tuple[str, str]]:
    """Names of convolutions and of the norms that alone take their results, each used once."""
    layers = [node for node in traced.graph.nodes if node.op == "call_module"]
    uses = Counter(str(node.target) for node in layers)
    pairs = []
    for node in (layer for layer in layers if layer.all_input_nodes):
        before = node.all_input_nodes[0]
        conv, norm = str(before.target), str(node.target)
        if before.op != "call_module" or len(before.users) > 1 or uses[conv] + uses[norm] > 2:
            continue
        first, second = traced.get_submodule(conv), traced.get_submodule(norm)
        are_plain = type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d
        if are_plain and isinstance(second.running_mean, Tensor):
            pairs.append((conv, norm))
    return pairs


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)
