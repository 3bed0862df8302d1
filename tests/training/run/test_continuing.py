"""Continuing a run: what may change, what is refused, and what the loggers show."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from camtrain.cli import main
from camtrain.training import CAMDataModule
from camtrain.training.cli.main import main as run
from camtrain.training.module import CAMModule
from tests.conftest import at_night
from tests.training.conftest import quiet_trainer, small_module
from tests.training.run.wandb_file import history

Arguments = Callable[..., list[str]]

LAST = ("--ckpt_path", "last")


class PowerCutError(RuntimeError):
    """What ends a training in the middle."""


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a training up to a step."""

    def cut_at(args: list[str], step: int) -> None:
        original, calls = CAMModule.training_step, iter(range(1, step + 1))

        def step_or_cut(module: CAMModule, batch: object, batch_idx: int) -> torch.Tensor:
            if next(calls) == step:
                raise PowerCutError
            return original(module, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(CAMModule, "training_step", step_or_cut)
            with pytest.raises(PowerCutError):
                run(args)

    return cut_at


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def last_of(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


def assert_same_weights(one: Path, other: Path) -> None:
    expected = last_of(other)["state_dict"]
    for name, tensor in last_of(one)["state_dict"].items():
        assert torch.equal(tensor, expected[name]), name


BY_3 = ("--data.batch_size", "3")
WAYS = {
    "accumulated gradients": (("--trainer.accumulate_grad_batches", "2", *BY_3), (4, 9)),
    "a balanced order": (("--data.sampler", "balanced", *BY_3), (4, 8)),
    "steps instead of epochs": (
        ("--trainer.max_steps", "12", "--trainer.max_epochs", "20", *BY_3),
        (4, 7, 11),
    ),
    "validation within epochs": (("--trainer.val_check_interval", "2", *BY_3), (2, 3, 5, 8)),
    "validation every other epoch": (("--trainer.check_val_every_n_epoch", "2"), (2, 4)),
}
CUTS = [(way, step) for way, (_, steps) in WAYS.items() for step in steps]


@pytest.mark.nightly
@pytest.mark.parametrize(("way", "step"), CUTS)
def test_every_way_of_training_goes_on_exactly(
    way: str,
    step: int,
    fit_arguments: Arguments,
    fitted_once: Callable[..., Path],
    tmp_path: Path,
    cut: Callable[..., None],
) -> None:
    more = ("--model.dropout", "0.5", "--save_every_minutes", "0", *WAYS[way][0])
    whole, folder = fitted_once(*more), tmp_path / "runs" / "run"
    cut(fit_arguments(*more), step)
    run(fit_arguments(*more, *LAST))
    assert_same_weights(folder, whole)
    assert rows_of(folder) == rows_of(whole)


CHANGES = {
    "the score of the best": (
        ["--monitor", "val/loss"],
        "monitor was 'val/acc1', got 'val/loss'",
    ),
    "the network": (
        ["--model.neck", "[4]"],
        "settings it began with: model.neck was [], got [4]",
    ),
    "the learning rate": (["--model.lr", "0.5"], "model.lr was 0.001, got 0.5"),
    "the optimizer": (["--model.optimizer", "sgd"], "model.optimizer was 'adamw', got 'sgd'"),
    "the augmentation": (["--data.augment", "none"], "data.augment was 'light', got 'none'"),
    "the batch size": (["--data.batch_size", "4"], "data.batch_size was 8, got 4"),
    "the accumulation": (
        ["--trainer.accumulate_grad_batches", "2"],
        "as many steps per epoch as it began with, 2, got 1",
    ),
    "fewer epochs": (["--trainer.max_epochs", "1"], "trainer.max_epochs must be at least 2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_would_make_it_another_training_is_refused(
    change: str,
    fit_arguments: Arguments,
    fitted: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fitted()
    runs = tmp_path / "runs"
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    more, told = CHANGES[change]
    args = [*fit_arguments(*LAST, "--trainer.max_epochs", "3"), *more]
    assert main(args) == 2
    assert told in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore:.* boxes are of no picture")
def test_other_pictures_are_refused_within_an_epoch(
    fit_arguments: Arguments,
    photographs: Path,
    cut: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = fit_arguments("--data.batch_size", "4", "--save_every_minutes", "0")
    cut(args, 3)
    (photographs / "train" / "red" / "7.png").unlink()
    assert main([*args, *LAST]) == 2
    assert "number of training pictures was 16, got 15" in capsys.readouterr().err


@pytest.mark.nightly
def test_more_workers_and_another_place_are_no_other_training(
    fit_arguments: Arguments, tmp_path: Path, photographs: Path, cut: Callable[..., None]
) -> None:
    more = ("--data.batch_size", "4", "--save_every_minutes", "0")
    run(fit_arguments(*more, "--name", "whole"))
    cut(fit_arguments(*more, "--name", "cut"), 3)
    moved = photographs.rename(tmp_path / "moved")
    others = ("--data.root", str(moved), "--data.workers", "1")
    run([*fit_arguments(*more, "--name", "cut", *LAST), *others])
    assert_same_weights(tmp_path / "runs" / "cut", tmp_path / "runs" / "whole")


def test_a_finished_run_can_be_trained_longer(
    fit_arguments: Arguments,
    fitted: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fitted("--model.lr", "0.01")
    capsys.readouterr()
    run(fit_arguments("--model.lr", "0.01", *LAST, "--trainer.max_epochs", "4"))
    # 4 of 8 steps, 2 of them warm-up: a third of the half cosine.
    assert "has 8 steps now, 4 before" in (told := capsys.readouterr().out)
    assert "with 0.0075" in told
    assert [row["epoch"] for row in rows_of(tmp_path / "runs" / "run")] == ["1", "2", "3", "4"]
    before = last_of(tmp_path / "runs" / "run")["state_dict"]
    run(fit_arguments("--model.lr", "0.01", *LAST, "--trainer.max_epochs", "4"))
    assert len(rows_of(tmp_path / "runs" / "run")) == 4
    for name, tensor in last_of(tmp_path / "runs" / "run")["state_dict"].items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.nightly
def test_a_run_that_stopped_early_has_ended(
    fit_arguments: Arguments, tmp_path: Path, cut: Callable[..., None]
) -> None:
    config = tmp_path / "stopping.yaml"
    kind = "pytorch_lightning.callbacks.EarlyStopping"
    stopping = f"{{class_path: {kind}, init_args: {{monitor: val/acc1, mode: max, patience: 1}}}}"
    config.write_text(f"trainer:\n  callbacks: [{stopping}]\n")
    # Nothing changes with such a learning rate, so that it stops after the second epoch.
    more = ("--config", str(config), "--trainer.max_epochs", "6", "--model.lr", "1e-12")
    cut(fit_arguments(*more), 4)
    run(fit_arguments(*more, *LAST))
    assert len(rows_of(tmp_path / "runs" / "run")) == 2
    run(fit_arguments(*more, *LAST))
    assert len(rows_of(tmp_path / "runs" / "run")) == 2


@pytest.mark.nightly
def test_tensorboard_shows_no_step_twice(
    fit_arguments: Arguments, tmp_path: Path, cut: Callable[..., None]
) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    more = ("--logger", "tensorboard", "--data.batch_size", "4", "--trainer.max_epochs", "3")
    cut(fit_arguments(*more), 7)
    run(fit_arguments(*more, *LAST))
    events = accumulators.EventAccumulator(str(tmp_path / "runs" / "run" / "tensorboard"))
    events.Reload()
    for name in ("train/loss", "val/acc1"):
        assert [event.step for event in events.Scalars(name)] == [3, 7, 11], name
    assert [event.step for event in events.Images("val/cams")] == [0, 3, 7, 11]


@pytest.mark.nightly
def test_wandb_goes_on_with_the_same_run(
    fit_arguments: Arguments,
    tmp_path: Path,
    cut: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    more = ("--logger", "wandb", "--data.batch_size", "4")
    cut(fit_arguments(*more), 6)
    wandb.finish()
    run(fit_arguments(*more, *LAST))
    wandb.teardown()  # its service writes the file in its own time
    parts = sorted((tmp_path / "runs" / "run" / "wandb").glob("offline-run-*"))
    number = (tmp_path / "runs" / "run" / "wandb" / "run_id").read_text()
    assert {part.name.rpartition("-")[2] for part in parts} == {number}
    assert f"wandb sync {' '.join(map(str, parts))}" in capsys.readouterr().out
    logged = [history(next(part.glob("*.wandb"))) for part in parts]
    steps = [[int(row["_step"]) for row in rows] for rows in logged]
    assert max(steps[0]) < min(steps[1])
    losses = [row["trainer/global_step"] for rows in logged for row in rows if "train/loss" in row]
    assert losses == ["3", "7"]


WITHIN = ("--trainer.val_check_interval", "1")
STEPS = ("--trainer.max_epochs", "-1", "--trainer.max_steps")
VALIDATIONS = [
    ((), 1, 2),
    ((), 2, 4),
    (WITHIN, 1, 1),
    ((*STEPS, "3"), 2, 3),  # the last part of an epoch
    ((*STEPS, "4"), 2, 4),
]


@pytest.mark.parametrize(
    ("more", "validation", "steps"), at_night(VALIDATIONS, VALIDATIONS[0], VALIDATIONS[4])
)
def test_a_validation_that_fails_loses_no_step(
    more: tuple[str, ...],
    validation: int,
    steps: int,
    fit_arguments: Arguments,
    fitted_once: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where nothing is written within epochs; the validation is held by the next start."""
    more = ("--model.dropout", "0.5", "--save_every_minutes", "null", *more)
    whole, folder, calls = fitted_once(*more), tmp_path / "runs" / "run", iter(range(1, 99))
    original = CAMModule.validation_step

    def failing(module: CAMModule, *args: Any) -> None:
        if next(calls) == validation:
            raise PowerCutError
        original(module, *args)

    with monkeypatch.context() as patch:
        patch.setattr(CAMModule, "validation_step", failing)
        with pytest.raises(PowerCutError):
            run(fit_arguments(*more))
    assert last_of(folder)["global_step"] == steps
    run(fit_arguments(*more, *LAST))
    assert_same_weights(folder, whole)
    assert rows_of(folder) == rows_of(whole)
    assert files_of(folder) == files_of(whole)


def test_what_the_end_derives_is_derived_by_a_later_start(
    fit_arguments: Arguments, fitted: Callable[..., Path]
) -> None:
    folder = fitted()
    derived = [folder / "over_epochs.png", folder / "cams" / "test.jpg"]
    contents = [path.read_bytes() for path in derived]
    for path in derived:
        path.unlink()
    run(fit_arguments(*LAST))
    assert contents == [path.read_bytes() for path in derived]


def test_a_run_stopped_before_its_first_checkpoint_starts_anew(
    fit_arguments: Arguments, tmp_path: Path, cut: Callable[..., None]
) -> None:
    cut(fit_arguments(), 1)
    assert not (tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt").exists()
    assert main(fit_arguments(*LAST)) == 0
    assert len(rows_of(tmp_path / "runs" / "run")) == 2


def test_another_run_s_checkpoint_begins_a_run_of_its_own(
    fit_arguments: Arguments, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    fitted()
    best = tmp_path / "runs" / "run" / "checkpoints" / "best.ckpt"
    more = ("--name", "other", "--ckpt_path", str(best), "--trainer.max_epochs", "3")
    assert main(fit_arguments(*more)) == 0
    assert (tmp_path / "runs" / "other" / "model.safetensors").is_file()
    assert len(rows_of(tmp_path / "runs" / "other")) == 3


NO_STATE = "holds no state that a training can go on from"


def no_state(content: dict[str, Any]) -> None:
    del content["optimizer_states"]


def other_loops(content: dict[str, Any]) -> None:
    content["loops"]["fit_loop"]["epoch_progress"]["current"] = 3


def other_optimizer(content: dict[str, Any]) -> None:
    content["optimizer_states"] = [{"state": 3}]


def other_tensors(content: dict[str, Any]) -> None:
    content["state_dict"]["net.head.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "; give another one, or take it from its source again."),
        (no_state, "(KeyError: 'optimizer_states')"),
        (other_optimizer, NO_STATE),
        pytest.param(other_loops, NO_STATE, marks=pytest.mark.nightly),
        pytest.param(other_tensors, NO_STATE, marks=pytest.mark.nightly),
    ],
)
def test_no_training_goes_on_from_a_damaged_checkpoint_and_nothing_is_left(
    damage: Callable[[dict[str, Any]], None] | None,
    message: str,
    fit_arguments: Arguments,
    fitted: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before: tracebacks, and a folder in which the next start was refused."""
    last = fitted() / "checkpoints" / "last.ckpt"
    if damage is None:
        last.write_bytes(last.read_bytes()[:3000])
    else:
        content = torch.load(last, weights_only=True)
        damage(content)
        torch.save(content, last)
    longer = ("--trainer.max_epochs", "3")
    for more in (LAST, ("--name", "other", "--ckpt_path", str(last))):
        assert main(fit_arguments(*longer, *more)) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
    if damage in (None, no_state, other_loops):
        assert not (tmp_path / "runs" / "other").exists()
    if damage is None:
        assert main(fit_arguments("--name", "other", "--trainer.max_epochs", "1")) == 0


def test_a_time_below_zero_is_refused(
    fit_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_arguments("--save_every_minutes", "-1")) == 2
    assert "save_every_minutes must be at least 0" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_testing_a_checkpoint_does_not_shorten_a_later_training(
    fit_arguments: Arguments, tmp_path: Path, photographs: Path
) -> None:
    run(fit_arguments("--trainer.max_epochs", "1"))
    best = tmp_path / "runs" / "run" / "checkpoints" / "best.ckpt"
    data = CAMDataModule(root=photographs, size=32, batch_size=8, workers=0)
    module, trainer = small_module(), quiet_trainer(max_epochs=1)
    trainer.test(module, data, ckpt_path=str(best), verbose=False)
    trainer.fit(module, data)
    assert trainer.global_step == 2


@pytest.mark.nightly
@pytest.mark.parametrize("schedule", ["cosine", "poly", "warmup_cosine"])
def test_a_longer_training_follows_the_longer_schedule(
    schedule: str,
    fit_arguments: Arguments,
    fitted: Callable[..., Path],
    fitted_once: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ("--model.schedule", schedule, "--model.warmup_epochs", "0")
    folder = fitted(*more)
    run(fit_arguments(*more, *LAST, "--trainer.max_epochs", "4"))
    assert "has 8 steps now, 4 before" in capsys.readouterr().out
    [group, *_] = last_of(folder)["optimizer_states"][0]["param_groups"]
    whole = fitted_once(*more, "--trainer.max_epochs", "4")
    [expected, *_] = last_of(whole)["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(expected["lr"])


@pytest.mark.nightly
def test_the_last_steps_are_validated_where_they_end_within_an_epoch(
    fit_arguments: Arguments, tmp_path: Path
) -> None:
    run(fit_arguments("--trainer.max_epochs", "-1", "--trainer.max_steps", "3"))
    folder = tmp_path / "runs" / "run"
    assert [row["step"] for row in rows_of(folder)] == ["2", "3"]
    assert all(row["val/acc1"] for row in rows_of(folder))
    assert (folder / "model.safetensors").is_file()


def test_a_run_without_a_validation_says_so(
    fit_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_arguments("--trainer.limit_val_batches", "0")) == 0
    assert "No epoch was validated" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "run" / "model.safetensors").exists()


@pytest.mark.nightly
def test_a_found_rate_is_kept_when_the_training_goes_on(
    fit_arguments: Arguments, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "run"
    found = ("--model.find_lr", "true")
    run(fit_arguments(*found))
    rate = last_of(folder)["hyper_parameters"]["lr"]
    run(fit_arguments(*found, *LAST, "--trainer.max_epochs", "3"))
    assert last_of(folder)["hyper_parameters"]["lr"] == rate != 1e-3
    assert last_of(folder)["optimizer_states"][0]["param_groups"][0]["initial_lr"] == rate


def test_a_run_is_continued_by_its_name_with_its_own_settings(
    fit_arguments: Arguments,
    fitted: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = fitted("--data.augment", "flip", "--model.lr", "0.01")
    monkeypatch.chdir(tmp_path)
    name = ["fit", "--name", "run", *LAST]
    assert main([*name, "--model.lr", "0.5"]) == 2
    assert "model.lr was 0.01, got 0.5" in capsys.readouterr().err
    assert main([*name, "--trainer.max_epochs", "3"]) == 0
    whole = ("--data.augment", "flip", "--model.lr", "0.01", "--trainer.max_epochs", "3")
    run(fit_arguments(*whole, "--name", "whole"))
    assert [row["epoch"] for row in rows_of(folder)] == ["1", "2", "3"]
    assert "augment: flip" in (folder / "config.yaml").read_text()
    assert main(["fit", "--config", str(folder / "config.yaml"), "--name", "again"]) == 0
    again, whole_folder = tmp_path / "runs" / "again", tmp_path / "runs" / "whole"
    assert_same_weights(again, whole_folder)
    assert rows_of(again) == rows_of(whole_folder)
