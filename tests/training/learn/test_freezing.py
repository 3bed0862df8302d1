"""Law 3: a frozen layer is bit-identical after training, parameters and buffers."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

import camtrain
from camtrain.errors import CamtrainError
from camtrain.training import CAMDataModule, CAMModule
from camtrain.training.learn.freezing import part_until
from tests.conftest import at_night, everyday
from tests.training.conftest import quiet_trainer, small_module


def hash_of(module: nn.Module) -> str:
    """Of all parameters and buffers, to the last bit."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> list[str]:
    return [name for name, t in module.state_dict().items() if not torch.equal(t, before[name])]


class Hashes(Callback):
    """The hash of the backbone, the average's where one is kept, after every epoch."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Averages stand in for the weights during a validation."""
        self.found.append(hash_of(pl_module.net.backbone))


WAYS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.1},
    "adamw": {"lr": 0.01},
    "average": {"ema_decay": 0.9},
    "layer-wise": {"layer_decay": 0.5, "backbone_lr_ratio": 0.1},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_frozen_backbone_is_bit_identical_after_training(way: str, data: CAMDataModule) -> None:
    module = small_module(freeze_backbone=True, weight_decay=0.5, **WAYS[way])
    before, head, hashes = hash_of(module.net.backbone), state_of(module.net.head), Hashes()
    quiet_trainer(callbacks=[hashes]).fit(module, data)
    assert [before] * 2 == hashes.found
    assert hash_of(module.net.backbone) == before
    assert changed(module.net.head, head) == ["weight", "bias"]


def test_a_free_backbone_changes_in_everything(data: CAMDataModule) -> None:
    module = small_module(freeze_backbone=False)
    before = state_of(module.net.backbone)
    quiet_trainer().fit(module, data)
    assert changed(module.net.backbone, before) == list(before)


@pytest.mark.parametrize("way", WAYS)
def test_layers_up_to_one_are_bit_identical_and_the_others_change(
    way: str, data: CAMDataModule
) -> None:
    module = small_module(freeze_until="norm2", weight_decay=0.5, **WAYS[way])
    before = state_of(module.net.backbone)
    quiet_trainer().fit(module, data)
    free = ("trunk.conv3", "trunk.norm3", "trunk.conv4", "trunk.norm4")
    assert changed(module.net.backbone, before) == [n for n in before if n.startswith(free)]


@pytest.mark.parametrize("way", everyday(WAYS, "average"))
def test_unfreezing_waits_for_its_epoch(way: str, data: CAMDataModule) -> None:
    module = small_module(freeze_backbone=True, unfreeze_at_epoch=2, **WAYS[way])
    before, hashes = hash_of(module.net.backbone), Hashes()
    state = state_of(module.net.backbone)
    trainer = quiet_trainer(max_epochs=4, callbacks=[hashes])
    trainer.fit(module, data)
    assert hashes.found[:2] == [before] * 2
    assert len(set(hashes.found)) == 3
    assert changed(module.net.backbone, state) == list(state)


def test_a_resumed_training_freezes_what_it_would_have(data: CAMDataModule, tmp_path: Path) -> None:
    def module() -> CAMModule:
        torch.manual_seed(0)
        return small_module(freeze_until="norm2", unfreeze_at_epoch=2, ema_decay=0.9)

    whole = module()
    quiet_trainer(max_epochs=4, callbacks=[SaveEpochs(tmp_path)]).fit(whole, data)
    for epochs in (1, 2, 3):
        resumed = module()
        checkpoint = tmp_path / f"{epochs}.ckpt"
        quiet_trainer(max_epochs=4).fit(resumed, data, ckpt_path=checkpoint, weights_only=True)
        assert hash_of(resumed.net) == hash_of(whole.net), epochs


class SaveEpochs(Callback):
    """Writes a checkpoint after every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch + 1}.ckpt")


def test_all_parameters_are_known_to_the_optimizer_from_the_start(data: CAMDataModule) -> None:
    module = small_module(freeze_backbone=True)
    quiet_trainer(max_epochs=1).fit(module, data)
    optimizer = module.optimizers()
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in module.net.parameters()}
    assert len(optimizer.state) == len(list(module.net.head.parameters()))


def test_no_train_call_wakes_a_frozen_backbone() -> None:
    module: CAMModule = small_module(freeze_backbone=True, neck=(4,), neck_norm="batch")
    module.train()
    assert not any(part.training for part in module.net.backbone.modules())
    assert module.net.neck.training


def test_no_train_call_wakes_frozen_layers() -> None:
    module = small_module(freeze_until="conv2")
    for _ in range(2):
        module.eval()
        module.train()
        modes = {n: part.training for n, part in module.net.backbone.trunk.named_children()}
        assert not any(modes[name] for name in ("conv1", "norm1", "relu1", "pool1", "conv2"))
        assert all(modes[name] for name in ("norm2", "conv3", "norm3"))


LARGE = (
    *("torchvision/vit_b_16", "encoder.layers.encoder_layer_3"),
    *("encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_4"),
)


@pytest.mark.parametrize(
    ("name", "layer", "frozen", "free"),
    at_night([
        ("torchvision/resnet18", "layer3", "layer3.1.bn2", "layer4.0.conv1"),
        ("torchvision/resnet18", "maxpool", "bn1", "layer1.0.conv1"),
        ("torchvision/googlenet", "inception4a", "inception4a.branch4", "inception4b"),
        ("torchvision/mobilenet_v2", "features.10", "features.10", "features.11"),
        LARGE,
        ("timm/resnet18", "layer2.0", "layer2.0.downsample", "layer2.1"),
        ("timm/vit_tiny_patch16_224", "blocks.5", "patch_embed", "blocks.6"),
        ("timm/convnext_atto", "stages.1", "stages.1.blocks.1", "stages.2.downsample"),
    ], LARGE),
)  # fmt: skip
def test_the_order_is_that_of_the_forward_pass(
    name: str, layer: str, frozen: str, free: str
) -> None:
    net = camtrain.create_model(name, 3, weights=None, neck=()).train()
    part = part_until(net, layer)
    ids, trunk = {id(parameter) for parameter in part.parameters}, net.backbone.trunk
    inside = {id(module) for outer in part.modules for module in outer.modules()}
    assert {id(p) for p in trunk.get_submodule(frozen).parameters()} <= ids
    assert id(trunk.get_submodule(frozen)) in inside
    assert not {id(p) for p in trunk.get_submodule(free).parameters()} & ids
    assert id(trunk.get_submodule(free)) not in inside
    if name == "timm/vit_tiny_patch16_224":
        assert {id(trunk.pos_embed), id(trunk.cls_token)} <= ids


def test_the_last_layer_freezes_the_whole_backbone() -> None:
    net = camtrain.create_model("torchvision/resnet18", 3, weights=None, neck=())
    assert part_until(net, "layer4").modules == (net.backbone,)
    assert len(part_until(net, "layer4").parameters) == len(list(net.backbone.parameters()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"freeze_until": "conf2"},
            r"got 'conf2'\. Did you mean conv2 .* Its blocks are, in order",
        ),
        ({"freeze_until": ""}, "must name a layer"),
        ({"freeze_until": "conv1", "freeze_backbone": True}, "give one of them"),
        ({"unfreeze_at_epoch": 2}, "needs something frozen"),
        ({"unfreeze_at_epoch": 0, "freeze_backbone": True}, "must be at least 1"),
        ({"unfreeze_at_epoch": 1.5, "freeze_backbone": True}, "must be an integer"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainError, match=message):
        small_module(**settings)
