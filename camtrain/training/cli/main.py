"""The verbs that train and measure: fit, validate, test, as a LightningCLI."""

from __future__ import annotations

import inspect
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from camtrain.arguments import announce
from camtrain.errors import CamtrainError, CamtrainValueError
from camtrain.header import checkpoint_description, read_checkpoint_content
from camtrain.training.cli.help import OneLineParser, spelled_as_options
from camtrain.training.datamodule import CAMDataModule
from camtrain.training.module import CAMModule
from camtrain.training.run.fit import default_monitor, fit
from camtrain.training.run.folder import SPLIT_NAME, RunFolder
from camtrain.training.run.results import MapWriter, write_scores
from camtrain.training.run.resume import check_is_file, split_beside
from camtrain.training.run.signals import StopSignals, ending_cleanly
from camtrain.training.run.trainer import (
    TRAINER_DEFAULTS,
    as_list,
    best_precision,
    build_trainer,
)
from camtrain.training.watch import CAMLogger

# Arguments of `fit` that are options of the same name, with its defaults and texts.
_RUN_OPTIONS = ("save_every_minutes", "monitor", "logger", "project")
_IGNORED_WARNINGS = (
    ".*does not have many workers.*",  # the data module has already decided about workers
    "LightningCLI's args parameter",  # it would rather read sys.argv itself; cli.py has read it
    "Checkpoint directory .* exists and is not empty",  # intended, in a continued run
    "Be aware that when using `ckpt_path`, callbacks",  # measuring needs no callbacks of training
    ".*isinstance.treespec, LeafSpec.*",  # Lightning's, about torch
)


class CamtrainCLI(LightningCLI):
    """LightningCLI that takes the classes from the data and hands over to ``fit``."""

    model: CAMModule
    datamodule: CAMDataModule

    def __init__(self, *, args: list[str], **settings: Any) -> None:
        self._verb = args[0]
        self._split_is_chosen = _value_of("--data.split_file", args) is not None
        super().__init__(CAMModule, CAMDataModule, args=args, **settings)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Build the parser of all verbs, whose errors are one line."""
        parser = OneLineParser(**kwargs)
        parser.add_argument("--config", action="config", help="YAML file of these options.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options beside model, data and trainer."""
        add = parser.add_argument_group("The run").add_argument
        name = "None means the config's file name, else the backbone."
        add("--name", type=str | None, default=None, help=name)
        add("--runs_dir", type=str, default="runs", help="Folder with one folder per run.")
        flag: dict[str, Any] = {"type": bool, "default": False, "nargs": "?", "const": True}
        add("--overwrite", help="Replace an earlier run of the same name.", **flag)
        maps = (
            "Of validate and test: also write the maps as the WSOL benchmark's program reads them."
        )
        add("--save_maps", help=maps, **flag)
        skipped = {*inspect.signature(fit).parameters} - {*_RUN_OPTIONS}
        parser.add_function_arguments(fit, as_group=False, skip={*skipped})
        parser.add_lightning_class_args(CAMLogger, "cams")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        """Build the parser of the verb alone; building all takes longer than one run."""
        if subcommand != self._verb:
            return OneLineParser()
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        assert isinstance(parser, OneLineParser)
        parser.verb = subcommand
        return parser

    def _parse_ckpt_path(self) -> None:
        """Do nothing: ``_checkpoint_defaults`` has read the checkpoint before the arguments."""

    def before_instantiate_classes(self) -> None:
        """Choose the run's name, and give a continued training the splits it began with."""
        self.settings: Namespace = self.config[self.subcommand]
        if self.subcommand != "fit":
            return
        self.settings["name"] = run_name(self.settings)
        if ckpt_path := self.settings["ckpt_path"]:
            file = self._run.last if ckpt_path == "last" else Path(ckpt_path)
            data = self.settings["data"]
            data["split_file"] = split_beside(file) or data["split_file"]

    @property
    def _run(self) -> RunFolder:
        return RunFolder(Path(self.settings["runs_dir"]) / self.settings["name"])

    def instantiate_classes(self) -> None:
        """Build data and network; the trainer follows once the verb is known to make sense."""
        root, backbone = self.settings["data"]["root"], self.settings["model"]["backbone"]
        with announce(f"Reading {root or 'the data'}, building {backbone}"):
            self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")

    def _run_subcommand(self, subcommand: str) -> None:
        """Train, or measure."""
        settings, trainer = self.settings, {**self._get(self.config_init, "trainer")}
        if subcommand != "fit":
            self._measure(trainer)
            return
        settings["monitor"] = settings["monitor"] or default_monitor(self.model)
        fit(
            self.model,
            self.datamodule,
            folder=self._run.path,
            cams=self._get(self.config_init, "cams"),
            trainer=trainer,
            config=self._parser(subcommand).dump(settings, skip_none=False),
            **{name: settings[name] for name in ("ckpt_path", "overwrite", "weights_only")},
            **{name: settings[name] for name in _RUN_OPTIONS},
        )

    def _measure(self, trainer_options: dict[str, Any]) -> None:
        """Measure a checkpoint on the split of the verb; scores go beside it, or into its run."""
        split = "val" if self.subcommand == "validate" else "test"
        settings, folder = self.settings, Path(self.settings["ckpt_path"]).absolute().parent
        folder = (folder.parent if folder.name == "checkpoints" else folder) / split
        callbacks = as_list(trainer_options["callbacks"])
        if settings["save_maps"] and not trainer_options["fast_dev_run"]:
            callbacks = [MapWriter(folder / "wsol", root=settings["data"]["root"]), *callbacks]
        changes = {"logger": False, "enable_checkpointing": False, "callbacks": callbacks}
        precision = trainer_options["precision"] or best_precision()
        trainer = build_trainer({**trainer_options, **changes, "precision": precision})
        self._warn_of_division()
        with ending_cleanly(trainer, StopSignals()):
            evaluate = trainer.validate if split == "val" else trainer.test
            arguments = {name: settings[name] for name in ("ckpt_path", "weights_only")}
            evaluate(self.model, datamodule=self.datamodule, verbose=False, **arguments)
        sources = {"checkpoint": settings["ckpt_path"], "data": settings["data"]["root"]}
        if write_scores(split, folder, self.model, trainer, sources):
            print(f"Written: {folder}")

    def _warn_of_division(self) -> None:
        """Warn where a checkpoint without its splits may be measured on training pictures."""
        if self._split_is_chosen or not self.datamodule.is_divided_by_seed:
            return
        data = self.settings["data"]
        warnings.warn(
            f"The checkpoint has no {SPLIT_NAME} beside its folder, so the pictures of "
            f"{data['root']} are divided by --data.seed {data['seed']}, and some may have been "
            "trained on if others were added or removed since; give --data.split_file FILE.",
            stacklevel=2,
        )


def main(args: Sequence[str]) -> None:
    """Run a verb: ``main(["fit", "--config", "configs/quickstart.yaml"])``.

    Raises:
        CamtrainError: Something the caller can mend.
        KeyboardInterrupt: After Ctrl-C; the run can be continued.
        SystemExit: Arguments that cannot be parsed (2), or SIGTERM (143).
    """
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    try:
        with _checkpoint_defaults(args) as parser_kwargs:
            CamtrainCLI(
                args=list(args),
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults=dict(TRAINER_DEFAULTS),
                auto_configure_optimizers=False,
                parser_kwargs=parser_kwargs,
            )
    except CamtrainError as error:
        raise type(error)(spelled_as_options(str(error))) from error


@contextmanager
def _checkpoint_defaults(args: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Arguments of the parser, which make a checkpoint's settings the defaults of measuring it."""
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


def _settings_of(path: Path) -> dict[str, Any]:
    """Settings of the network and the data of a checkpoint, as a config."""
    check_is_file(path)
    checkpoint = read_checkpoint_content(path)
    description, model = checkpoint_description(checkpoint), dict(checkpoint["hyper_parameters"])
    for name in ("num_classes", "_instantiator"):
        model.pop(name, None)
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    data.pop("_instantiator", None)
    names, preprocessing = description.class_names, description.preprocessing
    data["class_names"] = None if names is None else list(names)
    # The file in the run's folder comes first: the run may have been moved since.
    stored = data.get("split_file")
    exists = stored is not None and Path(stored).is_file()
    data["split_file"] = split_beside(path) or (stored if exists else None)
    for name in ("mean", "std", "channel_order") if preprocessing else ():
        data[name] = getattr(preprocessing, name)
    return {"model": model, "data": data}


def _value_of(option: str, args: Sequence[str]) -> str | None:
    """The value of an option on the command line, before it is parsed."""
    for index, arg in enumerate(args):
        if arg == option and index + 1 < len(args):
            return args[index + 1]
        if arg.startswith(f"{option}="):
            return arg.partition("=")[2]
    return None


def run_name(settings: Namespace) -> str:
    """The name of a run: the given one, else that of the config's file, else of the backbone."""
    if settings["name"]:
        return str(settings["name"])
    configs = settings["config"] or []
    name = Path(str(configs[-1])).stem if configs else str(settings["model"]["backbone"])
    # The agent of a W&B sweep runs the same config several times.
    trial = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    return "-".join([name.rpartition("/")[2], *([trial] if trial else [])])
