"""Law 3: a frozen backbone is bit-identical after training, parameters and buffers."""

import torch
from torch import Tensor, nn

from camtrain.training import CAMDataModule, CAMModule
from tests.training.conftest import quiet_trainer, small_module


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> list[str]:
    return [name for name, t in module.state_dict().items() if not torch.equal(t, before[name])]


def test_a_frozen_backbone_is_bit_identical_after_training(data: CAMDataModule) -> None:
    module = small_module(freeze_backbone=True)
    before, head = state_of(module.net.backbone), state_of(module.net.head)
    quiet_trainer().fit(module, data)
    assert changed(module.net.backbone, before) == []
    assert changed(module.net.head, head) == ["weight", "bias"]


def test_a_free_backbone_changes_in_everything(data: CAMDataModule) -> None:
    module = small_module(freeze_backbone=False)
    before = state_of(module.net.backbone)
    quiet_trainer().fit(module, data)
    assert changed(module.net.backbone, before) == list(before)


def test_no_train_call_wakes_a_frozen_backbone() -> None:
    module: CAMModule = small_module(freeze_backbone=True, neck=(4,), neck_norm="batch")
    module.train()
    assert not any(part.training for part in module.net.backbone.modules())
    assert module.net.neck.training
