"""``camtrain predict`` applies a trained network to pictures, and writes a folder of results."""

from __future__ import annotations

import argparse
import math
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

from camtrain.arguments import VerbParser, add_backbone
from camtrain.data.decoding import MOST_PIXELS, pixel_limit
from camtrain.data.tree import describe_skipped
from camtrain.errors import CamtrainValueError
from camtrain.inference.box_files import BoxFormat, check_stems, write_boxes
from camtrain.inference.division import Division, share, torchrun_processes
from camtrain.inference.network import Precision
from camtrain.inference.pictures import ExpandedInputs
from camtrain.inference.prediction import Prediction
from camtrain.inference.prediction_folder import LINES, PER_SHEET, RESULTS, PredictionFolder
from camtrain.inference.predictor import Predictor, load
from camtrain.inference.tta import TTA
from camtrain.maps import HeatmapMethod
from camtrain.model.refine import Refine
from camtrain.thresholds import AUTO, Threshold, threshold_text

_LONGEST_JPEG = 65_500  # pixels of a side
# Options with which a prediction may be continued though they differ.
_MAY_CHANGE = ("output", "overwrite", "resume", "device", "max_pixels", "boxes")


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f} images/s")


def main(args: Sequence[str]) -> int:
    """``camtrain predict MODEL INPUT... --output DIR``; returns 1 if a file could not be read."""
    options = _parser().parse_args(args[1:])
    if not 1 <= options.largest_side <= _LONGEST_JPEG or options.max_pixels < 1:
        raise CamtrainValueError(
            f"--largest_side must lie in 1..{_LONGEST_JPEG} and --max_pixels be at least 1, got "
            f"{options.largest_side} and {options.max_pixels}."
        )
    with torchrun_processes() as (rank, processes):
        return _predict(options, rank, processes)


def _predict(options: argparse.Namespace, rank: int, processes: int) -> int:
    """Predict the pictures of this process; the first process tells what all of them do."""
    # The pictures of an earlier prediction may lie below an input.
    results = [(options.output / name).absolute() for name in RESULTS]
    files = ExpandedInputs(options.input, without=results, reads_stdin=processes == 1)
    if options.boxes == "yolo":
        check_stems(files)
    folder = _folder(options, Division(rank, processes, _block(options)), len(files))
    if folder.is_finished:
        if rank == 0:
            print(f"All {len(files)} pictures are predicted already; see {folder.path}")
        return 0
    predictor = load(
        options.model,
        backbone=options.backbone,
        refine=options.refine,
        device=options.device,
        precision=options.precision,
    )
    predictions = predictor(
        files.picked(folder.pick_rest),
        top=options.top,
        classes=_parse_classes(options.classes, predictor.network.class_names),
        threshold=options.threshold,
        split_peaks=options.split_peaks == "true",
        method=options.method,
        tta=options.tta,
        batch_size=options.batch_size,
        largest_side=options.largest_side,
        on_error=folder.add_error,
    )
    if rank == 0:
        _print_beginning(options, files, predictor)
    start = time.perf_counter()
    with pixel_limit(options.max_pixels):
        count = sum(share(_write(predictions, folder, is_shown=rank == 0)))
    seconds = time.perf_counter() - start
    if rank > 0:
        return 0
    errors = folder.count_errors()
    print(
        f"{len(files) - errors} of {len(files)} pictures predicted in {seconds:.1f} s "
        f"({count / seconds:.1f} images/s); see {folder.path}"
    )
    if options.boxes:
        is_chosen = options.top is not None or options.classes is not None
        network, lines = predictor.network, folder.path / LINES
        shown = None if is_chosen else network.task
        path = write_boxes(lines, options.boxes, files.root, network.class_names, shown)
        print(f"Boxes: {path}, of the pictures in {files.root}")
    return 1 if errors else 0


def _block(options: argparse.Namespace) -> int:
    """The inputs that the processes take in turn: whole batches and whole sheets."""
    return math.lcm(max(options.batch_size, 1), 1 if options.no_sheets else PER_SHEET)


def _folder(options: argparse.Namespace, division: Division, count: int) -> PredictionFolder:
    """The folder of the results of ``count`` pictures."""
    settings = {name: value for name, value in vars(options).items() if name not in _MAY_CHANGE}
    return PredictionFolder(
        options.output,
        division=division,
        settings={**settings, "processes": division.processes, "pictures": count},
        overwrite=options.overwrite,
        resume=options.resume == "true",
    )


def _print_beginning(
    options: argparse.Namespace, files: ExpandedInputs, predictor: Predictor
) -> None:
    """Print what is left out, and what the predictor decides by itself."""
    if files.skipped:
        print(f"camtrain: skipped: {describe_skipped(files.skipped)}", file=sys.stderr)
    if len(predictor.preprocessing.mean) == 1:
        print("The network takes grey pictures: colours are converted to grey")
    if options.threshold is None:
        description = predictor.description
        threshold = threshold_text(description.threshold)
        print(f"Boxes at threshold {threshold}, {description.threshold_origin}")


def _write(predictions: Iterator[Prediction], folder: PredictionFolder, *, is_shown: bool) -> int:
    """Write each prediction as soon as it is computed; return how many inputs were left.

    The progress bar is that of this process.
    """
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    bar = Progress(TextColumn("Predicting"), *columns, disable=not is_shown)
    with folder, bar as progress:
        first = folder.count
        task = progress.add_task("Predicting", total=folder.total, completed=first)
        for prediction in predictions:
            folder.add(prediction)
            progress.update(task, completed=folder.count)
        progress.update(task, completed=folder.count)
    return folder.count - first


def _parse_classes(text: str | None, names: Sequence[str]) -> list[int | str] | None:
    """The names or numbers in a text, split at commas unless the whole text is a class name."""
    if text is None:
        return None
    parts = [text] if text in names else text.split(",")
    return [int(part) if part.isdecimal() and part not in names else part for part in parts]


def _parse_threshold(text: str) -> Threshold:
    try:
        return AUTO if text == AUTO else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number or auto, got {text!r}") from error


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser(
        prog="camtrain predict",
        description="Classes, heatmaps and boxes of pictures, written to a folder: "
        "predictions.jsonl (a line per file, in order), overlays, and contact sheets. Exit status "
        "1 when a file could not be read; the others are predicted all the same.",
        epilog="Example: camtrain predict runs/birds/model.safetensors photos --output found",
    )
    add = parser.add_argument
    models = (
        "a .safetensors, .ckpt, .onnx or .pt2 of this project, a run's folder, or hf://ORG/NAME"
    )
    add("model", metavar="MODEL", help=models)
    add_backbone(parser)
    inputs = (
        "files, folders, patterns such as 'a/*.jpg', folders of shards, a .txt of paths, or - for "
        "paths from standard input"
    )
    add("input", metavar="INPUT", nargs="+", help=inputs)

    add = parser.add_argument_group("what is asked").add_argument
    add("--top", type=int, metavar="N", help="classes per picture, best first (default 5)")
    names = "these classes, by name or number, instead of the best"
    add("--classes", metavar="NAME,...", help=names)
    threshold = (
        "of the boxes, in [0, 1), a part of the maximum, or auto: each heatmap's (default: the "
        "network's own)"
    )
    add("--threshold", type=_parse_threshold, metavar="X", help=threshold)
    split = "cut boxes where two peaks stand out, for pictures with several things (default false)"
    add("--split_peaks", choices=("true", "false"), default="false", help=split)
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
    resume = "go on where an earlier prediction ended (true or false, default false)"
    values = ("true", "false")
    add("--resume", nargs="?", const="true", default="false", choices=values, help=resume)
    add("--overlays", type=int, default=1, metavar="N", help=drawn)
    kinds = (
        "also write the boxes for other tools: of the best class, or of all of --top or --classes"
    )
    add("--boxes", choices=get_args(BoxFormat), help=kinds)
    add("--heatmaps", action="store_true", help="also write them as .npy, (k, H, W) float32")
    side = "longest side of these, in pixels; boxes stay in those of the picture (default 4096)"
    add("--largest_side", type=int, default=4096, metavar="N", help=side)
    add("--no_sheets", action="store_true", help="write no contact sheets")

    add = parser.add_argument_group("where it runs").add_argument
    pixels = f"larger pictures are not read (default {MOST_PIXELS})"
    add("--max_pixels", type=int, default=MOST_PIXELS, metavar="N", help=pixels)
    add("--batch_size", type=int, default=8, metavar="N", help="pictures at once (default 8)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, mps or auto (default cpu)")
    precision = "of backbone and neck (default fp32)"
    add("--precision", default="fp32", choices=get_args(Precision), help=precision)
    return parser
