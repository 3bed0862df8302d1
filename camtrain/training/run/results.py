"""What a run prints, and the files of an evaluation: scores, and maps for the WSOL benchmark."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from camtrain.arguments import print_paragraph
from camtrain.data import Batch
from camtrain.errors import CamtrainValueError
from camtrain.files import append, replacing, write_picture, write_text
from camtrain.maps import score_map
from camtrain.training.datamodule import CAMDataModule
from camtrain.training.evaluate.scores import score_rows
from camtrain.training.evaluate.verdict import verdict
from camtrain.training.module import CAMModule
from camtrain.training.run.folder import RunFolder
from camtrain.training.run.loggers import place_of
from camtrain.visualize import threshold_chart

# Files of the benchmark's metadata folder, with one line per picture or per box.
_LISTS = ("image_ids", "class_labels", "image_sizes", "localization")


def print_header(module: CAMModule, data: LightningDataModule, trainer: Trainer) -> None:
    """Print one line about the network, its classes, the pictures and the precision."""
    if not trainer.is_global_zero:
        return
    sizes = [(p.numel(), p.requires_grad) for p in module.net.parameters()]
    total, trained = (
        sum(size for size, _ in sizes),
        sum(size for size, is_trained in sizes if is_trained),
    )
    sources = data.sources if isinstance(data, CAMDataModule) else {}
    pictures = ", ".join(f"{len(source)} {split}" for split, source in sources.items())
    in_chans = (module.net.description.architecture or {})["in_chans"]
    pictures += ", in grey" if pictures and in_chans == 1 else ""
    print_paragraph(
        f"{module.hparams['backbone']}: {total:,} parameters, {trained:,} of them trained; "
        f"{module.net.head.out_features} classes; "
        f"{f'pictures: {pictures}; ' if pictures else ''}{trainer.precision}"
    )


def print_run_files(folder: RunFolder, trainer: Trainer) -> None:
    """Print the paths of all files of a run, and how to continue a run that was stopped."""
    if not trainer.is_global_zero:
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
    if curves := place_of(trainer.loggers):
        rows["curves"] = curves
    if not rows:  # the run was stopped before anything was written
        return
    if trainer.interrupted and folder.last.is_file():
        place = [f"--runs_dir {folder.path.parent} "] if str(folder.path.parent) != "runs" else []
        rows["continue"] = (
            f"camtrain fit {''.join(place)}--name {folder.path.name} --ckpt_path last; in a "
            'script: fit(..., ckpt_path="last")'
        )
    width = max(map(len, rows))
    # Plain lines, unlike a table, keep a long path whole, so that it can be copied.
    print("\n".join(["Written:", *(f"  {what:{width}}  {where}" for what, where in rows.items())]))
    if folder.bundle.is_file() and not trainer.interrupted:
        print("Next:\n" + "\n".join(f"  {command}" for command in next_commands(folder)))


def next_commands(folder: RunFolder) -> list[str]:
    """What to do with a finished run, as commands to copy."""
    bundle = shlex.quote(str(folder.bundle))
    return [
        f"camtrain predict {bundle} PICTURES --output found",
        f"camtrain demo {bundle}",
        f"camtrain export {bundle} --format onnx",
    ]


def write_scores(
    split: str,
    folder: Path,
    module: CAMModule,
    trainer: Trainer,
    sources: Mapping[str, str | None],
) -> bool:
    """Print the scores of a split and write what was measured.

    ``localization.json`` gets all of it, ``localization.png`` the accuracy by threshold. Without
    boxes there is no picture, and with ``fast_dev_run`` nothing is written.

    Args:
        split: ``val`` or ``test``.
        folder: Folder of the two files.
        module: The module that has measured.
        trainer: The trainer that has logged the scores.
        sources: The checkpoint and the data, as ``localization.json`` names them.

    Returns:
        Whether anything was written.
    """
    if not trainer.is_global_zero:
        return False
    scores = {
        name.removeprefix(f"{split}/"): value.item()
        for name, value in trainer.callback_metrics.items()
        if name.startswith(f"{split}/")
    }
    _print_scores(split, scores)
    report = module.reports.get(split)
    if "by_size" in (report or {}):
        _print_breakdown(split, report)
    if sentence := verdict(report or {}, scores):
        print_paragraph(f"{split}: {sentence}")
    if split == "test" and not {"max_box_acc", "srg"} & scores.keys():
        print_paragraph(
            "Whether the maps show what the network uses: --cams.faithfulness 64, in minutes."
        )
    if report is None or getattr(trainer, "fast_dev_run", False):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    content = {"split": split, **sources, "scores": scores, **report}
    write_text(folder / "localization.json", json.dumps(content, indent=1) + "\n")
    picture = folder / "localization.png"
    if "curves" not in report:
        picture.unlink(missing_ok=True)  # of an earlier evaluation
        return True
    accuracy = report["curves"]["largest_contour"]
    # The marks are about IoU 0.5: its curve comes first, and is drawn bold.
    curves = {f"IoU {iou}": torch.tensor(accuracy[iou]) for iou in ("0.5", "0.3", "0.7")}
    marks = {name: report["thresholds"][name] for name in ("fixed", "calibrated", "oracle")}
    chart = threshold_chart(
        torch.tensor(report["curves"]["threshold"]),
        curves,
        {name: mark for name, mark in marks.items() if mark is not None},
        title=f"{split}: pictures whose box is right, by the threshold of the map",
    )
    write_picture(picture, chart)
    return True


def _print_scores(split: str, scores: Mapping[str, float]) -> None:
    table = Table("score", "", f"{split} split", box=box.SIMPLE_HEAD)
    table.columns[2].justify = "right"
    for name, (text, number) in score_rows(scores).items():
        table.add_row(f"{split}/{name}", text, number)
    Console().print(table)


def _print_breakdown(split: str, report: Mapping[str, Any]) -> None:
    """Print for which pictures the boxes are right, and why the others miss."""
    table = Table("thing, part of the picture", "pictures", "boxes", "centre", box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in (report["by_size"] | report["by_number"]).items():
        right = [f"{100 * row[kind]:.1f} %" for kind in ("boxes", "centre")]
        table.add_row(name, str(row["pictures"]), *right)
    Console().print(table)
    misses = ", ".join(f"{number} {kind}" for kind, number in report["misses"].items())
    print_paragraph(f"{split}, misses: {misses}")


class MapWriter(Callback):
    """Writes the map of every picture's true class as the WSOL benchmark's program reads it.

    ``scoremaps/ID.npy`` holds (224, 224) float64 in [0, 1], and ``metadata/`` the benchmark's four
    lists; ID is the picture's path below the data folder. Boxes are 0-based and inclusive there.
    Pictures without a box are left out: the program asks for a box of every picture.
    """

    def __init__(self, folder: Path, *, root: str | Path | None) -> None:
        """Take the folder; the files are written when the evaluation begins.

        Args:
            folder: The folder to write; an earlier evaluation in it is deleted.
            root: The data folder, or None where the pictures have no files.
        """
        self.folder = folder
        self._lists = {name: folder / "metadata" / f"{name}.txt" for name in _LISTS}
        self.root = None if root is None else Path(root).absolute()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create empty lists."""
        if trainer.is_global_zero:
            shutil.rmtree(self.folder, ignore_errors=True)
            (self.folder / "metadata").mkdir(parents=True, exist_ok=True)
            for file in self._lists.values():
                file.write_text("")
        trainer.strategy.barrier()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the maps of a batch and add its pictures to the lists."""
        if isinstance(outputs, Mapping) and "maps" in outputs:
            self._write(outputs["batch"], outputs["maps"].benchmark)

    on_validation_start = on_test_start
    on_validation_batch_end = on_test_batch_end

    def _write(self, batch: Batch, maps: Tensor) -> None:
        lines: dict[str, list[str]] = {name: [] for name in _LISTS}
        for index, path in enumerate(batch.paths):
            name = Path(path if self.root is None else os.path.relpath(path, self.root)).as_posix()
            if not len(batch.boxes_xyxy[index]):
                continue
            if "," in name:
                raise CamtrainValueError(
                    f"The benchmark's lists are separated by commas, got a picture {name!r}; "
                    "rename it, or leave --save_maps out."
                )
            file = self.folder / "scoremaps" / f"{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file, is_synced=False) as part:
                np.save(part, score_map(maps[index]))
            height, width = batch.sizes_hw[index].tolist()
            lines["image_ids"].append(name)
            lines["class_labels"].append(f"{name},{int(batch.labels[index])}")
            lines["image_sizes"].append(f"{name},{width},{height}")
            for x0, y0, x1, y1 in batch.boxes_xyxy[index].tolist():
                lines["localization"].append(f"{name},{x0},{y0},{x1 - 1},{y1 - 1}")
        for name, new_lines in lines.items():
            append(self._lists[name], "".join(f"{line}\n" for line in new_lines).encode())
