"""``camtrain predict`` applies a trained network to pictures, and writes a folder of results."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
from PIL import Image
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
from camtrain.errors import CamtrainError, CamtrainValueError
from camtrain.files import append, check_writable, replacing, write_picture
from camtrain.inference.box_files import COCO, YOLO, BoxFormat, check_stems, write_boxes
from camtrain.inference.network import Precision
from camtrain.inference.pictures import ExpandedInputs, Input
from camtrain.inference.prediction import Prediction, scaled_boxes
from camtrain.inference.predictor import load
from camtrain.inference.tta import TTA
from camtrain.maps import HeatmapMethod
from camtrain.model.refine import Refine
from camtrain.visualize import PREDICTED_BOX, draw_boxes, gallery, thumbnail

_LINES = "predictions.jsonl"
_FOLDERS = ("overlays", "heatmaps", "sheets", YOLO)
_PER_SHEET, _TILE = 60, 224
_LONGEST_JPEG = 65_500  # pixels of a side


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
    folder = PredictionFolder(
        options.output,
        overwrite=options.overwrite,
        overlays=options.overlays,
        heatmaps=options.heatmaps,
        sheets=not options.no_sheets,
    )
    # The pictures of an earlier prediction may lie below an input.
    results = [(options.output / name).absolute() for name in _FOLDERS]
    files = ExpandedInputs(options.input, without=results)
    if options.boxes == "yolo":
        check_stems(files)
    predictor = load(
        options.model,
        backbone=options.backbone,
        refine=options.refine,
        device=options.device,
        precision=options.precision,
    )
    predictions = predictor(
        files,
        top=options.top,
        classes=_parse_classes(options.classes, predictor.network.class_names),
        threshold=options.threshold,
        method=options.method,
        tta=options.tta,
        batch_size=options.batch_size,
        largest_side=options.largest_side,
        on_error=folder.add_error,
    )
    if files.skipped:
        print(f"camtrain: skipped: {describe_skipped(files.skipped)}", file=sys.stderr)
    if len(predictor.preprocessing.mean) == 1:
        print("The network takes grey pictures: colours are converted to grey")
    if options.threshold is None:
        description = predictor.description
        print(f"Boxes at threshold {description.threshold:.3g}, {description.threshold_origin}")
    start = time.perf_counter()
    with pixel_limit(options.max_pixels):
        _write(predictions, folder, len(files))
    seconds = time.perf_counter() - start
    for error in folder.errors:
        print(f"camtrain: unreadable: {error}", file=sys.stderr)
    print(
        f"{len(files) - len(folder.errors)} of {len(files)} pictures predicted in {seconds:.1f} s "
        f"({len(files) / seconds:.1f} images/s); see {folder.path}"
    )
    if options.boxes:
        is_chosen = options.top is not None or options.classes is not None
        network, lines = predictor.network, folder.path / _LINES
        shown = None if is_chosen else network.task
        path = write_boxes(lines, options.boxes, files.root, network.class_names, shown)
        print(f"Boxes: {path}, of the pictures in {files.root}")
    return 1 if folder.errors else 0


def _write(predictions: Iterator[Prediction], folder: PredictionFolder, total: int) -> None:
    """Write each prediction as soon as it is computed, and show a progress bar."""
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with folder, Progress(TextColumn("Predicting"), *columns) as progress:
        task = progress.add_task("Predicting", total=total)
        for prediction in predictions:
            folder.add(prediction)
            progress.update(task, completed=folder.count)
        progress.update(task, completed=folder.count)


def _parse_classes(text: str | None, names: Sequence[str]) -> list[int | str] | None:
    """The names or numbers in a text, split at commas unless the whole text is a class name."""
    if text is None:
        return None
    parts = [text] if text in names else text.split(",")
    return [int(part) if part.isdecimal() and part not in names else part for part in parts]


class PredictionFolder:
    """The output folder. Results are written one by one; only thumbnails stay in memory.

    Line n of ``predictions.jsonl`` is input n. The names of its other files begin with n, so that
    pictures of the same name do not overwrite each other.
    """

    def __init__(
        self, path: str | Path, *, overwrite: bool, overlays: int, heatmaps: bool, sheets: bool
    ) -> None:
        """Check the folder; nothing is written or deleted before it is entered.

        Args:
            path: The folder; it is created if it does not exist.
            overwrite: Whether to delete what an earlier prediction wrote there; other files stay.
            overlays: For how many classes of a picture an overlay is written, best first.
            heatmaps: Whether the heatmaps of all k predicted classes are written as ``.npy``,
                (k, H, W) float32.
            sheets: Whether contact sheets are written, 60 pictures on each.

        Raises:
            CamtrainValueError: ``path`` is a file. Or the folder is not empty, and ``overwrite`` is
                False or no earlier prediction is in it. Or ``overlays`` is negative.
        """
        self.path = Path(path)
        self.count = 0
        self.errors: list[CamtrainError] = []
        self._overlays, self._heatmaps, self._sheets = overlays, heatmaps, sheets
        self._tiles: list[tuple[Image.Image, str, str]] = []
        self._sheet = 0
        if overlays < 0:
            raise CamtrainValueError(f"overlays must be at least 0, got {overlays}.")
        if self.path.exists() and not self.path.is_dir():
            raise CamtrainValueError(f"--output must be a folder, and {self.path} is a file.")
        if self.path.is_dir() and any(self.path.iterdir()):
            if not overwrite:
                raise CamtrainValueError(
                    f"The folder {self.path} is not empty; give --overwrite to replace what an "
                    "earlier prediction wrote there, or choose another --output."
                )
            if not (self.path / _LINES).is_file():
                raise CamtrainValueError(
                    f"--overwrite replaces only an earlier prediction, and {self.path} holds none "
                    f"(no {_LINES}); choose another --output, or delete the folder yourself."
                )
        check_writable(self.path, "--output")

    def __enter__(self) -> Self:
        """Make the folder, and delete an earlier prediction."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in _FOLDERS:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
        (self.path / COCO).unlink(missing_ok=True)
        (self.path / _LINES).write_bytes(b"")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the last contact sheet."""
        if self._tiles and not (kind and issubclass(kind, OSError)):
            self._write_sheet()

    def add(self, prediction: Prediction) -> None:
        """Write the files of a picture, and then its line, so that it is complete."""
        self.count += 1
        stem = os.fsencode(Path(prediction.path or "picture").stem)[:200].decode(errors="ignore")
        name = f"{self.count:06d}_{stem}"
        files: dict[str, Any] = {}
        count = min(max(self._overlays, 1 if self._sheets else 0), len(prediction.names))
        overlays = [_drawn(prediction, rank) for rank in range(count)]
        if self._overlays:
            files["overlays"] = [
                self._save(overlay, "overlays", f"{name}_{rank}")
                for rank, overlay in enumerate(overlays[: self._overlays], start=1)
            ]
        if self._heatmaps:
            path = self._make_path("heatmaps", f"{name}.npy")
            with replacing(self.path / path, is_synced=False) as part:
                np.save(part, prediction.heatmaps.numpy())
            files["heatmaps"] = path
        if self._sheets:
            best = f"{prediction.names[0]} {prediction.scores[0]:.2f}"
            source = Path(prediction.path or "").name.encode("utf-8", "replace").decode()
            self._tiles.append((thumbnail(overlays[0], _TILE), best, source))
            if len(self._tiles) == _PER_SHEET:
                self._write_sheet()
        self._write_line({**json_values(prediction), **files})

    def add_error(self, file: Input, error: CamtrainError) -> None:
        """Write the line of a file that could not be read."""
        self.count += 1
        self.errors.append(error)
        self._write_line({"file": str(file), "error": str(error)})

    def _write_line(self, values: dict[str, Any]) -> None:
        line = json.dumps(values, ensure_ascii=False) + "\n"
        append(self.path / _LINES, line.encode("utf-8", "backslashreplace"))

    def _save(self, picture: Image.Image, folder: str, name: str) -> str:
        """Save a picture as a JPEG; return its path relative to the output folder."""
        path = self._make_path(folder, f"{name}.jpg")
        write_picture(self.path / path, picture, is_synced=False)
        return path

    def _write_sheet(self) -> None:
        self._sheet += 1
        title = f"Best class, its score and its boxes, sheet {self._sheet}"
        sheet = gallery(self._tiles, title=title, tile=_TILE)
        self._save(sheet, "sheets", f"{self._sheet:04d}")
        self._tiles.clear()

    def _make_path(self, folder: str, name: str) -> str:
        """Create a subfolder; return the path of a file in it, relative to the output folder."""
        (self.path / folder).mkdir(exist_ok=True)
        return f"{folder}/{name}"


def _drawn(prediction: Prediction, rank: int) -> Image.Image:
    """The overlay of the class at this rank, with its boxes."""
    overlay = prediction.overlay(rank)
    boxes_xyxy = scaled_boxes(prediction.boxes[rank], prediction.size_hw, overlay.size[::-1])
    return draw_boxes(overlay, boxes_xyxy, color=PREDICTED_BOX)


def json_values(prediction: Prediction) -> dict[str, Any]:
    """A prediction as plain values for JSON; lists begin with the best class."""
    return {
        "file": prediction.path,
        "size_hw": list(prediction.size_hw),
        "names": list(prediction.names),
        "classes": list(prediction.classes),
        "scores": list(prediction.scores),
        "boxes_xyxy": [boxes.tolist() for boxes in prediction.boxes],
        "threshold": prediction.threshold,
        "is_calibrated": prediction.is_calibrated,
    }


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
