"""Validations by steps: what a run writes of each, and that a continued run is the same."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from pytorch_lightning.callbacks import StochasticWeightAveraging

from camtrain.errors import CamtrainValueError
from camtrain.training import CAMDataModule, CAMModule, fit
from camtrain.training.cli.main import main as run
from tests.conftest import everyday
from tests.training.conftest import small_module
from tests.training.run.test_continuing import cut, last_of, rows_of
from tests.training.run.test_resume import assert_same, state_of

Arguments = Callable[..., list[str]]

__all__ = ["cut"]

# Five batches per epoch, two epochs. Of each form: the options; the (epoch, step) whose validation
# was written before, None where there was none; those that are written now.
ACROSS = ("--trainer.val_check_interval", "3", "--trainer.check_val_every_n_epoch", "null")
FORMS = {
    "a part of an epoch": (
        ("--trainer.val_check_interval", "0.4"),
        [(1, 5), (2, 10)],
        [(1, 2), (1, 4), (2, 7), (2, 9)],
    ),
    "batches": (("--trainer.val_check_interval", "5"), [(1, 5), (2, 10)], [(1, 5), (2, 10)]),
    "batches across epochs": (ACROSS, [], [(1, 3), (2, 6), (2, 9)]),
    "within a step": (
        ("--trainer.val_check_interval", "3", "--trainer.accumulate_grad_batches", "2"),
        [(1, 3), (2, 6)],
        [(1, 1), (2, 4)],
    ),
}
SMALL = ("--data.batch_size", "3", "--model.lr", "0.01", "--logger", "csv")


@pytest.mark.parametrize("form", everyday(FORMS, "batches across epochs"))
def test_each_validation_has_a_row_a_sheet_and_a_logged_step(
    form: str, fitted_once: Callable[..., Path]
) -> None:
    options, before, expected = FORMS[form]
    folder = fitted_once(*SMALL, *options)
    rows = rows_of(folder)
    validated = [row for row in rows if row["val/acc1"]]
    assert [(int(row["epoch"]), int(row["step"])) for row in validated] == expected
    assert (expected == before) == (form == "batches")
    assert all(row["train/loss"] for row in rows)
    assert {row["epoch"] for row in rows} == {"1", "2"}
    ends = {row["epoch"]: row["step"] for row in rows}
    sheets = [
        f"epoch_{epoch:03d}" + ("" if ends[f"{epoch}"] == f"{step}" else f"_step_{step:06d}")
        for epoch, step in expected
    ]
    names = {path.stem for path in (folder / "cams").iterdir()}
    assert names == {"epoch_000", "test", *sheets}
    assert {path.stem for path in (folder / "report").glob("epoch*")} >= {"epoch_000", *sheets}
    with open(folder / "csv" / "version_0" / "metrics.csv") as file:
        logged = [line for line in csv.DictReader(file) if line.get("val/acc1")]
    assert [line["epoch"] for line in logged] == [f"{epoch}.0" for epoch, _ in expected]
    assert [line["val/loss"][:9] for line in logged] == [row["val/loss"][:9] for row in validated]
    best = max(validated, key=lambda row: float(row["val/acc1"]))  # the first of equal ones
    writer = last_of(folder)["callbacks"]["RunWriter"]
    assert rows[writer["best"]["row"]] == best
    tested = CAMModule.load_from_checkpoint(folder / "checkpoints" / "best.ckpt").evaluator
    assert tested.loaded_epoch == int(best["epoch"])
    assert tested.loaded_step == (None if form == "batches" else int(best["step"]))


CUTS = [(form, step) for form in FORMS for step in (4, 5, 7, 10) if form != "batches"]


@pytest.mark.parametrize(("form", "batch"), everyday(CUTS, ("batches across epochs", 7)))
def test_a_run_that_was_cut_goes_on_as_if_it_were_not(
    form: str,
    batch: int,
    fit_arguments: Arguments,
    fitted_once: Callable[..., Path],
    tmp_path: Path,
    cut: Callable[..., None],
) -> None:
    """Law 8: continued from the validation before, or from the step before."""
    more = (*SMALL, *FORMS[form][0])
    cut(fit_arguments(*more), batch)
    run(fit_arguments(*more, "--ckpt_path", "last"))
    states = [state_of(folder) for folder in (tmp_path / "runs" / "run", fitted_once(*more))]
    for state in states:
        state["files"] = {file for file in state["files"] if not file.startswith("csv/")}
    assert_same(*states, "run")


STOPPING = "pytorch_lightning.callbacks.EarlyStopping"


@pytest.mark.parametrize("interval", everyday(["0.4", "1", "2"], "1"))
def test_early_stopping_counts_validations(
    interval: str, fit_arguments: Arguments, tmp_path: Path
) -> None:
    """Nothing changes with such a learning rate, so the second validation is the last one."""
    config = tmp_path / "stopping.yaml"
    settings = "{monitor: val/acc1, mode: max, patience: 1}"
    stopping = f"{{class_path: {STOPPING}, init_args: {settings}}}"
    config.write_text(f"trainer:\n  callbacks: [{stopping}]\n")
    more = ("--config", str(config), "--model.lr", "1e-12", "--data.batch_size", "3")
    run(fit_arguments(*more, "--trainer.val_check_interval", interval))
    rows = rows_of(tmp_path / "runs" / "run")
    steps = {"0.4": ["2", "4"], "1": ["1", "2"], "2": ["2", "4"]}[interval]
    assert [row["step"] for row in rows] == steps


def test_averaging_that_lightning_cannot_continue_is_refused(
    fitted: Callable[..., Path], data: CAMDataModule
) -> None:
    """Before, the continued run had other weights than the undisturbed one."""
    trainer = {"callbacks": [StochasticWeightAveraging(0.1)]}
    told = "cannot continue a training with Lightning's StochasticWeightAveraging"
    with pytest.raises(CamtrainValueError, match=told):
        fit(small_module(), data, folder=fitted(), ckpt_path="last", trainer=trainer)
