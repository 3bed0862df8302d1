"""The images that a network takes, and how its backbone runs on them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from camtrain.errors import CamtrainTypeError, CamtrainValueError, first_line
from camtrain.model.probe import takes

if TYPE_CHECKING:
    from camtrain.model.camnet import CAMNet

T = TypeVar("T")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU it goes through pinned memory, and nothing waits for it."""
    if device.type != "cuda" or tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def run_backbone(backbone: nn.Module, run: Callable[[Tensor], T], images: Tensor) -> T:
    """What a function of the backbone gives; too small images are one sentence."""
    try:
        return run(images)
    except torch.OutOfMemoryError:  # also a RuntimeError, and says nothing about sizes
        raise
    except RuntimeError as error:
        channels, height, width = images.shape[1:]
        sizes = (height, width), (max(height, 224), max(width, 224))
        if torch.compiler.is_compiling() or [takes(backbone, channels, size) for size in sizes] != [
            False,
            True,
        ]:
            raise
        raise CamtrainValueError(
            f"images of {height}x{width} pixels are too small for this network "
            f"({first_line(error)}); set a larger size."
        ) from error


def checked_images(net: CAMNet, images: Tensor) -> Tensor:
    """The images in the type of the weights, which autograd may keep.

    Raises:
        CamtrainTypeError: They are no tensor (B, C, H, W) of floats.
        CamtrainValueError: They have other channels than the network takes.
    """
    if not (isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point()):
        got = f"{tuple(images.shape)} of {images.dtype}" if isinstance(images, Tensor) else images
        raise CamtrainTypeError(
            "images must be a tensor (B, C, H, W) of floats, normalized as net.preprocessing "
            f"says, got {str(got)[:100]}; camtrain.Predictor takes pictures as they are."
        )
    in_chans = net.recipe["in_chans"] if net.recipe else None
    if in_chans is not None and images.shape[1] != in_chans:
        raise CamtrainValueError(
            f"images must be (B, {in_chans}, H, W), got {tuple(images.shape)}; give a mean and "
            f"std of {in_chans} numbers, or build the network with in_chans={images.shape[1]}."
        )
    weight = next(net.backbone.parameters(), images)
    if weight.is_floating_point():
        images = images.to(weight.dtype)
    return images.clone() if torch.is_grad_enabled() and images.is_inference() else images


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Autocast off on the device of a tensor, except on meta and in export, which have none."""
    if tensor.is_meta or torch.compiler.is_exporting():
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
