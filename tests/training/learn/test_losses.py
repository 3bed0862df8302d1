"""The loss of the training: soft targets, weights, mixing; and none that is no number."""

import doctest
from pathlib import Path

import pytest
import torch
from pytorch_lightning.tuner import Tuner
from torch import Tensor
from torch.nn import functional as F

from camtrain.cli import main
from camtrain.data import Batch
from camtrain.errors import CamtrainError
from camtrain.labels import Task
from camtrain.training import CAMDataModule, CAMModule
from camtrain.training.learn import callbacks, losses
from camtrain.training.learn.callbacks import rate_of_steepest_loss
from camtrain.training.learn.losses import TrainingLoss, balanced_weights, loss_of
from tests.training.cli.test_main import Arguments
from tests.training.conftest import quiet_trainer, small_module
from tests.training.learn.test_freezing import hash_of

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(4, 3, generator=GENERATOR)
LABELS = torch.tensor([2, 0, 1, 2])
HOT = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])


def test_the_examples_print_what_they_say() -> None:
    for module in (losses, callbacks):
        assert doctest.testmod(module).failed == 0


def test_smoothing_moves_the_targets() -> None:
    targets = 0.7 * F.one_hot(LABELS, 3) + 0.3 / 3
    expected = -(targets * LOGITS.log_softmax(1)).sum(1).mean()
    found = loss_of(LOGITS, LABELS, "multiclass", label_smoothing=0.3)
    assert found.item() == pytest.approx(expected.item())
    expected = F.binary_cross_entropy(LOGITS.sigmoid(), 0.7 * HOT + 0.15)
    found = loss_of(LOGITS, HOT, "multilabel", label_smoothing=0.3)
    assert found.item() == pytest.approx(expected.item())


def test_class_weights_weigh() -> None:
    weights = torch.tensor([1.0, 2.0, 0.0])
    each = F.cross_entropy(LOGITS, LABELS, reduction="none")
    expected = (each[1] + 2 * each[2]) / 3
    found = loss_of(LOGITS, LABELS, "multiclass", class_weights=weights)
    assert found.item() == pytest.approx(expected.item())
    positive, negative = -F.logsigmoid(LOGITS), -F.logsigmoid(-LOGITS)
    expected = (HOT * weights * positive + (1 - HOT) * negative).mean()
    found = loss_of(LOGITS, HOT, "multilabel", class_weights=weights)
    assert found.item() == pytest.approx(expected.item())


def test_balanced_weights_of_several_labels() -> None:
    assert balanced_weights(HOT, 3, "multilabel").tolist() == [1.0, 1.0, 1.0]
    assert balanced_weights(LABELS, 4, "multiclass").tolist() == [1.0, 1.0, 0.5, 1.0]


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_mixed_targets_are_the_shares_of_the_pixels(way: str, task: Task) -> None:
    labels = LABELS if task == "multiclass" else HOT
    # Each picture is its own number everywhere, so that the shares can be read off the pixels.
    images = torch.arange(4.0)[:, None, None, None].expand(4, 2, 5, 7).contiguous()
    mix = TrainingLoss(3, task, **{way: 1.0}).mix
    hot = F.one_hot(LABELS, 3).float() if task == "multiclass" else HOT.float()
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, targets = mix([images, labels])
        own, other = images[:, 0, 0, 0], images[:, 0, 0, 0].roll(1)
        share = ((mixed.mean((1, 2, 3)) - other) / (own - other))[:, None]
        torch.testing.assert_close(targets, share * hot + (1 - share) * hot.roll(1, 0))
        assert mixed.shape == images.shape
        torch.manual_seed(seed)
        assert torch.equal(mix([images, labels])[0], mixed)


def test_mixed_labels_are_a_soft_cross_entropy() -> None:
    targets = torch.rand(4, 3, generator=GENERATOR).softmax(1)
    expected = -(targets * LOGITS.log_softmax(1)).sum(1).mean()
    found = loss_of(LOGITS, targets, "multiclass", are_mixed=True)
    assert found.item() == pytest.approx(expected.item())
    expected = F.binary_cross_entropy(LOGITS.sigmoid(), targets)
    found = loss_of(LOGITS, targets, "multilabel", are_mixed=True)
    assert found.item() == pytest.approx(expected.item())


def test_the_evaluation_knows_none_of_it(data: CAMDataModule) -> None:
    settings = {"label_smoothing": 0.5, "class_weights": [5.0, 0.1], "mixup": 1.0}
    scores = []
    for more in (settings, {}):
        torch.manual_seed(0)
        module = small_module(**more)
        scores.append(quiet_trainer().validate(module, data, verbose=False))
    assert scores[0] == scores[1]


def test_balanced_weights_need_labels() -> None:
    from tests.training.test_module import AnybodysData

    with pytest.raises(CamtrainError, match="class_weights=balanced needs the labels"):
        quiet_trainer().fit(small_module(class_weights="balanced"), AnybodysData(2))


def without_a_number(monkeypatch: pytest.MonkeyPatch, epoch: int) -> list[str]:
    """Let the loss of the second batch of an epoch be NaN; returns the files of that batch."""
    original, named = TrainingLoss.__call__, []

    def broken(loss_of_batch: TrainingLoss, logits: Tensor, labels: Tensor) -> Tensor:
        loss = original(loss_of_batch, logits, labels)
        return loss * float("nan") if named else loss

    def note(module: CAMModule, batch: Batch, batch_idx: int) -> None:
        if module.current_epoch == epoch and batch_idx == 1:
            named.extend(getattr(batch, "paths", ["none"]))

    monkeypatch.setattr(TrainingLoss, "__call__", broken)
    monkeypatch.setattr(CAMModule, "on_train_batch_start", note)
    return named


def test_a_loss_that_is_no_number_stops_before_the_step(
    fit_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = without_a_number(monkeypatch, epoch=1)
    assert main(fit_arguments("--model.lr", "0.004", "--model.schedule", "constant")) == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("camtrain: error: With a learning rate of 0.004 the loss is nan at step")
    assert "step 3 (epoch 1, batch 1)" in line
    assert len(named) == 8
    assert f"{', '.join(named[:5])} and 3 more; the last checkpoint" in line
    folder = tmp_path / "runs" / "run" / "checkpoints"
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert all(tensor.isfinite().all() for tensor in last["state_dict"].values())


def test_the_step_is_not_taken_and_other_batches_are_named_by_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.training.test_module import AnybodysData

    without_a_number(monkeypatch, epoch=0)
    module = small_module(lr=0.1)
    with pytest.raises(CamtrainError, match=r"at step 1 \(epoch 0, batch 1\)"):
        quiet_trainer().fit(module, AnybodysData(2))
    assert all(parameter.isfinite().all() for parameter in module.net.parameters())


def test_the_rate_is_found_where_the_loss_falls_fastest() -> None:
    rates = [1e-6 * 10 ** (6 * n / 100) for n in range(100)]
    losses_ = [2.0 if n < 60 else max(0.5, 2.0 - 0.1 * (n - 60)) for n in range(100)]
    average, smoothed = 0.0, []
    for step, loss in enumerate(losses_, start=1):  # as Lightning's callback does
        average = 0.98 * average + 0.02 * loss
        smoothed.append(average / (1 - 0.98 ** (step + 1)))
    assert rates[60] < rate_of_steepest_loss(rates, smoothed) < rates[75]
    with pytest.raises(CamtrainError, match="no learning rate at which the loss falls"):
        rate_of_steepest_loss(rates, [float("nan")] * 100)


def test_losses_of_a_search_for_a_rate_do_not_stop_the_training_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.training.test_module import AnybodysData

    module, data = small_module(), AnybodysData(2)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoss, "__call__", lambda _, logits, labels: logits.sum() + torch.inf)
        trainer = quiet_trainer(default_root_dir=tmp_path)
        Tuner(trainer).lr_find(
            module, data, update_attr=False, num_training=3, early_stop_threshold=None
        )
    quiet_trainer().fit(module, data)


@pytest.mark.nightly
def test_finding_a_rate_leaves_everything_as_it_was(
    data: CAMDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = []
    for settings in ({"find_lr": True}, {}):
        torch.manual_seed(0)
        module = small_module(**settings, **({"lr": trained[0].hparams["lr"]} if trained else {}))
        torch.manual_seed(0)
        quiet_trainer().fit(module, data)
        trained.append(module)
    assert trained[0].hparams["lr"] != 1e-3
    assert hash_of(trained[0].net) == hash_of(trained[1].net)
    assert list(tmp_path.glob("**/.lr_find*")) == []
