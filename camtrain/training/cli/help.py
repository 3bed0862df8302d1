"""What ``camtrain fit --help`` and its like print: grouped, the usual options first."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """Options that belong together.

    Attributes:
        title: Their heading.
        options: Their names, without the prefix.
        prefix: Of every name, such as ``model.``.
    """

    title: str
    options: Sequence[str]
    prefix: str = ""

    @property
    def names(self) -> list[str]:
        """The full names."""
        return [f"{self.prefix}{option}" for option in self.options]


@dataclass(frozen=True)
class Page:
    """The help of a verb: what it does, an example, its options by section, a note."""

    text: str
    example: str
    sections: Sequence[Section]
    note: str


# What jsonargparse and Lightning say in many words or not at all.
_TEXTS = {
    "config": "YAML file of these options; later ones on the command line win.",
    "print_config": "Print every setting as YAML, and stop.",
    "seed_everything": "Of all random numbers.",
    "trainer.max_epochs": "Epochs at most.",
    "trainer.max_steps": "Steps of the optimizer at most; -1: no limit.",
    "trainer.max_time": "Time at most, as DD:HH:MM:SS.",
    "trainer.accelerator": "cpu, gpu, mps or auto.",
    "trainer.devices": "How many, or which: 2, [0, 3] or auto.",
    "trainer.num_nodes": "Machines.",
    "trainer.strategy": "ddp for several devices; auto chooses it.",
    "trainer.precision": (
        "32-true, bf16-mixed or 16-mixed; null: bf16-mixed where the processor is fast at it. "
        "Evaluation is always float32."
    ),
    "trainer.accumulate_grad_batches": "Batches per step of the optimizer.",
    "trainer.gradient_clip_val": "Largest norm of the gradient.",
    "trainer.check_val_every_n_epoch": "Epochs from one validation to the next.",
    "trainer.val_check_interval": "Validate within epochs: after this part, or so many batches.",
    "trainer.limit_train_batches": "Part of the training batches, or how many, per epoch.",
    "trainer.limit_val_batches": "Part of the validation batches, or how many.",
    "trainer.limit_test_batches": "Part of the test batches, or how many.",
    "trainer.deterministic": "Use deterministic algorithms only.",
    "trainer.callbacks": "Further callbacks of Lightning, such as EarlyStopping.",
    "trainer.enable_progress_bar": "Show one.",
    "trainer.fast_dev_run": "Run so many batches of everything, and write nothing.",
}
_CONTINUE = "last: continue the run of this name; or a checkpoint to start from."
_MEASURE = "The checkpoint to measure, such as runs/NAME/checkpoints/best.ckpt."

_TOLD = {"config", "print_config", "ckpt_path"}

_RUN = ("name", "runs_dir", "overwrite", "ckpt_path", "monitor", "save_every_minutes")
_DATA = ("root", "source", "val_fraction", "test_fraction", "split_file", "exclude")
_DAMAGED = ("max_damaged", "allow_damaged", "exif", "reduced_decoding")
_TRAINER = ("accelerator", "devices", "num_nodes", "strategy", "precision")
_FIT = (
    Section("The run", (*_RUN, "config", "print_config", "seed_everything")),
    Section("Pictures", (*_DATA, "class_names", "metadata", "lengths", "seed"), "data."),
    Section(
        "From picture to input",
        ("size", "resize_mode", "crop_pct", "interpolation", "mean", "std", "channel_order"),
        "data.",
    ),
    Section("Augmentation", ("augment", "auto_augment", "hide_and_seek"), "data."),
    Section("Loading", ("batch_size", "workers", "sampler", *_DAMAGED), "data."),
    Section(
        "Kept on this disk",
        ("cache_features", "cache_dir", "shards_cache", "shards_cache_gb"),
        "data.",
    ),
    Section(
        "The network",
        (
            *("backbone", "weights", "cut", "stride", "neck", "neck_kernel", "neck_groups"),
            *("neck_norm", "pool", "dropout", "task", "in_chans", "backbone_args"),
        ),
        "model.",
    ),
    Section(
        "What is trained",
        (
            *("freeze_backbone", "freeze_until", "unfreeze_at_epoch", "head_solver"),
            *("backbone_lr_ratio", "layer_decay"),
        ),
        "model.",
    ),
    Section(
        "Optimizer and schedule",
        (
            *("optimizer", "opt_args", "lr", "find_lr", "weight_decay", "momentum", "schedule"),
            *("schedule_args", "warmup_epochs", "ema_decay", "channels_last", "compile"),
        ),
        "model.",
    ),
    Section(
        "Loss",
        ("label_smoothing", "class_weights", "mixup", "cutmix", "teacher", "teacher_weight"),
        "model.",
    ),
    Section("Maps", ("refine", "refine_layers"), "model."),
    Section("Loggers", ("logger", "project")),
    Section(
        "Watching",
        (
            *("num_images", "num_mistakes", "log_mistakes", "colormap", "tile", "seed"),
            *("dirpath", "report"),
        ),
        "cams.",
    ),
    Section(
        "Lightning's Trainer",
        (
            *("max_epochs", "max_steps", "max_time", *_TRAINER, "accumulate_grad_batches"),
            *("gradient_clip_val", "check_val_every_n_epoch", "val_check_interval"),
            *("limit_train_batches", "limit_val_batches", "deterministic", "callbacks"),
            *("enable_progress_bar", "fast_dev_run"),
        ),
        "trainer.",
    ),
)


def _measuring(split: str) -> Page:
    verb = "validate" if split == "val" else "test"
    trainer = (*_TRAINER, f"limit_{split}_batches", "enable_progress_bar", "fast_dev_run")
    return Page(
        f"Measure a checkpoint on the {verb} split: accuracy, and localization where boxes are.",
        f"camtrain {verb} --ckpt_path runs/quickstart/checkpoints/best.ckpt",
        (
            Section("What is measured", ("ckpt_path", "save_maps")),
            Section("Pictures", (*_DATA, "allow_damaged"), "data."),
            Section("Loading", ("batch_size", "workers"), "data."),
            Section("Lightning's Trainer", trainer, "trainer."),
        ),
        "Network, classes, preprocessing and data come from the checkpoint; any option of camtrain "
        "fit replaces what it says. Scores are printed and written beside the checkpoint.",
    )


PAGES = {
    "fit": Page(
        "Train a CAM network, watch its heatmaps, test it and write the bundle for inference.",
        "camtrain fit --data.root photos --model.backbone torchvision/resnet50 "
        "--trainer.max_epochs 5",
        _FIT,
        "--trainer. also takes Lightning's other options. Everything is written to "
        "runs/NAME: report.html shows the training while it runs.",
    ),
    "validate": _measuring("val"),
    "test": _measuring("test"),
}


def verb_help(verb: str, parser: argparse.ArgumentParser) -> str:
    """The help of a verb, from the options of its parser."""
    page = PAGES[verb]
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    formatter = argparse.HelpFormatter(f"camtrain {verb}", max_help_position=36)
    usage = f"camtrain {verb} [--config FILE] [--GROUP.OPTION VALUE ...]"
    formatter.add_usage(usage, [], [])
    formatter.add_text(page.text)
    formatter.add_text(f"Example: {page.example}")
    for section in page.sections:
        formatter.start_section(section.title)
        for name in section.names:
            formatter.add_argument(_shown(actions[name], verb))
        formatter.end_section()
    formatter.add_text(page.note)
    return formatter.format_help()


def _shown(action: argparse.Action, verb: str) -> argparse.Action:
    """An option as it is printed: its values, what it does, its default."""
    texts = {**_TEXTS, "ckpt_path": _CONTINUE if verb == "fit" else _MEASURE}
    text = texts.get(action.dest, action.help or "").replace("``", "").replace("None", "null")
    # What null means, the text tells; what a checkpoint says, nobody knows here.
    is_told = action.default in (None, argparse.SUPPRESS) or action.dest in _TOLD
    if not is_told and (verb == "fit" or not action.dest.startswith("data.")):
        text = f"{text} (default {_as_yaml(action.default)})"
    return argparse.Action(
        option_strings=[f"--{action.dest}"],
        dest=action.dest,
        nargs=0 if action.dest == "print_config" else None,
        metavar=action.metavar or "VALUE",
        help=text.replace("%", "%%"),
    )


def _as_yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)
