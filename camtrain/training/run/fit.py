"""Training from a script: what ``camtrain fit`` does from the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.loggers.logger import DummyLogger

from camtrain.errors import CamtrainValueError
from camtrain.header import read_safetensors_description
from camtrain.training.datamodule import CAMDataModule
from camtrain.training.module import CAMModule
from camtrain.training.run.checks import (
    check_can_continue,
    check_monitor,
    check_settings,
    default_monitor,
    has_split,
)
from camtrain.training.run.folder import AtomicCheckpointIO, RunFolder
from camtrain.training.run.loggers import (
    LoggedSoFar,
    LoggerName,
    check_logger,
    finish_loggers,
    log_settings,
    make_loggers,
    project_or_default,
    upload_bundle,
    upload_report,
)
from camtrain.training.run.opening import open_pictures
from camtrain.training.run.results import print_header, print_run_files, write_scores
from camtrain.training.run.resume import (
    as_plain,
    check_same_network,
    check_same_settings,
    check_start,
    read_state,
    refusing_state,
    split_beside,
)
from camtrain.training.run.signals import StopSignals, ending_cleanly
from camtrain.training.run.trainer import (
    TRAINER_DEFAULTS,
    as_list,
    best_precision,
    build_trainer,
)
from camtrain.training.run.wandb_options import WandbOptions
from camtrain.training.run.writer import RunWriter
from camtrain.training.watch import CAMLogger
from camtrain.training.watch.batch_picture import BatchPicture


@dataclass(frozen=True)
class FitResult:
    """What a training leaves behind; files are None where there are none.

    Attributes:
        folder: Folder of the run.
        best_epoch: Number of the epoch of the best validation, from 1; None if there was none.
        best_step: Number of its step, from 1; None likewise.
        scores: Scores of the best validation, and of the test of its network, by logged names.
        bundle: The network of the best validation; there is none after ``fast_dev_run``.
        best_checkpoint: The checkpoint of the best validation.
        last_checkpoint: The checkpoint that ``ckpt_path="last"`` continues from.
    """

    folder: Path
    best_epoch: int | None
    scores: dict[str, float]
    bundle: Path | None
    best_checkpoint: Path | None
    last_checkpoint: Path | None
    best_step: int | None = None


def fit(
    module: CAMModule,
    data: LightningDataModule,
    *,
    folder: str | Path,
    ckpt_path: str | Path | None = None,
    overwrite: bool = False,
    monitor: str | None = None,
    save_every_minutes: float | None = 15.0,
    logger: LoggerName = "wandb",
    project: str | None = None,
    name: str | None = None,
    wandb: WandbOptions | None = None,
    cams: CAMLogger | None = None,
    trainer: Mapping[str, Any] | None = None,
    weights_only: bool | None = None,
    config: str | None = None,
) -> FitResult:
    """Train in a run folder, watch, test the best epoch and write its bundle.

    The folder gets the files that ``camtrain fit`` writes, and the same weights if the seed was
    set before the network was built::

        from pytorch_lightning import seed_everything
        from camtrain.training import CAMDataModule, CAMModule, fit

        if __name__ == "__main__":
            seed_everything(0, workers=True)
            data = CAMDataModule(root="photos", size=224)
            module = CAMModule("torchvision/resnet18", data.num_classes, freeze_backbone=True)
            result = fit(
                module, data, folder="runs/photos", logger="none", trainer={"max_epochs": 5}
            )
            print(result.best_epoch, result.scores["val/acc1"], result.bundle)

    Nothing is written before everything that can be checked is checked. So the picture files of
    val and test are opened once, for a minute at most; see ``open_pictures``.

    Ctrl-C stops after a whole optimizer step, ends the loggers and raises ``KeyboardInterrupt``;
    SIGTERM does the same and raises ``SystemExit`` with status 143; so does SIGUSR1, with 138, and
    asks SLURM to start the job again. The run can be continued.

    Args:
        module: The network and its training.
        data: Any data module with a validation split. Without a test split nothing is tested.
        folder: Folder of the run, such as ``runs/NAME``; for a new run it is empty or missing.
        ckpt_path: ``last`` continues the run in the folder; ``auto`` does so if there is one, and
            begins it otherwise; a path starts from that checkpoint.
        overwrite: Replace an earlier run in the folder.
        monitor: Score of the best epoch, a loss is minimized; None means val/acc1, or val/map.
        save_every_minutes: Minutes from one last.ckpt within an epoch to the next; 0: after every
            step; null: only before validations, after epochs, and when stopping.
        logger: Where curves and heatmaps go, beside the run folder.
        project: Project in W&B, or experiment in MLflow; None: WANDB_PROJECT or
            MLFLOW_EXPERIMENT_NAME of the environment, or camtrain.
        name: Name of the run there; None: WANDB_NAME of the environment, or the folder's name.
        wandb: What the run says of itself in W&B: entity, group, tags, notes, ...
        cams: The callback that watches the heatmaps; None: ``CAMLogger()``.
        trainer: Arguments of Lightning's ``Trainer`` by name; some defaults differ, see
            ``TRAINER_DEFAULTS``. Without ``precision`` the machine decides; a ``logger`` of your
            own replaces the argument above.
        weights_only: Of Lightning's ``Trainer.fit``.
        config: Content of the folder's ``config.yaml``; None: it is made from the settings.

    Raises:
        CamtrainValueError: The folder is in use, a setting does not fit the data or the network,
            or a continued training would become another one.
        CamtrainFileNotFoundError: The checkpoint or the data do not exist.
    """
    options = {**TRAINER_DEFAULTS, **(trainer or {})}
    signals, ckpt_path = StopSignals(), None if ckpt_path is None else str(ckpt_path)
    if ckpt_path == "auto":
        ckpt_path = "last" if RunFolder(folder).is_begun else None
    makes_loggers, project = (
        options.get("logger") in (None, True),
        project_or_default(project, logger),
    )
    writer = None
    if not options.get("fast_dev_run"):
        if makes_loggers:
            check_logger(logger)
        run, monitor = RunFolder(folder), monitor or default_monitor(module)
        check_monitor(monitor, module, data)
        if ckpt_path is not None and isinstance(data, CAMDataModule):
            data.follow_split(split_beside(run.last if ckpt_path == "last" else Path(ckpt_path)))
        settings: dict[str, Any] = {"monitor": monitor, "save_every_minutes": save_every_minutes}
        settings |= {"logger": logger, "project": project}
        settings |= {} if wandb is None else {"wandb": asdict(wandb)}
        writer = RunWriter(
            run,
            monitor=monitor,
            signals=signals,
            config=config or _as_config(module, data, run, trainer or {}, settings),
            every_minutes=save_every_minutes,
        )
    lightning = _make_trainer(options, writer, cams or CAMLogger(), makes_loggers=makes_loggers)
    with ExitStack() as stack:  # of the lock of the run, and of the signals
        if writer is not None:
            ckpt_path, so_far = open_run(
                writer, lightning, module, data, ckpt_path, overwrite, stack
            )
            if makes_loggers and lightning.is_global_zero:
                lightning.loggers = make_loggers(
                    logger, run.path, project, name=name, so_far=so_far, wandb=wandb
                )
            elif makes_loggers and logger != "none":
                lightning.loggers = [DummyLogger()]  # one run, however many processes
        if lightning.is_global_zero:
            if writer is None:
                check_settings(lightning, module, data)
            sources = data.sources if isinstance(data, CAMDataModule) else {}
            run_settings = {
                "monitor": monitor,
                "max_epochs": lightning.max_epochs,
                "precision": lightning.precision,
                "pictures": {split: len(source) for split, source in sources.items()},
            }
            log_settings(lightning.loggers, run_settings, monitor)
        print_header(module, data, lightning)
        stack.enter_context(signals)
        ending = ending_cleanly(lightning, signals, writer.folder if writer else None)
        with refusing_state(ckpt_path, lightning), ending:
            lightning.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=weights_only)
        if writer is None:
            return FitResult(Path(folder), None, {}, None, None, None)
        return _conclude_run(writer, lightning, signals, module, data)


def _as_config(
    module: CAMModule,
    data: LightningDataModule,
    run: RunFolder,
    trainer: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> str:
    """The settings of a run as the YAML that ``camtrain fit --config`` reads."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    derived = {"num_classes", "_instantiator"}
    is_own = isinstance(data, CAMDataModule)
    config = {
        "seed_everything": False if seed is None else int(seed),
        "name": run.path.name,
        "runs_dir": str(run.path.parent),
        **settings,
        "trainer": trainer,
        "model": {n: value for n, value in module.hparams.items() if n not in derived},
        "data": {**({} if is_own else {"class_path": type(data).__qualname__}), **data.hparams},
    }
    return str(yaml.safe_dump(as_plain(config), sort_keys=False))


def _make_trainer(
    options: Mapping[str, Any], writer: RunWriter | None, cams: CAMLogger, *, makes_loggers: bool
) -> Trainer:
    """The trainer of a run, or of a ``fast_dev_run``, which has no writer; writes nothing yet."""
    changes: dict[str, Any] = {"precision": options.get("precision") or best_precision()}
    callbacks = as_list(options.get("callbacks"))
    if any(isinstance(c, CAMLogger) and c.state_key == cams.state_key for c in callbacks):
        raise CamtrainValueError(
            "trainer.callbacks holds a CAMLogger beside that of the run, and both would write to "
            "the same folder; give it as cams instead, or give it a dirpath of its own."
        )
    if writer is not None:
        run = writer.folder
        cams.dirpath = cams.dirpath or run.cams
        cams.report = cams.report or run.report
        # The writer comes first, so that a user's own checkpoints are not taken for the run's.
        callbacks = [writer, BatchPicture(run.train_batch), *callbacks]
        changes["default_root_dir"] = run.path
        changes["plugins"] = [*as_list(options.get("plugins")), AtomicCheckpointIO()]
    if writer is None or makes_loggers:  # the loggers are made once the run is open
        changes["logger"] = False
    return build_trainer({**options, **changes, "callbacks": [*callbacks, cams]})


def open_run(
    writer: RunWriter,
    trainer: Trainer,
    module: CAMModule,
    data: LightningDataModule,
    ckpt_path: str | None,
    overwrite: bool,
    stack: ExitStack,
) -> tuple[str | None, LoggedSoFar | None]:
    """Check that the run can begin or go on, make room, and mark and lock its folder.

    Returns:
        The checkpoint to start from, if any, and where the loggers of a continued run continue.
    """
    run = writer.folder
    if trainer.is_global_zero:  # the other processes start later, when the run has begun
        check_start(run, ckpt_path, overwrite=overwrite)
        if is_old := run.path.is_dir():
            stack.enter_context(run.locked())
        if ckpt_path is not None:
            check_can_continue(trainer)
        check_settings(trainer, module, data)
        if ckpt_path not in (None, "last"):
            check_same_network(module, read_state(Path(ckpt_path)))
    is_continued, so_far = ckpt_path == "last", None
    if is_continued and run.last.is_file():
        checkpoint = read_state(run.last)
        check_same_settings(
            checkpoint,
            run,
            model=module.hparams,
            data=data.hparams,
            monitor=writer.monitor,
            max_epochs=trainer.max_epochs,
        )
        ckpt_path, so_far = str(run.last), LoggedSoFar.of(checkpoint)
    elif is_continued:
        print(f"The run in {run.path} was stopped before its first checkpoint, so it begins anew.")
        ckpt_path, so_far = None, LoggedSoFar()
    if trainer.is_global_zero:
        if isinstance(data, CAMDataModule):
            has_bar = trainer.progress_bar_callback is not None
            open_pictures(data.sources, data.hparams, shows_progress=has_bar)
        run.path.mkdir(parents=True, exist_ok=True)
        if not is_old:
            stack.enter_context(run.locked())
        if not is_continued:
            run.clear()
        if not run.config.exists():
            writer.write_config()
    return ckpt_path, so_far


def _conclude_run(
    writer: RunWriter,
    trainer: Trainer,
    signals: StopSignals,
    module: CAMModule,
    data: LightningDataModule,
) -> FitResult:
    """Test the best epoch if there is a test split, upload its bundle, print what was written."""
    run, scores = writer.folder, {}
    if not run.best.is_file():
        print("No epoch was validated, so none is the best, and none was tested or shipped.")
    elif has_split(data, "test"):
        with ending_cleanly(trainer, signals, run):
            trainer.test(module, data, ckpt_path=str(run.best), verbose=False)
        sources = {"checkpoint": "checkpoints/best.ckpt", "data": data.hparams.get("root")}
        write_scores("test", run.path / "test", module, trainer, sources)
    if run.bundle.is_file():
        test = {n: v.item() for n, v in trainer.callback_metrics.items() if n.startswith("test/")}
        description = read_safetensors_description(run.bundle)
        scores = {**(description.scores if description else {}), **test}
        upload_bundle(trainer.loggers, run.bundle, scores)
    upload_report(trainer.loggers, run.report)
    print_run_files(run, trainer)
    finish_loggers(trainer.loggers)
    bundle, best, last = (p if p.is_file() else None for p in (run.bundle, run.best, run.last))
    row = {} if writer.best is None else writer.rows[int(writer.best["row"])]
    epoch, step = (int(row[name]) if row else None for name in ("epoch", "step"))
    return FitResult(run.path, epoch, scores, bundle, best, last, step)
