"""Freezing layers of the backbone: neither their parameters nor their buffers change.

What is frozen depends on the epoch alone, so a resumed training freezes the same layers.
"""

from __future__ import annotations

import difflib
import gc
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import nn

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.model.camnet import CAMNet
from camtrain.model.cut import block_of, is_inside
from camtrain.model.probe import Probe, probe
from camtrain.preprocessing import Preprocessing

_TRUNK = "trunk."


class FrozenPart(NamedTuple):
    """Layers that are not trained.

    Attributes:
        modules: The outermost modules that stay in evaluation mode, which keeps BatchNorm
            statistics and switches dropout off.
        parameters: The parameters that get no gradient.
    """

    modules: tuple[nn.Module, ...] = ()
    parameters: tuple[nn.Parameter, ...] = ()


class Freezing(Callback):
    """Freezes layers of a network at once, and unfreezes them at some epoch of the training.

    Args:
        net: The network.
        hparams: The settings of ``CAMModule``. ``freeze_backbone`` freezes the whole backbone,
            ``freeze_head`` neck and head too;
            ``freeze_until`` freezes its layers up to and including this one, in the order of the
            forward pass, named like a cut (``layer3``, ``features.17``); ``unfreeze_at_epoch`` is
            the epoch from which on they are trained, or None.

    Raises:
        CamtrainValueError: The settings contradict each other, or there is no such layer.
        CamtrainTypeError: ``unfreeze_at_epoch`` is no integer.
    """

    def __init__(self, net: CAMNet, hparams: Mapping[str, Any]) -> None:
        freeze_until = hparams["freeze_until"]
        self.unfreeze_at_epoch: int | None = hparams["unfreeze_at_epoch"]
        _check_settings(hparams["freeze_backbone"], freeze_until, self.unfreeze_at_epoch)
        self.part = FrozenPart()
        if hparams["freeze_backbone"]:
            head = (net.neck, net.dropout, net.head) if hparams["freeze_head"] else ()
            modules: tuple[nn.Module, ...] = (net.backbone, *head)
            parameters = [weight for module in modules for weight in module.parameters()]
            self.part = FrozenPart(modules, tuple(parameters))
        elif freeze_until is not None:
            self.part = part_until(net, freeze_until)
        self._is_frozen = False
        self.apply(epoch=0)

    def apply(self, epoch: int) -> bool:
        """Freeze or unfreeze for an epoch, counted from 0; return whether anything changed."""
        is_frozen = bool(self.part.parameters) and (
            self.unfreeze_at_epoch is None or epoch < self.unfreeze_at_epoch
        )
        if is_frozen == self._is_frozen:
            return False
        self._is_frozen = is_frozen
        for parameter in self.part.parameters:
            parameter.requires_grad_(not is_frozen)
        self.keep_in_eval()
        return True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Silence Lightning's warning of modules that are meant to stay in evaluation mode."""
        if self.part.modules:
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze for the first epoch; a resumed training may begin at any epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Unfreeze at the start of ``unfreeze_at_epoch``."""
        if self.apply(trainer.current_epoch):
            pl_module.train()
            _wrap_again(trainer.strategy)

    def keep_in_eval(self) -> None:
        """Put frozen modules back into evaluation mode after a call of ``train()``."""
        if self._is_frozen:
            for module in self.part.modules:
                module.eval()


def part_until(net: CAMNet, layer: str) -> FrozenPart:
    """The layers of a backbone up to and including ``layer``, in the order of the forward pass.

    A layer is frozen if all its weights are first used no later than the last weight of ``layer``.
    A layer without weights, such as dropout, is frozen if it is called no later than ``layer``.

    Raises:
        CamtrainValueError: The backbone has no such layer.
    """
    backbone = net.backbone
    preprocessing = net.preprocessing or Preprocessing()
    probed = probe(backbone, len(preprocessing.mean), preprocessing.size)
    uses = {name: number for number, name in enumerate(probed.weights)}  # in order of first use
    calls = {called.name: number for number, called in enumerate(probed.layers)}
    last_call = _last_number(f"{_TRUNK}{layer}", calls)
    last_use = _last_number(f"{_TRUNK}{layer}", uses)
    if last_use < 0:  # it has no weights: those of the layers before it count
        before = [name for name, number in calls.items() if number <= last_call]
        last_use = max((_last_number(name, uses) for name in before), default=-1)
    if last_use < 0:
        raise _unknown_layer_error(layer, backbone, probed)

    names: list[str] = []  # of the outermost frozen modules
    for name, _ in backbone.named_modules():
        use = _last_number(name, uses)
        is_frozen = use <= last_use if use >= 0 else calls.get(name, last_call + 1) <= last_call
        if is_frozen and not any(_is_under(name, outer) for outer in names):
            names.append(name)
    parameters = tuple(
        parameter
        for name, parameter in backbone.named_parameters()
        if uses.get(name, last_use + 1) <= last_use
        or any(_is_under(name, outer) for outer in names)
    )
    return FrozenPart(tuple(backbone.get_submodule(name) for name in names), parameters)


def _wrap_again(strategy: Strategy) -> None:
    """Wrap the module anew, since a wrapper handles only what was trained when it was made."""
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        gc.collect()  # removes the old wrapper's hooks from the parameters
        strategy.configure_ddp()


def _is_under(name: str, outer: str) -> bool:
    """Whether a layer is ``outer`` or a part of it; all layers are parts of the backbone, ""."""
    return outer == "" or is_inside(name, outer)


def _last_number(outer: str, numbers: dict[str, int]) -> int:
    """The largest number of the names under ``outer``; -1 if there are none."""
    return max((number for name, number in numbers.items() if _is_under(name, outer)), default=-1)


def _check_settings(
    freeze_backbone: bool, freeze_until: str | None, unfreeze_at_epoch: int | None
) -> None:
    if freeze_backbone and freeze_until is not None:
        raise CamtrainValueError(
            f"freeze_backbone freezes more than freeze_until={freeze_until!r}; give one of them."
        )
    if unfreeze_at_epoch is None:
        return
    if type(unfreeze_at_epoch) is not int:
        raise CamtrainTypeError(f"unfreeze_at_epoch must be an integer, got {unfreeze_at_epoch!r}.")
    if unfreeze_at_epoch < 1:
        raise CamtrainValueError(
            f"unfreeze_at_epoch must be at least 1, the first epoch being 0, got "
            f"{unfreeze_at_epoch}; to freeze nothing leave freeze_backbone and freeze_until out."
        )
    if not freeze_backbone and freeze_until is None:
        raise CamtrainValueError(
            f"unfreeze_at_epoch={unfreeze_at_epoch} needs something frozen; give freeze_backbone "
            "or freeze_until too."
        )


def _unknown_layer_error(layer: str, backbone: nn.Module, probed: Probe) -> CamtrainValueError:
    """The error for a layer that the backbone does not have."""
    layers = [called.name.removeprefix(_TRUNK) for called in probed.layers]
    blocks = dict.fromkeys(block_of(name) for name in layers)
    every = [name.removeprefix(_TRUNK) for name, _ in backbone.named_modules() if name]
    near = difflib.get_close_matches(layer, every, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return CamtrainValueError(
        f"freeze_until must name a layer of the backbone, got {layer!r}.{hint} Its blocks are, in "
        f"order: {', '.join(blocks)}."
    )
