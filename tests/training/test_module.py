"""The module: what it trains, what it measures, what its checkpoints hold."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from camtrain.errors import CamtrainError, CamtrainTypeError
from camtrain.preprocessing import Preprocessing
from camtrain.training import CAMDataModule, CAMLogger, CAMModule
from camtrain.training.evaluate.evaluator import Evaluator
from camtrain.training.learn.optimizer import warmup_cosine
from tests.conftest import everyday
from tests.training.conftest import quiet_trainer, small_module


class AnybodysData(LightningDataModule):
    """Plain (image, label) batches, without boxes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.class_names = [str(number) for number in range(num_classes)]
        self.preprocessing = Preprocessing((20, 28), (0.5,) * 3, (0.5,) * 3)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(12, 3, 20, 28, generator=generator)
        self.pictures = TensorDataset(images, torch.arange(12) % num_classes)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of four."""
        return DataLoader(self.pictures, batch_size=4)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The same pictures."""
        return DataLoader(self.pictures, batch_size=4)


def scores_of(module: CAMModule, data: LightningDataModule, **settings: Any) -> dict[str, float]:
    trainer = quiet_trainer(**settings)
    [scores] = trainer.validate(module, data, verbose=False)
    return dict(scores)


@pytest.mark.parametrize(("num_classes", "has_acc5"), [(5, False), (6, True)])
def test_plain_batches_give_loss_and_accuracy_and_no_localization(
    num_classes: int, has_acc5: bool
) -> None:
    module = small_module(num_classes=num_classes)
    quiet_trainer().fit(module, AnybodysData(num_classes))
    names = {"val/loss", "val/acc1", "val/ece", "val/cam_area", "val/cam_entropy"}
    names |= {"val/acc5"} if has_acc5 else set()
    assert scores_of(module, AnybodysData(num_classes)).keys() == names


def test_a_trainer_that_is_used_again_announces_no_replaced_callbacks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module, data, trainer = small_module(), AnybodysData(2), quiet_trainer(max_epochs=1)
    with caplog.at_level(logging.INFO, logger="pytorch_lightning.utilities.rank_zero"):
        trainer.validate(module, data, verbose=False)
        trainer.fit(module, data)
        trainer.validate(module, data, verbose=False)
    assert caplog.records
    assert "will override" not in caplog.text


def test_a_trainer_that_is_used_again_has_only_the_callbacks_of_the_new_module(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data, trainer, module = AnybodysData(2), quiet_trainer(max_epochs=1), small_module()
    with caplog.at_level(logging.INFO, logger="pytorch_lightning.utilities.rank_zero"):
        trainer.fit(small_module(ema_decay=0.5), data)
        trainer.validate(module, data, verbose=False)
    assert "will override" not in caplog.text
    assert not any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)
    evaluators = [callback for callback in trainer.callbacks if isinstance(callback, Evaluator)]
    assert evaluators == [module.evaluator]


class ForgetsSuper(CAMModule):
    """A module of somebody's own that drops the callbacks of ``CAMModule``."""

    def configure_callbacks(self) -> list[Callback]:
        """Only its own callback."""
        return [Callback()]


def test_a_module_that_drops_the_callbacks_is_refused() -> None:
    module = ForgetsSuper("camtrain/digits", 2, neck=(), backbone_args={"width": 4})
    with pytest.raises(CamtrainError, match=r"ForgetsSuper must .* \*super"):
        quiet_trainer().fit(module, AnybodysData(2))


def test_scores_are_those_of_the_plain_arithmetic() -> None:
    data, module = AnybodysData(3), small_module(num_classes=3)
    images, labels = data.pictures.tensors
    scores = scores_of(module, data)
    with torch.inference_mode():
        logits = module.eval()(images)
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert scores["val/loss"] == pytest.approx(loss, rel=1e-5)
    assert scores["val/acc1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_boxes_give_localization(boxed_data: CAMDataModule) -> None:
    scores = scores_of(small_module(), boxed_data)
    localization = ("loc_gt_known", "loc_top1", "loc_top5", "max_box_acc", "centre_box_acc")
    assert {f"val/{name}" for name in localization} < scores.keys()


@pytest.mark.parametrize("resize_mode", everyday(["squash", "crop", "pad"], "crop"))
def test_scores_do_not_depend_on_the_batch_size(photographs: Path, resize_mode: str) -> None:
    module, found = small_module(), []
    for batch_size in (1, 3, 8):
        data = CAMDataModule(
            root=photographs, size=32, workers=0, batch_size=batch_size, resize_mode=resize_mode
        )
        found.append(scores_of(module, data))
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[0] == pytest.approx(found[2], abs=1e-6)


def test_evaluation_is_float32_whatever_the_training_is(data: CAMDataModule) -> None:
    module = small_module()
    assert scores_of(module, data, precision="bf16-mixed") == scores_of(module, data)


def test_biases_and_norms_are_not_decayed(data: CAMDataModule) -> None:
    module = small_module(weight_decay=0.1)
    quiet_trainer(max_epochs=1).fit(module, data)
    optimizer = module.optimizers()
    decayed, kept = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert kept["weight_decay"] == 0
    assert {p.ndim for p in kept["params"]} == {1}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_both_optimizers_learn(optimizer: str, data: CAMDataModule) -> None:
    torch.manual_seed(0)
    module = small_module(optimizer=optimizer, lr=0.02)
    before = scores_of(module, data)["val/loss"]
    quiet_trainer(max_epochs=8).fit(module, data)
    assert scores_of(module, data)["val/loss"] < 0.9 * before


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [warmup_cosine(step, 4, 20) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[20] == pytest.approx(0)


def test_a_checkpoint_holds_plain_values_and_needs_no_weights_file(
    data: CAMDataModule, tmp_path: Path, shared: Path
) -> None:
    weights = shared / "weights" / "squeezenet1_1.safetensors"
    # Without a neck and with its own classes, the network keeps its own head: another architecture.
    module = CAMModule("squeezenet1_1", 1000, weights=weights, neck=())
    trainer = quiet_trainer(max_epochs=0)
    trainer.fit(module, AnybodysData(1000))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["hyper_parameters"]["weights"] is None
    loaded = CAMModule.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")
    for name, tensor in module.net.state_dict().items():
        assert torch.equal(tensor, loaded.net.state_dict()[name]), name


def test_class_names_and_preprocessing_come_from_the_data_and_stay(
    data: CAMDataModule, tmp_path: Path
) -> None:
    module, trainer = small_module(), quiet_trainer(max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for one in (module, CAMModule.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")):
        assert one.net.class_names == ("blue", "red")
        assert one.net.preprocessing == data.preprocessing
        assert one.map_threshold == module.map_threshold


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0"),
        ({"warmup_epochs": -1.0}, "warmup_epochs at least 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainError, match=message):
        small_module(**settings)


def test_a_training_without_an_end_is_refused(data: CAMDataModule) -> None:
    with pytest.raises(CamtrainError, match=r"has no end; give --trainer\.max_epochs"):
        quiet_trainer(max_epochs=-1).fit(small_module(), data)


class _Dictionaries(Dataset[dict[str, Any]]):
    """The pictures of ``AnybodysData`` under other names."""

    def __init__(self, *names: str) -> None:
        self.names, self.pictures = names, AnybodysData(2).pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(zip(self.names, self.pictures[index], strict=True))


# Names of own batches, and the sentence about them. Before, each ended with `KeyError: 0`.
BATCHES = {
    ("image", "label"): None,
    ("pixel_values", "labels"): None,
    ("photo", "kind"): "under image, images, .*, and labels under label, .*, got photo, kind",
}


@pytest.mark.parametrize("names", BATCHES)
def test_batches_may_be_dictionaries(names: tuple[str, ...], tmp_path: Path) -> None:
    loader = DataLoader(_Dictionaries(*names), batch_size=4)
    trainer = quiet_trainer(max_epochs=1, callbacks=[CAMLogger(2, dirpath=tmp_path / "cams")])
    module = small_module(class_names=["a", "b"], preprocessing=AnybodysData(2).preprocessing)
    if (message := BATCHES[names]) is None:
        trainer.fit(module, loader, loader)
        assert (tmp_path / "cams" / "epoch_001.jpg").is_file()
        return
    with (
        pytest.warns(UserWarning, match="cannot show the validation pictures"),
        pytest.raises(CamtrainTypeError, match=message),
    ):
        trainer.fit(module, loader, loader)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_own_scripts_may_watch_twice_or_have_no_validation(tmp_path: Path) -> None:
    """Before: "more than one stateful callback", and "`val_dataloader` must be implemented"."""
    loader = DataLoader(AnybodysData(2).pictures, batch_size=4)
    module = small_module(class_names=["a", "b"], preprocessing=AnybodysData(2).preprocessing)
    watchers = [CAMLogger(2, dirpath=tmp_path / name) for name in ("one", "two")]
    quiet_trainer(max_epochs=1, callbacks=watchers).fit(module, loader, loader)
    assert (tmp_path / "one" / "epoch_001.jpg").is_file()
    assert (tmp_path / "two" / "epoch_001.jpg").is_file()
    quiet_trainer(max_epochs=1, callbacks=[CAMLogger(dirpath=tmp_path / "none")]).fit(
        module, loader
    )
    assert (tmp_path / "none" / "report.html").is_file()
