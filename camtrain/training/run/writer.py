"""Keeps a run folder up to date, so that a run killed at any moment can be continued exactly."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from pytorch_lightning.utilities.seed import isolate_rng

from camtrain.errors import CamtrainValueError
from camtrain.files import duplicate, remove_parts, write_text
from camtrain.inference.bundle import read_network, write_bundle
from camtrain.model.modules import is_import_path
from camtrain.training.datamodule import CAMDataModule
from camtrain.training.evaluate.scores import is_smaller_better
from camtrain.training.run.folder import RunFolder, as_csv
from camtrain.training.run.loggers import describe_data, summarize_best, wandb_step
from camtrain.training.run.machine import announce_other_device, machine_state, set_random_state
from camtrain.training.run.resume import (
    check_same_steps,
    end_validation_left,
    follow_new_schedule,
    limit_to_rest,
    start_loop_always,
)
from camtrain.training.run.signals import StopSignals
from camtrain.training.run.trainer import ends_epoch

if TYPE_CHECKING:
    from camtrain.training.module import CAMModule

_VAL_PROGRESS = "epoch_loop.val_loop.batch_progress"


class RunWriter(Checkpoint):
    """Writes ``last.ckpt``, and from it ``metrics.csv``, ``best.ckpt`` and the bundle.

    After a validation, and at the end of an epoch, ``last.ckpt`` is written first and holds
    everything, also the scores; the other files are derived from it. If a run is killed in between,
    they are derived when it is continued.
    Within an epoch ``last.ckpt`` is written from time to time, and when the training has to stop:
    after a whole optimizer step. It is also written before a validation, which may fail (then no
    other callback has exchanged the weights yet, as an average of them does).

    Attributes:
        rows: Rows of ``metrics.csv``.
        best: Epoch, from 1, score and row (its place in ``rows``) of the best validation, or None.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        monitor: str,
        signals: StopSignals,
        config: str,
        every_minutes: float | None,
    ) -> None:
        """For ``monitor``, ``config`` and ``every_minutes`` see ``fit``."""
        if every_minutes is not None and not every_minutes >= 0:
            raise CamtrainValueError(
                "save_every_minutes must be at least 0, or None (null) for never, got "
                f"{every_minutes}."
            )
        self.folder = folder
        self.monitor = monitor
        self.signals = signals
        self.config = config
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self._seconds = math.inf if every_minutes is None else 60 * every_minutes
        self._saved_at = time.monotonic()
        self._has_validated = False
        self._is_epoch_end = False  # whether the checkpoint is that of a whole epoch
        self._is_scored = False  # whether it is that of the last row
        self._stored_run: dict[str, Any] = {}
        self._random: dict[str, Any] | None = None  # to be restored before the next batch

    def state_dict(self) -> dict[str, Any]:
        """The rows so far and the best epoch, so that no row is lost or doubled."""
        return {
            "rows": self.rows,
            "best": self.best,
            "is_epoch_end": self._is_epoch_end,
            "is_scored": self._is_scored,
            "monitor": self.monitor,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` has returned."""
        self.rows = list(state_dict["rows"])
        self.best = state_dict.get("best")  # missing in checkpoints of earlier versions
        if self.best is not None and "row" not in self.best:  # they had a row per epoch
            epochs = [row["epoch"] for row in self.rows]
            self.best = {**self.best, "row": epochs.index(self.best["epoch"])}
        self._is_epoch_end = state_dict.get("is_epoch_end", False)
        self._is_scored = state_dict.get("is_scored", self._is_epoch_end)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the state that Lightning does not store."""
        is_validating = trainer.validating and not self._is_scored
        checkpoint["run"] = {
            **machine_state(trainer),
            "has_stopped": trainer.should_stop and not _has_all_steps(trainer),
            "steps_per_epoch": _steps_per_epoch(trainer),
            "steps": trainer.estimated_stepping_batches,
            "is_validating": is_validating,
            "wandb_step": wandb_step(trainer.loggers),
        }
        if is_validating:
            # Lightning assumes a run resumed at an epoch boundary has validated already and would
            # skip it.
            progress = checkpoint["loops"]["fit_loop"][_VAL_PROGRESS]
            for part in (progress["total"], progress["current"]):
                completed = part["completed"]
                part.update(ready=completed + 1, started=completed + 1, processed=completed)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore what ``on_save_checkpoint`` has added."""
        if getattr(pl_module, "is_trying_rates", False):  # a search for a learning rate rewinds
            return
        self._stored_run = checkpoint.get("run", {})
        states = self._stored_run.get("random", [])
        self._random = states[trainer.global_rank] if len(states) == trainer.world_size else None
        state = checkpoint["callbacks"].get(self.state_key, {})
        if state.get("is_epoch_end") and trainer.max_steps != -1:
            progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
            for part in (progress["total"], progress["current"]):
                part["completed"] = part["processed"]  # else the epoch would end a second time

    def write_config(self) -> None:
        """Write ``config.yaml``, which marks the folder as a run."""
        write_text(self.folder.config, self.config, encoding=None)  # as jsonargparse reads it

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Derive the files that a killed run had not yet derived from its last checkpoint."""
        if trainer.is_global_zero:
            remove_parts(self.folder.path)  # half-written files of a killed run
        if trainer.ckpt_path is None:
            return
        start_loop_always(trainer)
        stoppers = (isinstance(c, EarlyStopping) for c in cast("Any", trainer).callbacks)
        if self._stored_run.get("has_stopped") and any(stoppers):
            trainer.should_stop = True
        if trainer.is_global_zero:
            self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
            self._derive(Path(trainer.ckpt_path), pl_module)
        if not trainer.strategy.broadcast(self.folder.best.is_file()):
            self.best = None  # the checkpoint was that of another run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write settings and splits; from now on, signals stop the training at whole steps only."""
        check_same_steps(self._stored_run.get("steps_per_epoch"), _steps_per_epoch(trainer))
        if trainer.is_global_zero:
            self.write_config()  # a continued run's is replaced once the settings are checked
        data = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and isinstance(data, CAMDataModule):
            data.write_split(self.folder.split)  # a picture added later must not move others
            describe_data(trainer.loggers, data, self.folder.split)
        self._saved_at = time.monotonic()
        if self._is_epoch_end and trainer.max_steps != -1:
            # Where steps are counted, Lightning takes every start from a checkpoint for one in the
            # middle of an epoch.
            trainer.fit_loop.epoch_loop.restarting = False
        if "steps" in self._stored_run:
            follow_new_schedule(trainer, self._stored_run["steps"])
        announce_other_device(trainer, self._stored_run)
        limit_to_rest(trainer, self._stored_run)
        self.signals.install_handlers()
        self.signals.is_training = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between epochs, if a signal has asked for it."""
        self._is_epoch_end = False
        self._raise_if_stop_requested(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Restore the random numbers, which the start of the training has used."""
        self._is_scored = False
        self._set_random_state()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Write ``last.ckpt`` after a whole step, if it is time or a signal asks to stop."""
        if _has_all_steps(trainer):
            trainer.should_stop = True  # so that a last part of an epoch is validated too
        if not _validates_next(trainer, batch_idx) and _is_whole_step(trainer, batch_idx):
            self._save_if_due(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``last.ckpt``, so that nothing is lost; stop if a signal has asked for it."""
        self._set_random_state()
        end_validation_left(trainer)
        if not trainer.sanity_checking and _is_whole_step(trainer, trainer.fit_loop.batch_idx):
            self._save(trainer)
            self._raise_if_stop_requested(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *batch: object
    ) -> None:
        """Stop within a validation, if a signal has asked for it."""
        self._raise_if_stop_requested(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write everything after a validation within an epoch; one at its end shares its row."""
        if ends_epoch(trainer) or trainer.sanity_checking:
            self._has_validated = not trainer.sanity_checking
            return
        metrics, module = trainer.callback_metrics, cast("CAMModule", pl_module)
        scores = {name: v.item() for name, v in metrics.items() if name.startswith("val/")}
        scores["train/loss"] = module.evaluator.train_loss.compute().item()  # of the epoch so far
        self._add_row(trainer, scores, is_validated=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's row, and write everything."""
        scores = {
            name: value.item()
            for name, value in trainer.callback_metrics.items()
            if name != "epoch" and (self._has_validated or not name.startswith("val/"))
        }  # without a validation, its scores are those of an earlier epoch
        is_validated, self._has_validated, self._is_epoch_end = self._has_validated, False, True
        self._add_row(trainer, scores, is_validated=is_validated)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop, if a signal has asked for it."""
        self._raise_if_stop_requested(trainer)

    def _add_row(self, trainer: Trainer, scores: dict[str, float], *, is_validated: bool) -> None:
        """Add a row, and write everything."""
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **scores}
        self.rows.append(row)
        if is_validated:
            self._update_best(row)
        self._is_scored, file = True, self.folder.last
        if self._is_epoch_end or _is_whole_step(trainer, trainer.fit_loop.batch_idx):
            self._save(trainer)
        elif self._is_last_row_best():  # nothing could be continued from the middle of a step
            trainer.save_checkpoint(file := self.folder.best, weights_only=False)
        if trainer.is_global_zero:
            self._derive(file, trainer.lightning_module)
            if self.best is not None:
                summarize_best(trainer.loggers, self.rows[int(self.best["row"])])

    def _is_last_row_best(self) -> bool:
        return self.best is not None and self.best["row"] == len(self.rows) - 1

    def _update_best(self, row: dict[str, float]) -> None:
        # Where no picture has a label, `val/map` cannot be measured, and the evaluator says so.
        is_unmeasured = self.monitor == "val/map" and "val/map" not in row
        monitor = "val/loss" if is_unmeasured else self.monitor
        if monitor not in row:
            raise CamtrainValueError(
                f"monitor must be one of the logged scores, got {self.monitor!r}; logged are "
                f"{', '.join(sorted(row.keys() - {'epoch', 'step'}))}."
            )
        sign = -1 if is_smaller_better(monitor) else 1
        score = row[monitor]
        if math.isnan(score):
            score = -sign * math.inf
        if self.best is None or sign * score > sign * self.best["score"]:
            self.best = {"epoch": row["epoch"], "score": score, "row": len(self.rows) - 1}

    def _derive(self, checkpoint: Path, module: Any) -> None:  # noqa: ANN401
        """Write ``metrics.csv`` and, after the best validation, ``best.ckpt`` and the bundle."""
        if self.rows:
            write_text(self.folder.metrics, as_csv(self.rows))
        if not self._is_scored or not self._is_last_row_best():
            return
        if checkpoint != self.folder.best:
            duplicate(checkpoint, self.folder.best)
        with isolate_rng():  # reading it builds a network
            # Only the module can build a network of the user.
            is_own = is_import_path(module.net.description.architecture["backbone"])
            bundle = read_network(self.folder.best, backbone=module.net if is_own else None)
        scores = {n: v for n, v in self.rows[-1].items() if n not in ("epoch", "step")}
        description = replace(bundle.description, scores=scores)
        with warnings.catch_warnings():  # the checkpoint has warned of classes without names
            warnings.filterwarnings("ignore", message="The file says that the classes")
            write_bundle(self.folder.bundle, bundle.net, description=description)

    def _save_if_due(self, trainer: Trainer) -> None:
        is_due = time.monotonic() - self._saved_at >= self._seconds
        if _in_any_process(trainer, is_due or self.signals.received is not None):
            self._save(trainer)
            self._raise_if_stop_requested(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.folder.last, weights_only=False)
        self._saved_at = time.monotonic()

    def _set_random_state(self) -> None:
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def _raise_if_stop_requested(self, trainer: Trainer) -> None:
        if _in_any_process(trainer, self.signals.received is not None):
            self.signals.stop()


def _in_any_process(trainer: Trainer, is_true: bool) -> bool:
    """Whether something is true in one process at least; call in every process."""
    return bool(trainer.strategy.reduce_boolean_decision(is_true, all=False))


def _has_all_steps(trainer: Trainer) -> bool:
    """Whether ``max_steps`` ends the training here."""
    return 0 <= trainer.max_steps <= trainer.global_step


def _steps_per_epoch(trainer: Trainer) -> int | None:
    batches = trainer.num_training_batches
    return None if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)


def _is_whole_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether an optimizer step ends with this batch, so that no gradient is accumulated."""
    count = batch_idx + 1
    return count == trainer.num_training_batches or count % trainer.accumulate_grad_batches == 0


def _validates_next(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the epoch or a part of it ends with this batch, so that a validation may follow."""
    every = trainer.val_check_batch
    if trainer.should_stop or batch_idx + 1 == trainer.num_training_batches or every is None:
        return True
    is_by_epoch = trainer.check_val_every_n_epoch is not None
    index = batch_idx if is_by_epoch else trainer.fit_loop.total_batch_idx
    return not math.isinf(every) and (index + 1) % every == 0
