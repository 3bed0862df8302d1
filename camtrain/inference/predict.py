"""``camtrain predict``: a trained network over files and folders of pictures."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from camtrain.errors import CamtrainError
from camtrain.inference.network import Precision
from camtrain.inference.pictures import ExpandedInputs, Input, expand_inputs
from camtrain.inference.prediction import Prediction
from camtrain.inference.prediction_folder import FOLDERS, PredictionFolder
from camtrain.inference.predictor import load
from camtrain.inference.tta import TTA
from camtrain.maps import HeatmapMethod
from camtrain.model.refine import Refine


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f} images/s")


def main(args: Sequence[str]) -> int:
    """``camtrain predict MODEL INPUT... --output DIR``; 1 where a file could not be read."""
    options = _parser().parse_args(args[1:])
    folder = PredictionFolder(
        options.output,
        overwrite=options.overwrite,
        overlays=options.overlays,
        heatmaps=options.heatmaps,
        sheets=not options.no_sheets,
    )
    # The pictures of an earlier prediction may lie below an input.
    written = {(options.output / name).absolute() for name in FOLDERS}
    files = ExpandedInputs(
        file
        for file in expand_inputs(options.input)
        if written.isdisjoint(Path(str(file)).absolute().parents)
    )
    predictor = load(
        options.model,
        refine=options.refine,
        device=options.device,
        precision=options.precision,
    )
    errors: list[CamtrainError] = []

    def on_error(item: Input, error: CamtrainError) -> None:
        errors.append(error)
        folder.add_error(str(item), error)

    predictions = predictor(
        files,
        top=options.top,
        classes=_classes(options.classes, predictor.network.class_names),
        threshold=options.threshold,
        method=options.method,
        tta=options.tta,
        batch_size=options.batch_size,
        on_error=on_error,
    )
    start = time.perf_counter()
    _write(predictions, folder, len(files))
    seconds = time.perf_counter() - start
    for error in errors:
        print(f"camtrain: unreadable: {error}", file=sys.stderr)
    print(
        f"{len(files) - len(errors)} of {len(files)} pictures predicted in {seconds:.1f} s "
        f"({len(files) / seconds:.1f} images/s); see {folder.path}"
    )
    return 1 if errors else 0


def _write(predictions: Iterator[Prediction], folder: PredictionFolder, total: int) -> None:
    """Write the predictions as they come, under a progress bar."""
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with folder, Progress(TextColumn("Predicting"), *columns) as progress:
        task = progress.add_task("Predicting", total=total)
        for prediction in predictions:
            folder.add(prediction)
            progress.update(task, completed=folder.count)
        progress.update(task, completed=folder.count)


def _classes(text: str | None, names: Sequence[str]) -> list[int | str] | None:
    """Names or numbers between commas; a name may hold a comma, if it is given alone."""
    if text is None:
        return None
    parts = [text] if text in names else text.split(",")
    return [int(part) if part.isdecimal() and part not in names else part for part in parts]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="camtrain predict",
        description="Classes, heatmaps and boxes of pictures, written to a folder: "
        "predictions.jsonl (a line per file, in order), overlays, and contact sheets. Exit status "
        "1 when a file could not be read; the others are predicted all the same.",
        epilog="Example: camtrain predict runs/birds/model.safetensors photos --output found",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a .safetensors, .ckpt, .onnx or .pt2 of this project")
    add("input", metavar="INPUT", nargs="+", help="files, folders, or patterns such as 'a/*.jpg'")

    add = parser.add_argument_group("what is asked").add_argument
    add("--top", type=int, metavar="N", help="classes per picture, best first (default 5)")
    names = "these classes, by name or number, instead of the best"
    add("--classes", metavar="NAME,...", help=names)
    threshold = "of the boxes, in [0, 1), a part of the maximum (default: the network's own)"
    add("--threshold", type=float, metavar="X", help=threshold)
    method = "normalization of the heatmaps (default minmax)"
    add("--method", default="minmax", choices=get_args(HeatmapMethod), help=method)
    refine = "heatmaps of class maps, or of maps refined by affinity (default: the network's own)"
    add("--refine", choices=get_args(Refine), help=refine)
    tta = "average views of each picture (default none)"
    add("--tta", default="none", choices=get_args(TTA), help=tta)

    add = parser.add_argument_group("what is written").add_argument
    add("--output", required=True, type=Path, metavar="DIR", help="the folder of the results")
    add("--overwrite", action="store_true", help="replace what an earlier prediction wrote there")
    drawn = "classes drawn per picture (default 1)"
    add("--overlays", type=int, default=1, metavar="N", help=drawn)
    add("--heatmaps", action="store_true", help="also write them as .npy, (k, H, W) float32")
    add("--no_sheets", action="store_true", help="write no contact sheets")

    add = parser.add_argument_group("where it runs").add_argument
    add("--batch_size", type=int, default=8, metavar="N", help="pictures at once (default 8)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, mps or auto (default cpu)")
    precision = "of backbone and neck (default fp32)"
    add("--precision", default="fp32", choices=get_args(Precision), help=precision)
    return parser
