"""Trainings on a GPU: laws 3 and 8, and what can go wrong there."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.model.images import to_device
from camtrain.training import CAMModule
from tests.by_two import run_by_two
from tests.gpu.conftest import ACCELERATOR, DEVICE, PRECISIONS, fit_on, tf32_in_convolutions
from tests.training.conftest import small_module

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

DETERMINISTIC: dict[str, Any] = {"deterministic": True, "max_epochs": 3}
RANDOM: dict[str, Any] = {"dropout": 0.3, "mixup": 0.2, "lr": 0.01}


def rows_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{n: float(v) for n, v in row.items() if v} for row in csv.DictReader(file)]


def state_of(folder: Path) -> dict[str, Tensor]:
    content = torch.load(folder / "checkpoints" / "last.ckpt", "cpu", weights_only=True)
    state: dict[str, Tensor] = content["state_dict"]
    return state


def assert_same_bits(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []


class AtStep(Callback):
    """Calls ``act`` before the batch of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        """Act if it is time."""
        if trainer.global_step == self.step:
            self.act(trainer)

    def act(self, trainer: Trainer) -> None:
        """Stop, as Ctrl-C does."""
        raise KeyboardInterrupt


class OutOfMemory(AtStep):
    """Asks for 16 TiB; without a GPU it raises what a GPU would."""

    def act(self, trainer: Trainer) -> None:
        """Ask for it."""
        if DEVICE.type != "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16384.00 GiB.")
        torch.empty(2**44, dtype=torch.uint8, device=DEVICE)


class Features(Callback):
    """Keeps the cached features of train and val."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take them: the test after the training works without."""
        data = cast("Any", trainer).datamodule
        cached = [data.cached(split) for split in ("train", "val")]
        self.maps = [c.features(index).float() for c in cached for index in range(len(c))]


class NoWaiting(Callback):
    """Makes every wait for the GPU in a training step an error; torch sees those of its own."""

    def __init__(self) -> None:
        self.steps = 0

    def _set(self, mode: str) -> None:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        """Begin; the first steps log a picture of the batch and set up what lasts."""
        if trainer.global_step >= 2:
            self.steps += 1
            self._set("error")

    def on_before_zero_grad(self, trainer: Trainer, *_: object) -> None:
        """Go on; here to show that the step takes place in between."""

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Let the loss be logged, which waits for it."""
        self._set("default")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, error: BaseException
    ) -> None:
        """Let whatever follows wait."""
        self._set("default")


class NotFinite(CAMModule):
    """Has a loss that is NaN in the third step."""

    def _loss_of(self, batch: Any) -> Tensor:  # noqa: ANN401
        loss = super()._loss_of(batch)
        return loss * torch.nan if self.global_step == 2 else loss


@pytest.mark.parametrize("precision", PRECISIONS)
def test_law_3_a_frozen_backbone_is_bit_identical(
    precision: str, photographs: Path, tmp_path: Path
) -> None:
    module = small_module(freeze_backbone=True)
    before = {name: tensor.clone() for name, tensor in module.net.backbone.state_dict().items()}
    head = module.net.head.weight.detach().clone()
    trainer = {"precision": precision}
    data = {"cache_features": False}
    fit_on(ACCELERATOR, photographs, tmp_path / "run", module=module, data=data, trainer=trainer)
    after = {name: t.cpu() for name, t in module.net.backbone.state_dict().items()}
    assert_same_bits(after, before)
    assert not torch.equal(module.net.head.weight.cpu(), head)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_law_8_a_resumed_run_has_the_same_bits(
    precision: str, photographs: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"settings": RANDOM, "save_every_minutes": 0}
    trainer = {**DETERMINISTIC, "precision": precision}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit_on(ACCELERATOR, photographs, whole, trainer=trainer, **options)
    stopped = {**trainer, "callbacks": [AtStep(3)]}
    with pytest.raises(KeyboardInterrupt):
        fit_on(ACCELERATOR, photographs, cut, trainer=stopped, **options)
    fit_on(ACCELERATOR, photographs, cut, trainer=trainer, ckpt_path="last", **options)
    assert_same_bits(state_of(cut), state_of(whole))
    assert rows_of(cut) == rows_of(whole)


def test_a_run_moves_between_cpu_and_gpu_and_says_what_is_not_identical(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    legs = (("cpu", "32-true"), (ACCELERATOR, "bf16-mixed"), ("cpu", "32-true"))
    for number, (accelerator, precision) in enumerate(legs, start=1):
        trainer = {"max_epochs": number, "precision": precision}
        ckpt_path = None if number == 1 else "last"
        fit_on(accelerator, photographs, folder, trainer=trainer, ckpt_path=ckpt_path)
        said = "it does not end with the bits" in capsys.readouterr().out
        assert said == (number > 1)
    losses = [row["train/loss"] for row in rows_of(folder)]
    assert len(losses) == 3
    assert all(0 < loss < 10 for loss in losses)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_a_loss_that_is_not_finite_ends_the_training_before_its_step(
    precision: str, photographs: Path, tmp_path: Path
) -> None:
    settings = {"backbone": "camtrain/digits", "num_classes": 2, "neck": ()}
    module = NotFinite(**settings, backbone_args={"width": 4})
    trainer = {"precision": precision}
    with pytest.raises(CamtrainValueError, match="the loss is nan at step 2"):
        fit_on(ACCELERATOR, photographs, tmp_path / "run", module=module, trainer=trainer)
    assert all(parameter.isfinite().all() for parameter in module.net.parameters())
    plain = {"num_classes": 2}
    fit_on(
        ACCELERATOR,
        photographs,
        tmp_path / "run",
        settings=plain,
        trainer=trainer,
        ckpt_path="last",
    )
    assert len(rows_of(tmp_path / "run")) == 2


def test_out_of_memory_is_one_sentence_and_the_run_goes_on(
    photographs: Path, tmp_path: Path
) -> None:
    folder, words = tmp_path / "run", "a batch of 8 pictures of 3 channels and 32x32 pixels"
    trainer = {"callbacks": [OutOfMemory(3)]}
    with pytest.raises(CamtrainValueError, match=words) as caught:
        fit_on(ACCELERATOR, photographs, folder, trainer=trainer)
    assert "16384.00 GiB" in str(caught.value)
    assert "last.ckpt is whole" in str(caught.value)
    fit_on(ACCELERATOR, photographs, folder, ckpt_path="last")
    assert len(rows_of(folder)) == 2


def train_one_of_two(root: Path, folder: Path) -> None:
    """Train as one of two nodes that have the same device."""
    from pytorch_lightning.strategies import DDPStrategy

    os.environ |= {"NODE_RANK": os.environ["LOCAL_RANK"], "LOCAL_RANK": "0"}
    os.environ["XDG_CACHE_HOME"] = str(folder.parent / "xdg")
    strategy = DDPStrategy(process_group_backend="gloo")
    trainer = {"strategy": strategy, "num_nodes": 2, "max_epochs": 2}
    _, module, _ = fit_on(ACCELERATOR, root, folder, data={"batch_size": 4}, trainer=trainer)
    weights = torch.cat([p.detach().double().cpu().flatten() for p in module.net.parameters()])
    print(f"weights {weights.sum().item():.17g} of {module.trainer.world_size}", file=sys.stderr)


def test_two_processes_share_one_device(photographs: Path, tmp_path: Path) -> None:
    printed = run_by_two(train_one_of_two, photographs, tmp_path / "run")
    weights = [
        line for text in printed for line in text.splitlines() if line.startswith("weights ")
    ]
    assert len(weights) == 2
    assert len(set(weights)) == 1
    assert weights[0].endswith("of 2")
    assert len(rows_of(tmp_path / "run")) == 2


def test_the_feature_cache_equals_that_of_the_cpu_to_rounding(
    photographs: Path, tmp_path: Path
) -> None:
    features = []
    with tf32_in_convolutions(False):
        for number, accelerator in enumerate(("cpu", ACCELERATOR)):
            settings = {"freeze_backbone": True, "refine": "affinity"}
            data = {"augment": "flip", "cache_features": True}
            data["cache_dir"] = str(tmp_path / f"cache {number}")
            folder, filled = tmp_path / f"run {number}", Features()
            trainer = {"callbacks": [filled], "max_epochs": 1}
            fit_on(accelerator, photographs, folder, settings=settings, data=data, trainer=trainer)
            assert len(filled.maps) == 24
            features.append(filled.maps)
    for values, expected in zip(features[1], features[0], strict=True):
        # They are stored in float16.
        torch.testing.assert_close(values, expected, rtol=2e-3, atol=1e-3 * float(expected.max()))


@pytest.mark.parametrize("settings", [{}, {"freeze_backbone": True}, {"foreground": True}], ids=str)
def test_a_training_step_waits_for_nothing(
    settings: dict[str, Any], photographs: Path, tmp_path: Path
) -> None:
    guard = NoWaiting()
    trainer = {"callbacks": [guard], "precision": "bf16-mixed", "max_epochs": 3}
    data = {"cache_features": False, "workers": 2}
    fit_on(
        ACCELERATOR, photographs, tmp_path / "run", settings=settings, data=data, trainer=trainer
    )
    assert guard.steps == 4


def test_watched_pictures_are_copied_from_pinned_memory() -> None:
    images = torch.rand(4, 3, 32, 48)
    if DEVICE.type == "cuda":
        torch.zeros(1, device=DEVICE)
        torch.cuda.set_sync_debug_mode("error")
    try:
        moved = to_device(images, DEVICE)
    finally:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert moved.device.type == DEVICE.type
    assert torch.equal(moved.cpu(), images)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_is_watched_and_shipped(precision: str, photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = {"refine": "affinity", "channels_last": True, "ema_decay": 0.9}
    data = {"workers": 2, "resize_mode": "crop"}
    trainer = {"precision": precision}
    result, _, _ = fit_on(
        ACCELERATOR, photographs, folder, settings=settings, data=data, trainer=trainer
    )
    assert sorted(path.name for path in (folder / "cams").iterdir()) == [
        *("epoch_000.jpg", "epoch_001.jpg", "epoch_002.jpg", "test.jpg")
    ]
    assert (folder / "report.html").is_file()
    assert result.bundle.is_file()
    assert 0 <= result.scores["test/max_box_acc"] <= 1
    assert "test/srg" in result.scores
