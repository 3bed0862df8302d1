"""Frozen means frozen: neither parameters nor buffers of a frozen layer change.

What is frozen follows from the epoch alone, so a resumed training freezes what it would have.
"""

from __future__ import annotations

import difflib
import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import nn

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.model.camnet import CAMNet
from camtrain.model.cut import block_of
from camtrain.model.probe import Probe, probe
from camtrain.preprocessing import Preprocessing

_TRUNK = "trunk."


@dataclass(frozen=True, eq=False)
class FrozenPart:
    """What is not trained.

    Attributes:
        modules: The outermost modules that stay in evaluation mode, which keeps BatchNorm
            statistics and switches dropout off.
        parameters: Those that get no gradient.
    """

    modules: tuple[nn.Module, ...] = ()
    parameters: tuple[nn.Parameter, ...] = ()


class Freezing(Callback):
    """Freezes a part of a network up to some epoch: before the training, and as a callback in it.

    Args:
        net: The network.
        hparams: The settings of ``CAMModule``, of which these count: ``freeze_backbone`` freezes
            the whole backbone; ``freeze_until`` its layers up to and including this one, in the
            order of the forward pass, named like a cut (``layer3``, ``features.17``); and
            ``unfreeze_at_epoch`` is when the frozen part is trained too, None meaning never.

    Raises:
        CamtrainValueError: The settings contradict each other, or there is no such layer.
        CamtrainTypeError: ``unfreeze_at_epoch`` is no integer.
    """

    def __init__(self, net: CAMNet, hparams: Mapping[str, Any]) -> None:
        """Find the part and freeze it, as it is before the first epoch."""
        freeze_until = hparams["freeze_until"]
        self.unfreeze_at_epoch: int | None = hparams["unfreeze_at_epoch"]
        _check(hparams["freeze_backbone"], freeze_until, self.unfreeze_at_epoch)
        self.part = FrozenPart()
        if hparams["freeze_backbone"]:
            self.part = FrozenPart((net.backbone,), tuple(net.backbone.parameters()))
        elif freeze_until is not None:
            self.part = part_until(net, freeze_until)
        self._is_frozen = False
        self.apply(epoch=0)

    @property
    def stays(self) -> bool:
        """Whether something is frozen, and for good."""
        return bool(self.part.parameters) and self.unfreeze_at_epoch is None

    def apply(self, epoch: int) -> bool:
        """Freeze or unfreeze, as it should be in an epoch; returns whether that changed anything.

        Args:
            epoch: Counted from 0.
        """
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze what is frozen in this epoch, which may be in the middle of a resumed one."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Unfreeze when it is time."""
        if self.apply(trainer.current_epoch):
            pl_module.train()
            _wrap_again(trainer.strategy)

    def keep_in_eval(self) -> None:
        """Undo a ``train()`` call on what is frozen."""
        if self._is_frozen:
            for module in self.part.modules:
                module.eval()


def part_until(net: CAMNet, layer: str) -> FrozenPart:
    """The layers of a backbone up to and including one, in the order of the forward pass.

    A layer is frozen if all weights that it computes with are first used no later than the last of
    ``layer``; one without weights, such as dropout, if it is called no later.

    Raises:
        CamtrainValueError: The backbone has no such layer.
    """
    backbone = net.backbone
    preprocessing = net.preprocessing or Preprocessing()
    probed = probe(backbone, len(preprocessing.mean), preprocessing.size)
    place = {name: number for number, name in enumerate(probed.weights)}
    calls = {called.name: number for number, called in enumerate(probed.layers)}
    inside = f"{_TRUNK}{layer}"
    last_call = max((calls[name] for name in _under(inside, calls)), default=-1)
    last = max((place[name] for name in _under(inside, place)), default=-1)
    if last < 0:  # it has no weights: those of the layers before it count
        before = [name for name, number in calls.items() if number <= last_call]
        last = max((place[n] for layer in before for n in _under(layer, place)), default=-1)
    if last < 0:
        raise _unknown(layer, backbone, probed)

    def is_frozen(name: str, module: nn.Module) -> bool:
        if name == "":
            return bool(place) and max(place.values()) <= last
        weights = [place[own] for own in _under(name, place)]
        return max(weights) <= last if weights else calls.get(name, last_call + 1) <= last_call

    names: list[str] = []
    for name, module in backbone.named_modules():
        if not any(_is_under(name, outer) for outer in names) and is_frozen(name, module):
            names.append(name)
    parameters = {
        name: parameter
        for name, parameter in backbone.named_parameters()
        if place.get(name, last + 1) <= last or any(_is_under(name, outer) for outer in names)
    }
    modules = tuple(backbone.get_submodule(name) for name in names)
    return FrozenPart(modules, tuple(parameters.values()))


def _wrap_again(strategy: Strategy) -> None:
    """Let several processes exchange the gradients of what is trained from now on.

    DistributedDataParallel knows only the parameters that wanted a gradient when it was made, and
    insists on a gradient for each of them.
    """
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        gc.collect()  # takes the old wrapper's hooks off the parameters
        strategy.configure_ddp()


def _is_under(name: str, outer: str) -> bool:
    return outer == "" or name == outer or name.startswith(f"{outer}.")


def _under(outer: str, names: dict[str, int]) -> list[str]:
    return [name for name in names if _is_under(name, outer)]


def _check(freeze_backbone: bool, freeze_until: str | None, unfreeze_at_epoch: int | None) -> None:
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


def _unknown(layer: str, backbone: nn.Module, probed: Probe) -> CamtrainValueError:
    layers = [called.name.removeprefix(_TRUNK) for called in probed.layers]
    blocks = dict.fromkeys(block_of(name) for name in layers)
    every = [name.removeprefix(_TRUNK) for name, _ in backbone.named_modules() if name]
    near = difflib.get_close_matches(layer, every, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return CamtrainValueError(
        f"freeze_until must name a layer of the backbone, got {layer!r}.{hint} Its blocks are, in "
        f"order: {', '.join(blocks)}."
    )
