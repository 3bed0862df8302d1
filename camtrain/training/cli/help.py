"""The argument parser: errors of one line, and a help with the usual options first, in groups."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from pytorch_lightning.cli import LightningArgumentParser

from camtrain.arguments import exit_with_error, expected_value, metavar_of


class Page(NamedTuple):
    """The help of a verb: what it does, an example, option names by group, a note."""

    text: str
    example: str
    groups: Mapping[str, Sequence[str]]
    note: str


# Replaces what jsonargparse and Lightning write in many words or not at all.
_TEXTS = {
    "config": "YAML file of these options; later ones on the command line win.",
    "print_config": "Print every setting as YAML, and stop.",
    "seed_everything": "Seed of all random numbers.",
    "trainer.max_epochs": "Most epochs to train.",
    "trainer.max_steps": "Most steps of the optimizer; -1: no limit.",
    "trainer.max_time": "Longest time of the training.",
    "trainer.accelerator": "Kind of device: cpu, gpu, mps or auto.",
    "trainer.devices": "How many devices, or which of them: 2, [0, 3] or auto.",
    "trainer.num_nodes": "Number of machines.",
    "trainer.strategy": "How devices train together: ddp where there are several; auto chooses.",
    "trainer.precision": (
        "Format of numbers in training; null: bf16-mixed where the processor is fast at it. "
        "Evaluation is always float32."
    ),
    "trainer.accumulate_grad_batches": "Number of batches per step of the optimizer.",
    "trainer.gradient_clip_val": "Largest norm of the gradient; null: no limit.",
    "trainer.check_val_every_n_epoch": "Number of epochs from one validation to the next.",
    "trainer.val_check_interval": "Validate within epochs: after this part, or so many batches.",
    "trainer.limit_train_batches": "Part of the training batches, or how many, per epoch.",
    "trainer.limit_val_batches": "Part of the validation batches, or how many.",
    "trainer.limit_test_batches": "Part of the test batches, or how many.",
    "trainer.deterministic": "Use deterministic algorithms only.",
    "trainer.callbacks": "Further callbacks of Lightning, such as EarlyStopping.",
    "trainer.enable_progress_bar": "Show a progress bar.",
    "trainer.fast_dev_run": "Run so many batches of everything, and write nothing.",
}
_CONTINUE = (
    "last continues the run of this name with its settings; auto does so if there is one, and "
    "begins it otherwise; a path starts from a checkpoint."
)
_MEASURE = "A run's folder, which stands for its best epoch; or a checkpoint, or a bundle."
_WITHOUT_DEFAULT = {"config", "print_config", "ckpt_path"}
# Values whose annotation says less than is known.
_METAVARS = {
    **dict.fromkeys(("config", "runs_dir"), "PATH"),
    **dict.fromkeys(
        ("data.val_fraction", "data.test_fraction", "data.crop_pct", "data.hide_and_seek"), "0..1"
    ),
    **dict.fromkeys(("model.dropout", "model.label_smoothing", "model.ema_decay"), "0..1"),
    "trainer.devices": "N|[N, ...]|auto",
    **dict.fromkeys(("trainer.val_check_interval", "trainer.gradient_clip_val"), "N|X"),
    "trainer.max_time": "DD:HH:MM:SS",
    "trainer.precision": "{32-true,bf16-mixed,16-mixed}",
    "trainer.callbacks": "CLASS",
    "seed_everything": "N",
}


_DATA = "root source val_fraction test_fraction split_file exclude"
_TRAINER = "accelerator devices num_nodes strategy precision"
_FIT = {  # titles of groups, the part that the options belong to, and their names
    "The run": (
        "",
        "name runs_dir overwrite ckpt_path monitor save_every_minutes config print_config "
        "seed_everything",
    ),
    "Pictures": (
        "data.",
        f"{_DATA} class_names path_column label_column objects_column head_boxes metadata lengths "
        "seed",
    ),
    "From picture to input": (
        "data.",
        "size resize_mode crop_pct interpolation mean std channel_order",
    ),
    "Augmentation": ("data.", "augment auto_augment hide_and_seek"),
    "Loading": (
        "data.",
        "batch_size workers sampler max_damaged allow_damaged exif reduced_decoding",
    ),
    "Kept on this disk": ("data.", "cache_features cache_dir shards_cache shards_cache_gb"),
    "The network": (
        "model.",
        "backbone weights cut stride neck neck_kernel neck_groups neck_norm pool dropout task "
        "in_chans backbone_args class_names preprocessing",
    ),
    "What is trained": (
        "model.",
        "freeze_backbone freeze_head freeze_until unfreeze_at_epoch head_solver backbone_lr_ratio "
        "layer_decay",
    ),
    "Optimizer and schedule": (
        "model.",
        "optimizer opt_args lr find_lr weight_decay momentum schedule schedule_args warmup_epochs "
        "ema_decay channels_last compile",
    ),
    "Loss": ("model.", "label_smoothing class_weights mixup cutmix teacher teacher_weight"),
    "Maps": ("model.", "foreground refine refine_layers"),
    "Loggers": ("", "logger project"),
    "The run in W&B": ("wandb.", "entity group tags notes job_type register"),
    "Watching": (
        "cams.",
        "num_images num_mistakes log_mistakes masks faithfulness colormap tile seed dirpath report",
    ),
    "Lightning's Trainer": (
        "trainer.",
        f"max_epochs max_steps max_time {_TRAINER} accumulate_grad_batches gradient_clip_val "
        "check_val_every_n_epoch val_check_interval limit_train_batches limit_val_batches "
        "deterministic callbacks enable_progress_bar fast_dev_run",
    ),
}


def _full_names(groups: Mapping[str, tuple[str, str]]) -> dict[str, list[str]]:
    return {
        title: [f"{part}{name}" for name in names.split()]
        for title, (part, names) in groups.items()
    }


def _page_of_measuring(verb: str, split: str) -> Page:
    of_test = {"Faithfulness of the maps": ("cams.", "faithfulness")} if split == "test" else {}
    groups = {
        "What is measured": ("", "ckpt_path backbone save_maps"),
        **of_test,
        "Pictures": ("data.", f"{_DATA} allow_damaged"),
        "From picture to input": _FIT["From picture to input"],
        "Maps": ("model.", "refine refine_layers pool stride"),
        "Loading": ("data.", "batch_size workers"),
        "Lightning's Trainer": (
            "trainer.",
            f"{_TRAINER} limit_{split}_batches deterministic callbacks enable_progress_bar "
            "fast_dev_run",
        ),
    }
    return Page(
        f"Measure a network on the {split} split: accuracy, and localization where boxes are.",
        f"camtrain {verb} --ckpt_path runs/quickstart",
        _full_names(groups),
        "Network, classes, preprocessing and data come from the run or checkpoint; a bundle does "
        "not know the data, give --data.root. The options above replace what it says. Scores are "
        f"printed and written into the run or beside the file, to {split}/; with other settings to "
        f"a folder of their own, such as {split}-refine=affinity/.",
    )


PAGES = {
    "fit": Page(
        "Train a CAM network, watch its heatmaps, test it and write the bundle for inference.",
        "camtrain fit --data.root photos --model.backbone torchvision/resnet50 "
        "--trainer.max_epochs 5",
        _full_names(_FIT),
        "--trainer. also takes Lightning's other options. Everything is written to "
        "runs/NAME: report.html shows the training while it runs.",
    ),
    "validate": _page_of_measuring("validate", "val"),
    "test": _page_of_measuring("test", "test"),
}


class OneLineParser(LightningArgumentParser):
    """LightningArgumentParser with errors of one line, and with our help."""

    verb: str | None = None  # whose options it parses; None for the parser of all verbs

    def format_help(self, *args: Any) -> str:
        """The help of the verb."""
        if self.verb is None:
            return super().format_help(*args)
        page = PAGES[self.verb]
        actions = {action.dest: action for action in self._actions if action.option_strings}
        formatter = argparse.HelpFormatter(f"camtrain {self.verb}", max_help_position=36)
        usage = f"camtrain {self.verb} [--config FILE] [--GROUP.OPTION VALUE ...]"
        formatter.add_usage(usage, [], [])
        formatter.add_text(page.text)
        formatter.add_text(f"Example: {page.example}")
        for title, names in page.groups.items():
            formatter.start_section(title)
            formatter.add_arguments([_printed(actions[name], self.verb) for name in names])
            formatter.end_section()
        formatter.add_text(page.note)
        return formatter.format_help()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        line = " ".join(message.split())
        options = {action.dest: action for action in _options(self)}
        refused = re.match(r'Parser key "([\w.]+)": .*?(?:Got value|Given value): (.*)', line)
        if refused and refused[1] in options:
            annotation = getattr(options[refused[1]], "_typehint", None)
            line = f"--{refused[1]} must be {expected_value(annotation)}, got {refused[2]}."
        else:
            line = f"{line}{_hint(line, list(options))}"
        exit_with_error(line)


def _printed(action: argparse.Action, verb: str) -> argparse.Action:
    """The option as the help prints it: its values, what it does, its default."""
    texts = {**_TEXTS, "ckpt_path": _CONTINUE if verb == "fit" else _MEASURE}
    text = texts.get(action.dest, action.help or "").replace("``", "").replace("None", "null")
    # Omit the default where the text explains null, and where it comes from the checkpoint.
    is_explained = action.default in (None, argparse.SUPPRESS) or action.dest in _WITHOUT_DEFAULT
    if not is_explained and (verb == "fit" or not action.dest.startswith("data.")):
        text = f"{text} (default {_as_yaml(action.default)})"
    return argparse.Action(
        option_strings=[f"--{action.dest}"],
        dest=action.dest,
        nargs=0 if action.dest == "print_config" else None,
        metavar=_METAVARS.get(action.dest) or metavar_of(getattr(action, "_typehint", None)),
        help=text.replace("%", "%%"),
    )


def _as_yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _hint(message: str, options: list[str]) -> str:
    """The end of an error message: the option that was probably meant, or where to look."""
    refused = re.search(r"(?:option '|arguments: -*|[Kk]ey '?\"?)([\w.]+)", message)
    if refused is None or refused[1] in options:
        return "; camtrain VERB --help lists the options"
    nearest = difflib.get_close_matches(refused[1], options, n=1, cutoff=0.7)
    return f"; did you mean {nearest[0]}?" if nearest else "; camtrain VERB --help lists them"


def spelled_as_options(message: str) -> str:
    """A message about arguments of a script, with the options of the command line in their place.

    Example:
        >>> spelled_as_options('lr must be above 0, got -1; continue with ckpt_path="last".')
        '--model.lr must be above 0, got -1; continue with --ckpt_path last.'
    """
    names = [name for group in PAGES["fit"].groups.values() for name in group]
    options = {name.rpartition(".")[2]: name for name in reversed(names)}
    options |= {name: name for name in names}

    def spelled(match: re.Match[str]) -> str:
        if match[1] not in options:
            return match[0]
        value = match[2].strip("='\"").replace("None", "null")
        return f"--{options[match[1]]}" + (f" {value}" if value not in ("", "True") else "")

    value = r"""=(?:"[^"]*"|'[^']*'|\([^)]*\)|[\w/.~][^\s;,()]*\w|\w)"""
    message = re.sub(rf"(?<![-\w.])([\w.]+)({value})", spelled, message)
    return re.sub(r"^([\w.]+)()(?= (?:of \S+ )?must )", spelled, message)


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options of a parser and of its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)
        else:
            yield action
