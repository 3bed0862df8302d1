"""What a person reads on the terminal before and after a run."""

from __future__ import annotations

from collections.abc import Sequence

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger
from rich import box
from rich.console import Console
from rich.table import Table

from camtrain.training.datamodule import CAMDataModule
from camtrain.training.loggers import sync_hint
from camtrain.training.module import CAMModule
from camtrain.training.run import RunFolder

_MEANINGS = {
    "loss": "cross-entropy",
    "acc1": "accuracy, top-1",
    "acc5": "accuracy, top-5",
    "loc_gt_known": "GT-known localization (threshold 0.2, IoU 0.5)",
    "loc_top1": "top-1 localization",
    "loc_top5": "top-5 localization",
    "max_box_acc": "MaxBoxAcc (IoU 0.5, best threshold)",
    "centre_box_acc": "centre box, for comparison",
}


def print_header(module: CAMModule, data: CAMDataModule, trainer: Trainer) -> None:
    """One line about what is going to be trained, on what, and how."""
    if not trainer.is_global_zero:
        return
    trained = sum(p.numel() for p in module.net.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.net.parameters())
    pictures = ", ".join(f"{len(source)} {split}" for split, source in data.sources.items())
    Console(soft_wrap=True, highlight=False).print(
        f"{module.hparams['backbone']}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M "
        "trained; "
        f"{data.num_classes} classes; pictures: {pictures}; {trainer.precision}"
    )


def print_scores(split: str, trainer: Trainer) -> None:
    """The table of a split's scores."""
    if not trainer.is_global_zero:
        return
    table = Table("score", "", f"{split} split", box=box.SIMPLE_HEAD)
    table.columns[2].justify = "right"
    for name, value in trainer.callback_metrics.items():
        prefix, _, score = name.partition("/")
        if prefix == split:
            number = f"{value:.4f}" if score == "loss" else f"{100 * value:.2f} %"
            table.add_row(name, _MEANINGS.get(score, ""), number)
    Console().print(table)


def print_written(folder: RunFolder | None, loggers: Sequence[Logger]) -> None:
    """Where everything was written."""
    if folder is None:
        return
    rows = {
        "bundle, for inference": folder.bundle,
        "checkpoints": folder.checkpoints,
        "heatmaps by epoch": folder.cams,
        "scores by epoch": folder.metrics,
        "settings": folder.config,
    }
    table = Table("written", "where", box=box.SIMPLE_HEAD)
    for what, path in rows.items():
        if path.exists():
            table.add_row(what, str(path))
    hint = sync_hint(loggers)
    if hint:
        table.add_row("Weights & Biases", hint)
    Console(soft_wrap=True).print(table)
