"""What a predictor runs: the one door behind which a torch, ONNX or exported network stands."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from camtrain.errors import CamtrainValueError
from camtrain.inference.folding import can_fold, fold_batch_norms
from camtrain.labels import Task
from camtrain.maps import CAMOutput
from camtrain.model.camnet import CAMNet
from camtrain.model.refine import Refine
from camtrain.model.stages import reads_convolutions
from camtrain.preprocessing import Preprocessing

Precision = Literal["fp32", "bf16"]


class Network(Protocol):
    """A trained network with what it takes to use it, whatever runs it."""

    @property
    def class_names(self) -> Sequence[str]:
        """K names."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network expects to be done to its pictures."""

    @property
    def task(self) -> Task:
        """Whether scores are a softmax over the logits or a sigmoid of each."""

    @property
    def top(self) -> int | None:
        """Of how many best classes it gives the maps; None: of all."""

    def class_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """Logits and class maps of prepared pictures.

        Args:
            images: (B, C, h, w), float32, on the CPU: resized and normalized. Their size is that of
                the preprocessing.
            top: Maps of the best classes of each image, best first; min(top, K) of them.
            classes: (B, k) int64, on the CPU: maps of these classes. By default all K, in order.

        Returns:
            logits (B, K), float32; maps (B, k, h', w'), float32; classes (B, k), int64; all on one
            device, whichever it is.

        Raises:
            CamtrainValueError: The network cannot give what is asked for, as an exported one that
                gives the maps of its best classes only.
        """

    def display_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """The same with the maps that heatmaps are made of; see ``CAMNet.display_maps``."""


class TorchNetwork:
    """A ``CAMNet`` on a device, its weights laid out channels last."""

    def __init__(
        self, net: CAMNet, *, device: str | torch.device = "cpu", precision: Precision = "fp32"
    ) -> None:
        """Move the network itself to the device, the layout and evaluation mode.

        Args:
            net: Its weights stay float32 and whole, whatever the precision; what computes may be a
                copy, which knows nothing of later changes.
            device: Such as cpu, cuda, cuda:1, mps; ``auto`` is the first of cuda, mps and cpu that
                is there.
            precision: ``fp32``, or ``bf16``: backbone and neck compute in bfloat16; pool, head and
                maps stay float32.

        Raises:
            CamtrainValueError: The device or the precision is unknown or not there, or the network
                does not know its preprocessing.
        """
        if precision not in get_args(Precision):
            raise CamtrainValueError(
                f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}."
            )
        if net.preprocessing is None:
            raise CamtrainValueError(
                "preprocessing must be given, since this network does not know its own; pass "
                "camtrain.Preprocessing(size=(H, W), mean=..., std=...)."
            )
        self.device = find_device(device)
        self.precision: Precision = precision
        self.net = net.to(self.device).to(memory_format=torch.channels_last).eval()
        self.preprocessing = net.preprocessing
        self.class_names = net.display_names
        self.task = net.task
        self.top: int | None = None
        self.refine: Refine = net.refine
        self._running = _faster(self.net, precision)

    def class_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """See ``Network.class_maps``."""
        return self._run(self._running.class_maps, images, top, classes)

    def display_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """See ``Network.display_maps``."""
        return self._run(self._running.display_maps, images, top, classes)

    def _run(
        self,
        method: Callable[..., CAMOutput],
        images: Tensor,
        top: int | None,
        classes: Tensor | None,
    ) -> CAMOutput:
        images = images.to(self.device, memory_format=torch.channels_last)
        lower = self.precision == "bf16"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, lower):
            return method(images, top=top, classes=classes)


def _faster(net: CAMNet, precision: Precision) -> CAMNet:
    """The network itself, or a copy that gives the same with less to compute.

    Batch norms are folded into convolutions. For ``bf16`` the convolutions hold bfloat16, so that
    autocast need not cast them each time; the head stays float32, and so do norms that are left,
    and layers that compute their weights.
    """
    folds = can_fold(net.backbone)
    if folds and net.stages is not None and reads_convolutions(net.backbone, net.stages):
        folds = False
    if precision == "fp32" and not folds:
        return net
    faster = copy.deepcopy(net)
    if folds:
        fold_batch_norms(faster.backbone)
    for part in (faster.backbone, faster.neck) if precision == "bf16" else ():
        for module in part.modules():
            if type(module) in (nn.Conv2d, nn.Linear):
                module.to(torch.bfloat16)
    return faster.to(memory_format=torch.channels_last)


def find_device(device: str | torch.device) -> torch.device:
    """The device of this name; ``auto`` is the first of cuda, mps and cpu that is there.

    Raises:
        CamtrainValueError: There is no such device here.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    names = [name for name, is_there in there.items() if is_there] + ["cpu"]
    if device == "auto":
        return torch.device(names[0])
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in names or not _has_index(found):
        raise CamtrainValueError(
            f"device must be one of auto, {', '.join(names)} on this machine, got {str(device)!r}."
        )
    return found


def _has_index(device: torch.device) -> bool:
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    return device.index is None or device.index < count
