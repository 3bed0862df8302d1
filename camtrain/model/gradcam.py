"""Grad-CAM: class maps of a network that was not converted, from one backward pass per class."""

from __future__ import annotations

import difflib
from itertools import chain

import torch
from torch import Tensor, nn

from camtrain.errors import CamtrainTypeError, CamtrainValueError, first_line
from camtrain.maps import check_classes
from camtrain.model.probe import evaluating


def gradcam(
    model: nn.Module,
    images: Tensor,
    *,
    layer: str | nn.Module,
    classes: Tensor,
    elementwise: bool = False,
) -> Tensor:
    """Grad-CAM of chosen classes, at any layer of any network that classifies images.

    With the layer's output A (B, C, h, w) and the logit y of a class,

    * Grad-CAM is ReLU(sum_c a_c A_c), where a_c is the mean of dy/dA_c over space (Selvaraju et
      al., ICCV 2017, arXiv 1610.02391, equations 1 and 2);
    * the element-wise variant is HiResCAM, ReLU(sum_c dy/dA_c * A_c), which takes no mean (Draelos
      and Carin, arXiv 2011.08891, section 3; they have no ReLU).

    At the features of a CAM network with ``avg`` pooling both are ReLU(class map) / (h w).

    The network computes in evaluation mode and in float32 (float64 if it is float64), with autocast
    off; it also may be frozen, or called under ``torch.no_grad`` or ``torch.inference_mode``. It is
    left as it was: no hook, no ``.grad``, every flag and mode as before.

    Args:
        model: (B, in_chans, H, W) to logits (B, K).
        images: (B, in_chans, H, W), as the network takes them.
        layer: A layer with an output (B, C, h, w), by name (``features.29``) or the module itself;
            blocks such as ``layer4`` are layers too. It must run exactly once.
        classes: (B,) or (B, k), integers: maps of these classes.
        elementwise: HiResCAM instead of Grad-CAM.

    Returns:
        (B, k, h, w), at least 0, unnormalized, detached; see ``camtrain.heatmaps``.

    Raises:
        CamtrainTypeError: ``model`` is no module, ``images`` is no float tensor, or ``classes`` is
            no tensor of integers.
        CamtrainValueError: The layer does not exist, is not reached, runs more than once, gives no
            feature map, or does not influence the logits; images or classes do not fit the network.

    Example:
        >>> conv = nn.Conv2d(1, 1, 1, bias=False)
        >>> model = nn.Sequential(conv, nn.Flatten(), nn.Linear(2, 1))
        >>> _ = nn.init.ones_(conv.weight), nn.init.ones_(model[2].weight)
        >>> gradcam(model, torch.tensor([[[[-1.0, 3.0]]]]), layer="0", classes=torch.tensor([0]))
        tensor([[[[0., 3.]]]])
    """
    if not isinstance(model, nn.Module):
        raise CamtrainTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise CamtrainTypeError(f"images must be a tensor of normalized floats, got {kind}.")
    if images.ndim != 4:
        raise CamtrainValueError(
            f"images must have the shape (B, in_chans, H, W), got {tuple(images.shape)}."
        )
    name, module = _find_layer(model, layer)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(images.device.type, enabled=False),
    ):
        logits, activation = _forward(model, images, name, module)
        check_classes(classes, *logits.shape)
        chosen = classes if classes.ndim == 2 else classes[:, None]
        chosen = logits.gather(1, chosen.to(logits.device, torch.int64))  # (B, k)
        activations = activation.detach()
        maps = activations.new_empty(*chosen.shape, *activations.shape[2:])
        # Class by class: vmap (is_grads_batched) takes k times the memory, is hardly faster, and
        # does not support every operation.
        for rank in range(chosen.shape[1]):
            # In evaluation mode a logit depends on its own picture alone, so the gradient of the
            # sum holds the gradient of each.
            weights = _gradient(chosen[:, rank].sum(), activation, name)
            if not elementwise:
                weights = weights.mean((-2, -1), keepdim=True)  # (B, C, 1, 1)
            maps[:, rank] = (weights * activations).sum(1)
        return maps.relu_()


def _find_layer(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    """The name of the layer, and the layer."""
    modules, kind = dict(model.named_modules()), type(model).__name__
    if isinstance(layer, nn.Module):
        for name, module in modules.items():
            if module is layer:
                return name, module
        raise CamtrainValueError(
            f"layer must be a module of the {kind} it is asked of, got a {type(layer).__name__} "
            "that is not inside; a converted network holds copies."
        )
    if not isinstance(layer, str):
        raise CamtrainTypeError(
            f"layer must be the name of a module or the module itself, got {type(layer).__name__}."
        )
    if layer not in modules:
        convs = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
        suggestions = difflib.get_close_matches(layer, modules, n=3) or convs[-3:]
        raise CamtrainValueError(
            f"layer must name a module of {kind}, got {layer!r}; near it are "
            f"{', '.join(suggestions)}."
        )
    return layer, modules[layer]


def _forward(
    model: nn.Module, images: Tensor, name: str, module: nn.Module
) -> tuple[Tensor, Tensor]:
    """Logits (B, K), and the layer's output (B, C, h, w), the leaf from which they are computed.

    The layers before it compute without gradients and store nothing for a backward pass.
    """
    leaves: list[Tensor] = []

    def make_leaf(_module: nn.Module, _inputs: object, output: object) -> Tensor:
        if leaves:
            raise CamtrainValueError(
                f"layer {name!r} runs more than once in a forward pass, so it has no one "
                "activation; choose the block around it, or a layer that runs once."
            )
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise CamtrainValueError(
                f"layer must give a feature map (B, C, h, w), {name!r} gives "
                f"{_shape_or_type(output)}; choose an earlier layer."
            )
        # Copied twice, since what comes before and after may change its own in place (ReLU).
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[0].clone()

    tensors = chain(model.named_parameters(), model.named_buffers())
    state, kind = {name: _plain(tensor) for name, tensor in tensors}, type(model).__name__
    handle = module.register_forward_hook(make_leaf)
    try:
        with evaluating(model):
            logits = torch.func.functional_call(model, state, (_plain(images),))
    except RuntimeError as error:  # what torch raises where shapes or devices do not fit
        raise CamtrainValueError(
            f"{kind} cannot classify images of the shape {tuple(images.shape)} on {images.device} "
            f"({first_line(error)})."
        ) from error
    finally:
        handle.remove()
    if not leaves:
        inside = [part for part, _ in module.named_modules(prefix=name)][1:]
        similar = difflib.get_close_matches(name, dict(model.named_modules()), n=4)
        suggestions = inside[-3:] or [layer for layer in similar if layer != name]
        raise CamtrainValueError(
            f"layer {name!r} is not reached by the forward pass of {kind}; choose another; layers "
            f"near it are {', '.join(suggestions)}."
        )
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        raise CamtrainValueError(
            f"model must give logits (B, K), {kind} gives {_shape_or_type(logits)}; wrap it in a "
            "module that returns them alone."
        )
    return logits, leaves[0]


def _shape_or_type(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _plain(tensor: Tensor) -> Tensor:
    """The tensor without gradient, outside inference mode, at least float32; a view if possible."""
    tensor = tensor.clone() if tensor.is_inference() else tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _gradient(total: Tensor, activation: Tensor, name: str) -> Tensor:
    """The gradient of a sum of logits with respect to the layer's output."""
    if total.requires_grad:
        gradient = torch.autograd.grad(total, activation, retain_graph=True, allow_unused=True)[0]
        if gradient is not None:
            return gradient
    raise CamtrainValueError(
        f"layer {name!r} does not influence the logits by a gradient; choose a layer before them."
    )
