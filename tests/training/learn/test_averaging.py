"""The average of the weights: what it is, and that it is what is evaluated and shipped."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file
from torch import Tensor

from camtrain.training import CAMDataModule
from camtrain.training.cli.main import main as run
from tests.conftest import everyday
from tests.training.cli.test_main import Arguments
from tests.training.conftest import quiet_trainer, small_module


class Steps(Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Note them."""
        state = pl_module.net.state_dict()
        self.found.append({name: tensor.clone() for name, tensor in state.items()})


def test_the_average_is_that_of_the_formula(data: CAMDataModule) -> None:
    module, steps = small_module(ema_decay=0.7, lr=0.01), Steps()
    quiet_trainer(max_epochs=3, callbacks=[steps]).fit(module, data)
    average = steps.found[0]
    for state in steps.found[1:]:
        for name, tensor in state.items():
            is_counter = not tensor.is_floating_point()
            average[name] = tensor if is_counter else 0.7 * average[name] + 0.3 * tensor
    for name, tensor in module.net.state_dict().items():
        torch.testing.assert_close(tensor, average[name])


def test_averaging_leaves_the_training_alone(data: CAMDataModule) -> None:
    found = []
    for settings in ({"ema_decay": 0.7}, {}):
        torch.manual_seed(0)
        module, steps = small_module(**settings), Steps()
        torch.manual_seed(0)
        quiet_trainer(callbacks=[steps]).fit(module, data)
        found.append(steps.found[-1])
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_accumulated_batches_are_one_step(data: CAMDataModule) -> None:
    module, steps = small_module(ema_decay=0.5, lr=0.01, freeze_backbone=True), Steps()
    quiet_trainer(accumulate_grad_batches=2, callbacks=[steps]).fit(module, data)
    first, second = steps.found[1]["head.weight"], steps.found[3]["head.weight"]
    torch.testing.assert_close(module.net.head.weight, (first + second) / 2)


@pytest.mark.parametrize("ema_decay", everyday(["0.5", "null"], "0.5"))
def test_bundle_and_best_checkpoint_are_what_was_evaluated(
    ema_decay: str, fit_arguments: Arguments, tmp_path: Path
) -> None:
    run(fit_arguments("--model.ema_decay", ema_decay, "--trainer.max_epochs", "3"))
    folder = tmp_path / "runs" / "run"
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    bundle = load_file(folder / "model.safetensors")
    for name, tensor in bundle.items():
        assert torch.equal(tensor, best["state_dict"][f"net.{name}"]), name
    if ema_decay != "null":
        current = best["current_model_state"]["net.head.weight"]
        assert not torch.equal(bundle["head.weight"], current)
