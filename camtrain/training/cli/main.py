"""The verbs that train and measure: fit, validate, test, as a LightningCLI."""

from __future__ import annotations

import inspect
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from camtrain.arguments import announce
from camtrain.data import Split
from camtrain.errors import CamtrainError, CamtrainValueError, warn
from camtrain.files import read_utf8
from camtrain.model.modules import is_import_path
from camtrain.training.cli.help import OneLineParser, spelled_as_options
from camtrain.training.cli.measuring import MeasuredNetwork, check_options
from camtrain.training.cli.yaml_text import read_yaml, use_in_parsers, write_yaml
from camtrain.training.datamodule import CAMDataModule
from camtrain.training.module import CAMModule
from camtrain.training.run.checks import check_size, default_monitor
from camtrain.training.run.fit import fit
from camtrain.training.run.folder import SPLIT_NAME, RunFolder
from camtrain.training.run.loggers import project_or_default
from camtrain.training.run.results import MapWriter, write_scores
from camtrain.training.run.resume import as_plain, check_start, split_beside
from camtrain.training.run.signals import StopSignals, ending_cleanly
from camtrain.training.run.trainer import (
    TRAINER_DEFAULTS,
    as_list,
    best_precision,
    build_trainer,
)
from camtrain.training.run.wandb_options import WandbOptions
from camtrain.training.watch import CAMLogger

# Arguments of `fit` that are options of the same name, with its defaults and texts.
_RUN_OPTIONS = ("save_every_minutes", "monitor", "logger", "project")
_IGNORED_WARNINGS = (
    ".*does not have many workers.*",  # the data module has already decided about workers
    "LightningCLI's args parameter",  # it would rather read sys.argv itself; cli.py has read it
    "Checkpoint directory .* exists and is not empty",  # intended, in a continued run
    ".*isinstance.treespec, LeafSpec.*",  # Lightning's, about torch
)


class CamtrainCLI(LightningCLI):
    """LightningCLI that takes the classes from the data and hands over to ``fit``."""

    model: CAMModule
    datamodule: CAMDataModule

    def __init__(
        self, *, args: list[str], measured: MeasuredNetwork | None, **settings: Any
    ) -> None:
        self._verb = args[0]
        self._measured = measured
        self._split_is_chosen = _value_of("--data.split_file", args) is not None
        super().__init__(CAMModule, CAMDataModule, args=args, **settings)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Build the parser of all verbs, whose errors are one line."""
        use_in_parsers()
        parser = OneLineParser(**kwargs)
        parser.add_argument("--config", action="config", help="YAML file of these options.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options beside model, data and trainer."""
        add = parser.add_argument_group("The run").add_argument
        name = "Name of the run; None means the config's file name, else the backbone."
        add("--name", type=str | None, default=None, help=name)
        add("--runs_dir", type=str, default="runs", help="Folder with one folder per run.")
        flag: dict[str, Any] = {"type": bool, "default": False, "nargs": "?", "const": True}
        add("--overwrite", help="Replace an earlier run of the same name.", **flag)
        maps = "Write the maps too, as the WSOL benchmark's program reads them."
        add("--save_maps", help=maps, **flag)
        import_path = "Import path of the network that is measured, if it is one of your own."
        add("--backbone", type=str | None, default=None, help=import_path)
        skipped = {*inspect.signature(fit).parameters} - {*_RUN_OPTIONS}
        parser.add_function_arguments(fit, as_group=False, skip={*skipped})
        parser.add_lightning_class_args(CAMLogger, "cams")
        parser.add_class_arguments(WandbOptions, "wandb")
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
        """Do nothing: ``MeasuredNetwork`` has read the checkpoint before the arguments."""

    def before_instantiate_classes(self) -> None:
        """Choose the run's name, and give a continued training the splits it began with."""
        self.settings: Namespace = self.config[self.subcommand]
        data, model = self.settings["data"], self.settings["model"]
        if self._measured is not None:
            self._changes = self._measured.changes(self.settings.as_dict(), self._split)
            is_plain = self._changes.get("refine") == "none" and not model["foreground"]
            if is_plain and "refine_layers" not in self._changes:
                model["refine_layers"] = None
            return
        given_name, self.settings["name"] = self.settings["name"], run_name(self.settings)
        if self.settings["ckpt_path"] == "auto":
            self.settings["ckpt_path"] = "last" if self._run.is_begun else None
        # A continued run has the name that it began with, and is always found by its folder's.
        self._given_name = None if self.settings["ckpt_path"] == "last" else given_name
        self.settings["project"] = project_or_default(
            self.settings["project"], self.settings["logger"]
        )
        self._settings_to_repeat = self._repeatable()
        if ckpt_path := self.settings["ckpt_path"]:
            file = self._run.last if ckpt_path == "last" else Path(ckpt_path)
            data["split_file"] = split_beside(file) or data["split_file"]

    @property
    def _split(self) -> Split:
        """The split that the verb measures."""
        return "val" if self._verb == "validate" else "test"

    def _repeatable(self) -> Namespace:
        """The settings with which ``fit --config`` begins such a run, though this one continues."""
        settings = self.settings.clone()
        settings["overwrite"] = False
        if settings["ckpt_path"] == "last":
            settings["ckpt_path"] = None
        return settings

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
        self._settings_to_repeat["monitor"] = settings["monitor"]
        fit(
            self.model,
            self.datamodule,
            folder=self._run.path,
            name=self._given_name,
            cams=self._get(self.config_init, "cams"),
            wandb=self._get(self.config_init, "wandb"),
            trainer=trainer,
            config=self._parser(subcommand).dump(self._settings_to_repeat, skip_none=False),
            **{name: settings[name] for name in ("ckpt_path", "overwrite", "weights_only")},
            **{name: settings[name] for name in _RUN_OPTIONS},
        )

    def _measure(self, trainer_options: dict[str, Any]) -> None:
        """Measure a network on the split of the verb."""
        assert self._measured is not None
        settings, split = self.settings, self._split
        folder = self._measured.results_folder(split, self._changes)
        callbacks = as_list(trainer_options["callbacks"])
        if split == "test":
            callbacks = [*callbacks, self._get(self.config_init, "cams")]
        if settings["save_maps"] and not trainer_options["fast_dev_run"]:
            callbacks = [MapWriter(folder / "wsol", root=settings["data"]["root"]), *callbacks]
        changes = {"logger": False, "enable_checkpointing": False, "callbacks": callbacks}
        precision = trainer_options["precision"] or best_precision()
        trainer = build_trainer({**trainer_options, **changes, "precision": precision})
        self._warn_of_division()
        self._measured.load_into(self.model, self._changes)
        self.model.follow_data(self.datamodule)
        check_size(self.model)
        with ending_cleanly(trainer, StopSignals()):
            evaluate = trainer.validate if split == "val" else trainer.test
            evaluate(self.model, datamodule=self.datamodule, verbose=False)
        sources = {"checkpoint": str(self._measured.path), "data": settings["data"]["root"]}
        if self._changes:
            sources["changes"] = as_plain(self._changes)
        if write_scores(split, folder, self.model, trainer, sources):
            print(f"Written: {folder}")

    def _warn_of_division(self) -> None:
        """Warn where a checkpoint without its splits may be measured on training pictures."""
        if self._split_is_chosen or not self.datamodule.is_divided_by_seed:
            return
        assert self._measured is not None
        data = self.settings["data"]
        warn(
            f"{self._measured.path} has no {SPLIT_NAME} beside it, so the pictures of "
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
        with _defaults(args) as (parser_kwargs, measured, names):
            CamtrainCLI(
                args=[*args, *names],
                measured=measured,
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults=dict(TRAINER_DEFAULTS),
                auto_configure_optimizers=False,
                parser_kwargs=parser_kwargs,
            )
    except CamtrainError as error:
        raise type(error)(spelled_as_options(str(error))) from error


@contextmanager
def _defaults(
    args: Sequence[str],
) -> Iterator[tuple[dict[str, Any], MeasuredNetwork | None, list[str]]]:
    """What the options begin with: the settings of a measured network, or of a continued run.

    Yields:
        Arguments of the parser, the network that a verb measures, and further words of the command
        line, which name the continued run.
    """
    verb = args[0]
    if {"-h", "--help", "--print_config"} & set(args):
        yield {}, None, []
        return
    check_options(verb, args[1:])
    for config in _values_of("--config", args):
        with suppress(FileNotFoundError, PermissionError):  # the parser names the file
            read_utf8(Path(config))
    path = _value_of("--ckpt_path", args)
    if verb == "fit":
        run = _named_run(args) if path in ("last", "auto") else None
        if run is not None and path == "last":
            check_start(run, "last", overwrite=False)
        if run is None or not run.config.is_file():
            yield {}, None, []
            return
        names = ["--name", run.path.name, "--runs_dir", str(run.path.parent)]
        yield {verb: {"default_config_files": [str(run.config)]}}, None, names
        return
    if path is None:
        raise CamtrainValueError(
            f"camtrain {verb} measures a trained network; give --ckpt_path runs/NAME, or a "
            "checkpoint or bundle."
        )
    measured = MeasuredNetwork(path, _value_of("--backbone", args))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(write_yaml(as_plain(measured.settings), ascii_only=True))
        file.flush()
        yield {verb: {"default_config_files": [file.name]}}, measured, []


def _named_run(args: Sequence[str]) -> RunFolder:
    """The run that ``fit --ckpt_path last`` continues, found before the arguments are parsed."""
    configs, of_files = [], {}
    if file := _value_of("--config", args):
        configs.append(file)
        with suppress(OSError, yaml.YAMLError, TypeError, ValueError):  # the parser names them
            of_files = dict(read_yaml(Path(file).read_text()))
    default = inspect.signature(CAMModule).parameters["backbone"].default
    backbone = {"backbone": default, **(of_files.get("model") or {})}["backbone"]
    name = run_name(
        {
            "name": _value_of("--name", args) or of_files.get("name"),
            "config": configs,
            "model": {"backbone": _value_of("--model.backbone", args) or backbone},
        }
    )
    runs_dir = _value_of("--runs_dir", args) or of_files.get("runs_dir") or "runs"
    return RunFolder(Path(runs_dir) / name)


def _value_of(option: str, args: Sequence[str]) -> str | None:
    """The value of an option on the command line, before it is parsed; the last one counts."""
    return next(reversed(_values_of(option, args)), None)


def _values_of(option: str, args: Sequence[str]) -> list[str]:
    values = []
    for index, arg in enumerate(args):
        if arg == option and index + 1 < len(args):
            values.append(args[index + 1])
        if arg.startswith(f"{option}="):
            values.append(arg.partition("=")[2])
    return values


def run_name(settings: Mapping[str, Any] | Namespace) -> str:
    """The name of a run: the given one, else that of the config's file, else of the backbone.

    Raises:
        CamtrainValueError: It is not the name of a folder within another one.
    """
    if settings["name"]:
        name = str(settings["name"])
        if os.path.isabs(name) or os.path.normpath(name).partition(os.sep)[0] in (".", ".."):
            raise CamtrainValueError(
                f"name must be that of a folder in runs_dir, got {name!r}; give a name such as "
                "birds, and the folder of all runs as runs_dir."
            )
        return name
    configs = settings["config"] or []
    name = Path(str(configs[-1])).stem if configs else str(settings["model"]["backbone"])
    # The agent of a W&B sweep runs the same config several times.
    trial = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    is_own = is_import_path(name) and not configs
    name = re.split("[.]" if is_own else "[/:]", name.rstrip("/"))[-1]
    return "-".join([name, *([trial] if trial else [])])
