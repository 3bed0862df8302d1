"""The verbs that train and measure: fit, validate, test, as a LightningCLI."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers.logger import DummyLogger

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.inference.bundle import read_bundle
from camtrain.training.batch_picture import BatchPicture
from camtrain.training.cli.parser import OneLineParser
from camtrain.training.datamodule import CAMDataModule
from camtrain.training.evaluate.evaluator import score_names
from camtrain.training.files import AtomicCheckpointIO
from camtrain.training.module import CAMModule
from camtrain.training.run.folder import SPLIT_NAME, RunFolder
from camtrain.training.run.loggers import (
    LoggedSoFar,
    LoggerName,
    finish_loggers,
    log_bundle,
    make_loggers,
)
from camtrain.training.run.precision import best_precision
from camtrain.training.run.results import MapWriter, write_localization
from camtrain.training.run.resume import SaveConfig, check_same_settings
from camtrain.training.run.signals import StopSignals
from camtrain.training.run.summary import print_header, print_scores, print_written
from camtrain.training.run.writer import RunWriter
from camtrain.training.watch import CAMLogger

_TRAINER_DEFAULTS = {
    "max_epochs": 20,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 1,  # everything is logged by epoch; Lightning warns about short ones
}
_MONITORS = {"multiclass": "val/acc1", "multilabel": "val/map"}


class CamtrainCLI(LightningCLI):
    """LightningCLI with a folder for the run, watched pictures, and classes taken from the data."""

    model: CAMModule
    datamodule: CAMDataModule
    folder: RunFolder | None = None
    _makes_loggers = False
    _signals: StopSignals
    _split_is_chosen = False

    def __init__(self, *, args: list[str], **settings: Any) -> None:
        self._verb = args[0]
        super().__init__(CAMModule, CAMDataModule, args=args, **settings)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """As in LightningCLI, with errors of one line."""
        parser = OneLineParser(**kwargs)
        parser.add_argument("--config", action="config", help="YAML file of these options.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what there is beside model, data and trainer."""
        run = parser.add_argument_group("The run")

        def add(name: str, kind: object, default: object, text: str) -> None:
            bare: dict[str, Any] = {"nargs": "?", "const": True} if kind is bool else {}
            run.add_argument(name, type=kind, default=default, help=text, **bare)

        add("--name", str | None, None, "None means the config's file name, else the backbone.")
        add("--runs_dir", str, "runs", "Folder with one folder per run.")
        add("--overwrite", bool, False, "Replace an earlier run of the same name.")
        maps = (
            "Of validate and test: also write the maps as the WSOL benchmark's program reads them."
        )
        add("--save_maps", bool, False, maps)
        often = (
            "Minutes from one last.ckpt within an epoch to the next; 0: after every step; null: "
            "only after epochs, and when stopping."
        )
        add("--save_every_minutes", float | None, 15.0, often)
        best = "Score of the best epoch, a loss is minimized; None means val/acc1, or val/map."
        add("--monitor", str | None, None, best)
        add("--logger", LoggerName, "wandb", "Where curves and heatmaps go, beside the run folder.")
        add("--project", str, "camtrain", "W&B project.")
        parser.add_lightning_class_args(CAMLogger, "cams")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        """As in LightningCLI; the parser knows its verb."""
        if subcommand != self._verb:  # to build the parsers of all takes longer than to use one
            return OneLineParser()
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        assert isinstance(parser, OneLineParser)
        parser.verb = subcommand
        return parser

    def _parse_ckpt_path(self) -> None:
        """Off: ``_checkpoint_defaults`` has read the checkpoint before the arguments."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """As in LightningCLI; a file of splits, or none, that was asked for is noted."""
        given = args if isinstance(args, list) else []
        self._split_is_chosen = _value_of("--data.split_file", given) is not None
        super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """Prepare for Ctrl-C; give a training that goes on the splits that it began with."""
        self._signals = StopSignals()
        settings = self.config[self.subcommand]
        if self.subcommand == "fit" and settings["ckpt_path"]:
            folder = Path(settings["runs_dir"]) / _run_name(settings)
            is_last = settings["ckpt_path"] == "last"
            path = folder / "checkpoints" if is_last else Path(settings["ckpt_path"]).parent
            settings["data"]["split_file"] = _split_of(path) or settings["data"]["split_file"]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, once data and network are known to be good; writes nothing yet."""
        settings = self.config[self.subcommand]
        trainer = settings["trainer"]
        if trainer["precision"] is None:
            kwargs["precision"] = best_precision()
        callbacks: list[Callback] = []
        if self.subcommand != "fit":
            kwargs.update(logger=False, enable_checkpointing=False)
            self.save_config_callback = None
            if settings["save_maps"] and not trainer["fast_dev_run"]:
                folder = self._measured(self.subcommand) / "wsol"
                callbacks = [MapWriter(folder, root=settings["data"]["root"])]
        elif trainer["fast_dev_run"]:
            kwargs["logger"] = False
        else:
            settings["name"] = _run_name(settings)
            self.folder = RunFolder(Path(settings["runs_dir"]) / settings["name"])
            settings["monitor"] = settings["monitor"] or _MONITORS[self.model.net.task]
            callbacks = self._writers(self.folder, settings["monitor"])
            _check_checkpoint(settings["ckpt_path"], self.folder, settings["overwrite"])
            self._makes_loggers = trainer["logger"] in (None, True)
            if self._makes_loggers:
                kwargs["logger"] = False
            kwargs["default_root_dir"] = self.folder.path
            plugins = self.config_init[self.subcommand]["trainer"]["plugins"] or []
            plugins = plugins if isinstance(plugins, list) else [plugins]
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        own = self.config_init[self.subcommand]["trainer"]["callbacks"] or []
        # The checkpoint of the run comes first, so that those of somebody's own know of it.
        kwargs["callbacks"] = [*callbacks, *(own if isinstance(own, list) else [own])]
        made = super().instantiate_trainer(**kwargs)
        if self.folder is not None and made.is_global_zero:  # the others come to a run begun
            continues = settings["ckpt_path"] == "last"
            self.folder.check_free(continues=continues, overwrite=settings["overwrite"])
            self.datamodule.trainer = made
            made.strategy.connect(self.model)  # as `Trainer.fit` does
            self.datamodule.check_cache()
        return made

    def _writers(self, folder: RunFolder, monitor: str) -> list[Callback]:
        """What fills the run folder; pictures go there unless told otherwise."""
        if "val" not in self.datamodule.sources:
            raise CamtrainValueError(
                "fit chooses the best epoch on a val split, and the data has none; add the folder "
                "val/CLASS, or give --data.val_fraction above 0."
            )
        names = score_names(self.datamodule.num_classes, self.model.net.task)
        logged = ["train/loss", *(f"val/{name}" for name in names)]
        if monitor not in logged:
            raise CamtrainValueError(
                f"--monitor must be one of {', '.join(logged)}, got {monitor!r}."
            )
        watcher = self.config_init[self.subcommand]["cams"]
        watcher.dirpath = watcher.dirpath or folder.cams
        watcher.report = watcher.report or folder.report
        every = self.config[self.subcommand]["save_every_minutes"]
        writer = RunWriter(folder, monitor=monitor, signals=self._signals, every_minutes=every)
        return [writer, BatchPicture(folder.path / "train_batch.jpg")]

    def fit(self, model: LightningModule, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train, test the best epoch if there is a test split, say where everything is."""
        if self.folder is not None:
            ckpt_path = self._begin(self.folder, ckpt_path)
        print_header(self.model, self.datamodule, self.trainer)
        with self._signals, self._ending_cleanly():
            self.trainer.fit(model, ckpt_path=ckpt_path, **kwargs)
        if self.folder is None:
            return
        if not self.folder.best.is_file():
            print("No epoch was validated, so none is the best, and none was tested or shipped.")
        elif "test" in self.datamodule.sources:
            with self._ending_cleanly():
                self.trainer.test(
                    self.model, self.datamodule, ckpt_path=str(self.folder.best), verbose=False
                )
            self._conclude("test", self.folder.path / "test")
        self._ship(self.folder)
        print_written(self.folder, self.trainer)
        finish_loggers(self.trainer.loggers)

    def _ship(self, folder: RunFolder) -> None:
        """Add the bundle of the best epoch to the loggers' run: once, at the end."""
        if folder.bundle.is_file() and self.trainer.is_global_zero:
            metrics = self.trainer.callback_metrics
            test = {n: v.item() for n, v in metrics.items() if n.startswith("test/")}
            scores = {**read_bundle(folder.bundle).scores, **test}
            log_bundle(self.trainer.loggers, folder.bundle, scores)

    @contextmanager
    def _ending_cleanly(self) -> Iterator[None]:
        """Exit with 130 after Ctrl-C, with 143 after SIGTERM, where Lightning would with 1."""
        try:
            yield
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            print_written(self.folder, self.trainer)
            finish_loggers(self.trainer.loggers)
            sys.exit(self._signals.exit_status)
        except Exception:
            finish_loggers(self.trainer.loggers)  # what has been logged is not lost
            raise

    def _begin(self, folder: RunFolder, ckpt_path: str | None) -> str | None:
        """Make room, start the loggers, and return the checkpoint to go on from, if any."""
        settings = self.config[self.subcommand]
        so_far = None
        if ckpt_path == "last":
            if folder.last.is_file():
                ckpt_path = str(folder.last)
                so_far = self._check_continues(folder)
            else:
                print(f"The run in {folder.path} was stopped before its first checkpoint; anew.")
                ckpt_path, so_far = None, LoggedSoFar()
        elif self.trainer.is_global_zero:
            folder.clear()
        if self._makes_loggers and self.trainer.is_global_zero:
            self.trainer.loggers = make_loggers(
                settings["logger"], folder.path, settings["project"], so_far=so_far
            )
        elif self._makes_loggers and settings["logger"] != "none":
            self.trainer.loggers = [DummyLogger()]  # one run, however many processes
        return ckpt_path

    def _check_continues(self, folder: RunFolder) -> LoggedSoFar:
        """Make sure that the run is continued as it began; where its loggers go on."""
        checkpoint = torch.load(folder.last, map_location="cpu", weights_only=True, mmap=True)
        check_same_settings(
            checkpoint,
            folder,
            model=self.model.hparams,
            data=self.datamodule.hparams,
            monitor=self.config[self.subcommand]["monitor"],
            max_epochs=self.trainer.max_epochs,
        )
        return LoggedSoFar.of(checkpoint)

    def validate(
        self, model: LightningModule, datamodule: LightningDataModule, **kwargs: Any
    ) -> None:
        """Measure on the val split."""
        self._warn_of_division()
        kwargs["verbose"] = False
        with self._ending_cleanly():
            self.trainer.validate(model, datamodule, **kwargs)
        self._conclude("val", self._measured("validate"))

    def test(self, model: LightningModule, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Measure on the test split."""
        self._warn_of_division()
        kwargs["verbose"] = False
        with self._ending_cleanly():
            self.trainer.test(model, datamodule, **kwargs)
        self._conclude("test", self._measured("test"))

    def _warn_of_division(self) -> None:
        """Say so where a checkpoint without its splits may be measured on training pictures."""
        if self._split_is_chosen or not self.datamodule.is_divided_by_seed:
            return
        data = self.config[self.subcommand]["data"]
        warnings.warn(
            f"The checkpoint has no {SPLIT_NAME} beside its folder, so the pictures of "
            f"{data['root']} are divided by --data.seed {data['seed']}, and some may have been "
            "trained on if others were added or removed since; give --data.split_file FILE.",
            stacklevel=2,
        )

    def _measured(self, verb: str | None) -> Path:
        """Where the results of a verb go: beside the checkpoint, in its run if it lies in one."""
        folder = Path(self.config[verb]["ckpt_path"]).absolute().parent
        run = folder.parent if folder.name == "checkpoints" else folder
        return run / ("val" if verb == "validate" else "test")

    def _conclude(self, split: str, folder: Path) -> None:
        """Print what was measured, and keep it."""
        if not self.trainer.is_global_zero:
            return
        print_scores(split, self.trainer)
        settings = self.config[self.subcommand]
        report = self.model.reports.get(split)
        if report is None or settings["trainer"]["fast_dev_run"]:
            return
        checkpoint = settings["ckpt_path"] if self.subcommand != "fit" else "checkpoints/best.ckpt"
        measured = {"checkpoint": checkpoint, "data": settings["data"]["root"]}
        write_localization(folder, split, self.trainer.callback_metrics, report, measured)
        if self.subcommand != "fit":
            print(f"Written: {folder}")


def main(args: Sequence[str]) -> None:
    """Run a verb: ``main(["fit", "--config", "configs/quickstart.yaml"])``.

    Raises:
        CamtrainError: Something the caller can mend.
        SystemExit: Arguments that cannot be parsed (2), or an interrupt (130).
    """
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Advice about the number of workers, which the data module has already decided.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # LightningCLI would rather read sys.argv itself; cli.py hands over what it has read.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    # Meant to be: a continued run; measuring a checkpoint without its training's callbacks.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
    # Lightning's, about torch's.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    with _checkpoint_defaults(args) as parser_kwargs:
        CamtrainCLI(
            args=list(args),
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            trainer_defaults=dict(_TRAINER_DEFAULTS),
            auto_configure_optimizers=False,
            parser_kwargs=parser_kwargs,
        )


@contextmanager
def _checkpoint_defaults(args: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Parser settings: the defaults of ``validate`` and ``test`` are those of their checkpoint."""
    path = _value_of("--ckpt_path", args)
    if args[0] == "fit" or {"-h", "--help", "--print_config"} & set(args):
        yield {}
        return
    if path is None:
        raise CamtrainValueError(
            f"camtrain {args[0]} measures a checkpoint; give --ckpt_path "
            "runs/NAME/checkpoints/best.ckpt."
        )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(_settings_of(Path(path)), file)  # JSON is YAML too
        file.flush()
        yield {args[0]: {"default_config_files": [file.name]}}


def _check_checkpoint(ckpt_path: str | None, folder: RunFolder, overwrite: bool) -> None:
    """Refuse to start from a checkpoint that is not there, or not there for long."""
    if ckpt_path in (None, "last"):
        return
    path = Path(str(ckpt_path))
    _check_is_file(path)
    if overwrite and folder.path.resolve() in path.resolve().parents:
        raise CamtrainValueError(
            f"--overwrite would delete {path} before the run starts from it; choose another "
            "--name, or continue the run with --ckpt_path last."
        )


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise CamtrainFileNotFoundError(
            "--ckpt_path must be a checkpoint, such as runs/NAME/checkpoints/best.ckpt; "
            f"{path} does not exist."
        )


def _settings_of(path: Path) -> dict[str, Any]:
    """Network and data of a checkpoint, as a config."""
    _check_is_file(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model, own = dict(checkpoint["hyper_parameters"]), checkpoint["camtrain"]
    except Exception as error:  # what a damaged file makes torch raise cannot be known
        raise CamtrainValueError(
            f"{path} is not a camtrain checkpoint that can be read safely "
            f"({type(error).__name__}: {str(error).splitlines()[0]})."
        ) from error
    for name in ("num_classes", "_instantiator"):
        model.pop(name, None)
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    data.pop("_instantiator", None)
    data.update(class_names=own["class_names"])
    # Rather that of the run, which may have been moved since, than where it was.
    stored = data.get("split_file")
    is_there = stored is not None and Path(stored).is_file()
    data.update(split_file=_split_of(path.parent) or (stored if is_there else None))
    preprocessing = {"channel_order": "rgb", **own["preprocessing"]}
    data.update({name: preprocessing[name] for name in ("mean", "std", "channel_order")})
    return {"model": model, "data": data}


def _split_of(checkpoints: Path) -> str | None:
    """The stored splits of the run that a folder of checkpoints belongs to, if it has them."""
    file = checkpoints.absolute().parent / SPLIT_NAME
    return str(file) if file.is_file() else None


def _value_of(option: str, args: Sequence[str]) -> str | None:
    for place, arg in enumerate(args):
        if arg == option and place + 1 < len(args):
            return args[place + 1]
        if arg.startswith(f"{option}="):
            return arg.partition("=")[2]
    return None


def _run_name(settings: Namespace) -> str:
    if settings["name"]:
        return str(settings["name"])
    configs = settings["config"] or []
    name = Path(str(configs[-1])).stem if configs else str(settings["model"]["backbone"])
    # The agent of a W&B sweep runs the same config several times.
    trial = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    return "-".join([name.rpartition("/")[2], *([trial] if trial else [])])
