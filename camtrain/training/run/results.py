"""The files of an evaluation: scores, accuracy by threshold, maps for the WSOL benchmark."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from camtrain.data import Batch
from camtrain.errors import CamtrainValueError
from camtrain.files import write_text
from camtrain.maps import score_map
from camtrain.training.module import CAMModule
from camtrain.training.run.summary import print_scores
from camtrain.visualize import threshold_chart

# Files of the benchmark's metadata folder, with one line per picture or per box.
_LISTS = ("image_ids", "class_labels", "image_sizes", "localization")


def write_scores(
    split: str,
    folder: Path,
    module: CAMModule,
    trainer: Trainer,
    sources: Mapping[str, str | None],
) -> bool:
    """Print the scores of a split and write what was measured.

    Without boxes there is no picture, and with ``fast_dev_run`` nothing is written.

    Args:
        split: ``val`` or ``test``.
        folder: Gets ``localization.json`` and the accuracy by threshold, ``localization.png``.
        module: Has measured.
        trainer: Has logged the scores.
        sources: The checkpoint and the data, as ``localization.json`` names them.

    Returns:
        Whether anything was written.
    """
    if not trainer.is_global_zero:
        return False
    print_scores(split, trainer)
    report = module.reports.get(split)
    if report is None or getattr(trainer, "fast_dev_run", False):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    scores = {
        name.removeprefix(f"{split}/"): value.item()
        for name, value in trainer.callback_metrics.items()
        if name.startswith(f"{split}/")
    }
    content = {"split": split, **sources, "scores": scores, **report}
    write_text(folder / "localization.json", json.dumps(content, indent=1) + "\n")
    picture = folder / "localization.png"
    if not report:
        picture.unlink(missing_ok=True)  # of an earlier evaluation
        return True
    accuracy = report["curves"]["largest_contour"]
    # The marks are about IoU 0.5: its curve comes first, and is drawn bold.
    curves = {f"IoU {iou}": torch.tensor(accuracy[iou]) for iou in ("0.5", "0.3", "0.7")}
    marks = {name: report["thresholds"][name] for name in ("fixed", "calibrated", "oracle")}
    threshold_chart(
        torch.tensor(report["curves"]["threshold"]),
        curves,
        {name: mark for name, mark in marks.items() if mark is not None},
        title=f"{split}: pictures whose box is right, by the threshold of the map",
    ).save(picture)
    return True


class MapWriter(Callback):
    """Writes the map of every picture's true class as the WSOL benchmark's program reads it.

    ``scoremaps/ID.npy`` holds (224, 224) float64 in [0, 1], and ``metadata/`` the benchmark's four
    lists; ID is the picture's path below the data folder. Boxes are 0-based and inclusive there.
    Pictures without a box are left out: the program asks for a box of every picture.
    """

    def __init__(self, folder: Path, *, root: str | Path | None) -> None:
        """Nothing is written before the evaluation begins.

        Args:
            folder: To write to; an earlier evaluation in it is deleted.
            root: The data folder, or None where the pictures have no files.
        """
        self.folder = folder
        self.root = None if root is None else Path(root).absolute()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create empty lists."""
        if trainer.is_global_zero:
            shutil.rmtree(self.folder, ignore_errors=True)
            (self.folder / "metadata").mkdir(parents=True, exist_ok=True)
            for name in _LISTS:
                self._list(name).write_text("")
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
            name = path if self.root is None else os.path.relpath(path, self.root)
            name = Path(name).as_posix()
            if not len(batch.boxes_xyxy[index]):
                continue
            if "," in name:
                raise CamtrainValueError(
                    f"The benchmark's lists are separated by commas, got a picture {name!r}; "
                    "rename it, or leave --save_maps out."
                )
            file = self.folder / "scoremaps" / f"{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, score_map(maps[index]))
            height, width = batch.sizes_hw[index].tolist()
            lines["image_ids"].append(name)
            lines["class_labels"].append(f"{name},{int(batch.labels[index])}")
            lines["image_sizes"].append(f"{name},{width},{height}")
            for x0, y0, x1, y1 in batch.boxes_xyxy[index].tolist():
                lines["localization"].append(f"{name},{x0},{y0},{x1 - 1},{y1 - 1}")
        for name, new_lines in lines.items():
            with self._list(name).open("a") as file_:
                file_.write("".join(f"{line}\n" for line in new_lines))

    def _list(self, name: str) -> Path:
        return self.folder / "metadata" / f"{name}.txt"
