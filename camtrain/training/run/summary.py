"""What a run prints on the terminal before and after its training."""

from __future__ import annotations

from pytorch_lightning import LightningDataModule, Trainer
from rich import box
from rich.console import Console
from rich.table import Table

from camtrain.training.datamodule import CAMDataModule
from camtrain.training.evaluate.scores import SCORES
from camtrain.training.module import CAMModule
from camtrain.training.run.folder import RunFolder
from camtrain.training.run.loggers import sync_hint


def print_header(module: CAMModule, data: LightningDataModule, trainer: Trainer) -> None:
    """Print one line about the network, its classes, the pictures and the precision."""
    if not trainer.is_global_zero:
        return
    trained = sum(p.numel() for p in module.net.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.net.parameters())
    sources = data.sources if isinstance(data, CAMDataModule) else {}
    pictures = ", ".join(f"{len(source)} {split}" for split, source in sources.items())
    Console(soft_wrap=True, highlight=False).print(
        f"{module.hparams['backbone']}: {total:,} parameters, {trained:,} of them trained; "
        f"{module.net.head.out_features} classes; "
        f"{f'pictures: {pictures}; ' if pictures else ''}{trainer.precision}"
    )


def print_scores(split: str, trainer: Trainer) -> None:
    """Print the table of a split's scores."""
    if not trainer.is_global_zero:
        return
    table = Table("score", "", f"{split} split", box=box.SIMPLE_HEAD)
    table.columns[2].justify = "right"
    for score, text in SCORES.items():
        value = trainer.callback_metrics.get(f"{split}/{score}")
        if value is not None:
            number = f"{value:.4f}" if score == "loss" else f"{100 * value:.2f} %"
            table.add_row(f"{split}/{score}", text, number)
    Console().print(table)


def print_written(folder: RunFolder | None, trainer: Trainer) -> None:
    """Print where everything was written, and how to continue a run that was stopped."""
    if folder is None or not trainer.is_global_zero:
        return
    paths = {
        "bundle, for inference": folder.bundle,
        "checkpoints": folder.checkpoints,
        "report, for a browser": folder.report,
        "heatmaps by epoch": folder.cams,
        "heatmaps over the epochs": folder.over_epochs,
        "scores by epoch": folder.metrics,
        "localization, test": folder.path / "test" / "localization.json",
        "splits of the pictures": folder.split,
        "settings": folder.config,
    }
    rows = {what: str(path) for what, path in paths.items() if path.exists()}
    hint = sync_hint(trainer.loggers)
    if hint:
        rows["curves"] = hint
    if not rows:  # stopped before anything was
        return
    if trainer.interrupted and folder.last.is_file():
        rows["continue"] = "the same command with --ckpt_path last"
    width = max(map(len, rows))
    # Plain lines, unlike a table, keep a long path whole, so that it can be copied.
    print("\n".join(["Written:", *(f"  {what:{width}}  {where}" for what, where in rows.items())]))
