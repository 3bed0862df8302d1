"""The network that a predictor runs: a ``CAMNet`` on a device, or one from an exported file."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from camtrain.errors import CamtrainValueError, check_choice
from camtrain.labels import Task
from camtrain.maps import CAMOutput
from camtrain.model.camnet import CAMNet
from camtrain.model.images import to_device
from camtrain.model.refine import Refine
from camtrain.model.stages import reads_convolutions
from camtrain.preprocessing import Preprocessing

Precision = Literal["fp32", "bf16"]


class Network(Protocol):
    """A trained network, ready on its device, with what it takes to use it.

    This is all that a network of somebody else needs. One whose heatmaps are made of other maps
    than class maps also has ``refine`` and ``display_maps``, see the function ``display_maps``.

    Attributes:
        class_names: K names.
        preprocessing: What has to be done to its pictures.
        task: Whether scores are a softmax over the logits or a sigmoid of each.
        top: The number of best classes whose maps it gives; None for all classes.
    """

    class_names: Sequence[str]
    preprocessing: Preprocessing
    task: Task
    top: int | None

    def class_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """Logits and class maps of prepared pictures.

        Args:
            images: (B, C, h, w), float32, on the CPU: resized and normalized, of the size of the
                preprocessing.
            top: Maps of the best classes of each image, best first; min(top, K) of them.
            classes: (B, k) int64, on the CPU: maps of these classes. By default all K, in order.

        Returns:
            logits (B, K), float32; maps (B, k, h', w'), float32; classes (B, k), int64; all on one
            device.

        Raises:
            CamtrainValueError: The network cannot give these maps, such as an exported one that
                gives the maps of its best classes only.
        """


def display_maps(
    network: CAMNet | Network,
    images: Tensor,
    *,
    top: int | None = None,
    classes: Tensor | None = None,
) -> CAMOutput:
    """The maps that heatmaps are made of, see ``CAMNet.display_maps``.

    A network of somebody else need not have that method. Then they are its class maps, or what
    its ``refined_maps`` gives where its ``refine`` is not ``none``.
    """
    untyped: Any = network
    if hasattr(untyped, "display_maps"):
        return cast("CAMOutput", untyped.display_maps(images, top=top, classes=classes))
    if getattr(untyped, "refine", "none") == "none":
        return network.class_maps(images, top=top, classes=classes)
    output = untyped.refined_maps(images, top=top, classes=classes)
    return CAMOutput(output.logits, output.refined_maps, output.classes)


class TorchNetwork:
    """A ``CAMNet`` on a device, its weights laid out channels last."""

    def __init__(
        self, net: CAMNet, *, device: str | torch.device = "cpu", precision: Precision = "fp32"
    ) -> None:
        """Move the network itself to the device, the layout and evaluation mode.

        Args:
            net: Its weights stay float32 and whole. A copy may compute instead, which does not
                follow later changes.
            device: Such as cpu, cuda, cuda:1, mps; ``auto`` is the first available one of cuda, mps
                and cpu.
            precision: ``fp32``, or ``bf16``: backbone and neck compute in bfloat16; pool, head and
                maps stay float32.

        Raises:
            CamtrainValueError: The device or the precision is unknown or not available, or the
                network does not know its preprocessing.
        """
        check_choice("precision", precision, get_args(Precision))
        if net.preprocessing is None:
            raise CamtrainValueError(
                "preprocessing must be given, since this network does not know its own; pass "
                "camtrain.Preprocessing(size=(H, W), mean=..., std=...)."
            )
        self.device = find_device(device)
        self.precision: Precision = precision
        self.net = net.to(self.device).to(memory_format=torch.channels_last).eval()
        self.preprocessing = net.preprocessing
        self.class_names: Sequence[str] = net.display_names
        self.task: Task = net.task
        self.top: int | None = None
        self.refine: Refine = net.refine
        self._fast_net = _make_faster(self.net, precision)

    def class_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """See ``Network.class_maps``."""
        return self._compute(self._fast_net.class_maps, images, top, classes)

    def display_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """See ``CAMNet.display_maps``."""
        return self._compute(self._fast_net.display_maps, images, top, classes)

    def _compute(
        self, run: Callable[..., CAMOutput], images: Tensor, top: int | None, classes: Tensor | None
    ) -> CAMOutput:
        lower = self.precision == "bf16"
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, lower):
                on_device = to_device(images, self.device)
                on_device = on_device.contiguous(memory_format=torch.channels_last)
                return run(on_device, top=top, classes=classes)
        except torch.OutOfMemoryError as error:
            count, channels, height, width = images.shape
            raise CamtrainValueError(
                f"The memory of {self.device} is too small for a batch of {count} pictures of "
                f"{channels} channels and {height}x{width} pixels; give a smaller batch_size, or "
                "another device."
            ) from error


def _make_faster(net: CAMNet, precision: Precision) -> CAMNet:
    """The network itself, or a copy that computes the same faster.

    Batch norms are folded into convolutions. For ``bf16`` the convolutions hold bfloat16, so that
    autocast need not cast them each time; the head stays float32, and so do the remaining norms and
    layers that compute their weights.
    """
    folds = can_fold(net.backbone) and not (
        net.stages is not None and reads_convolutions(net.backbone, net.stages)
    )
    if precision == "fp32" and not folds:
        return net
    faster = copy.deepcopy(net, _tensors_replaced_by_folding(net.backbone) if folds else {})
    if folds:
        fold_batch_norms(faster.backbone)
    for part in (faster.backbone, faster.neck) if precision == "bf16" else ():
        for module in part.modules():
            if type(module) in (nn.Conv2d, nn.Linear):
                module.to(torch.bfloat16)
    return faster.to(memory_format=torch.channels_last)


def fold_batch_norms(network: nn.Module) -> None:
    """Fold, in place, every batch norm that directly follows a convolution; evaluation mode only.

    Logits and maps stay the same to float32 rounding. Only traced trunks (``fx.GraphModule``) are
    searched, since only their graphs show the order of layers.

    Source: Jacob et al., arXiv 1712.05877, section 3.2: w' = w g / sqrt(v + eps), with the bias
        that follows from it.
    """
    for traced, conv, norm in _pairs(network):
        first, second = traced.get_submodule(conv), traced.get_submodule(norm)
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.BatchNorm2d)
        mean, var = second.running_mean, second.running_var
        assert mean is not None
        assert var is not None
        # As `fuse_conv_bn_eval`, which would copy the convolution first.
        first.weight, first.bias = fuse_conv_bn_weights(
            first.weight, first.bias, mean, var, second.eps, second.weight, second.bias
        )
        traced.set_submodule(norm, nn.Identity())


def _tensors_replaced_by_folding(network: nn.Module) -> dict[int, Tensor]:
    """The tensors that ``fold_batch_norms`` replaces, by id: a copy need not copy them."""
    uses = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    layers = [traced.get_submodule(name) for traced, *pair in _pairs(network) for name in pair]
    tensors = [t for layer in layers for t in (*layer.parameters(), *layer.buffers())]
    return {id(tensor): tensor for tensor in tensors if uses[id(tensor)] <= 1}


def can_fold(network: nn.Module) -> bool:
    """Whether there is a batch norm to fold."""
    return bool(_pairs(network))


def _pairs(network: nn.Module) -> list[tuple[fx.GraphModule, str, str]]:
    """A traced module, a convolution in it, and the norm that alone takes the result, by name."""
    pairs = []
    for traced in [module for module in network.modules() if isinstance(module, fx.GraphModule)]:
        layers = [node for node in traced.graph.nodes if node.op == "call_module"]
        uses = Counter(str(node.target) for node in layers)
        for node in (layer for layer in layers if layer.all_input_nodes):
            before = node.all_input_nodes[0]
            conv, norm = str(before.target), str(node.target)
            if before.op != "call_module" or len(before.users) > 1 or uses[conv] + uses[norm] > 2:
                continue
            first, second = traced.get_submodule(conv), traced.get_submodule(norm)
            are_plain = type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d
            if are_plain and isinstance(second.running_mean, Tensor):
                pairs.append((traced, conv, norm))
    return pairs


def find_device(device: str | torch.device) -> torch.device:
    """The device of this name; ``auto`` is the first available one of cuda, mps and cpu.

    Raises:
        CamtrainValueError: There is no such device here.
    """
    counts = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    names = [name for name, count in counts.items() if count]
    if device == "auto":
        return torch.device(names[0])
    with suppress(RuntimeError):  # an unknown name
        torch_device = torch.device(device)
        if (torch_device.index or 0) < counts.get(torch_device.type, 0):
            return torch_device
    raise CamtrainValueError(
        f"device must be one of auto, {', '.join(names)} on this machine, got {str(device)!r}."
    )
