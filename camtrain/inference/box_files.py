"""The boxes of a prediction in files that other tools read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from camtrain.data.box_files import BoxedPicture, write_coco, write_yolo
from camtrain.errors import CamtrainValueError
from camtrain.labels import Task

BoxFormat = Literal["coco", "yolo"]

COCO, YOLO = "boxes.json", "yolo"  # a file, a folder


def check_stems(files: Iterable[object]) -> None:
    """Refuse pictures that would share a YOLO text file, which is named without their ending.

    Raises:
        CamtrainValueError: There are such pictures.
    """
    files_by_stem: dict[str, str] = {}
    for file in map(str, files):
        other = files_by_stem.setdefault(os.path.splitext(os.path.abspath(file))[0], file)
        if os.path.abspath(other) != os.path.abspath(file):
            raise CamtrainValueError(
                f"--boxes yolo names the text file of a picture like the picture, and {other} and "
                f"{file} differ in their endings only; rename one, or give --boxes coco."
            )


def write_boxes(
    lines: Path, kind: BoxFormat, root: Path, names: Sequence[str], shown: Task | None
) -> Path:
    """Write the boxes of all predictions beside the file that holds them.

    Args:
        lines: ``predictions.jsonl``.
        kind: Of the files.
        root: The absolute folder of the pictures; paths in the files are relative to it.
        names: K class names.
        shown: Of which classes of a picture boxes are written: of several labels, those whose score
            is at least 0.5; of one label the best; None: all that were predicted.

    Returns:
        The path of the file of COCO, or of the folder of YOLO.
    """
    pictures = _pictures(lines, root, shown)
    if kind == "coco":
        write_coco(lines.with_name(COCO), pictures, names)
        return lines.with_name(COCO)
    write_yolo(lines.with_name(YOLO), pictures, names)
    return lines.with_name(YOLO)


def _pictures(lines: Path, root: Path, shown: Task | None) -> Iterator[BoxedPicture]:
    """The pictures of a file of predictions that could be read, each once."""
    paths: set[str] = set()
    with lines.open(encoding="utf-8") as texts:
        for values in map(json.loads, texts):
            path = Path(os.path.relpath(values["file"], root)).as_posix()
            if "error" in values or path in paths:
                continue
            paths.add(path)
            ranked = list(
                zip(values["classes"], values["scores"], values["boxes_xyxy"], strict=True)
            )
            if shown == "multilabel":
                ranked = [item for item in ranked if item[1] >= 0.5]
            elif shown is not None:
                ranked = ranked[:1]
            boxes = [
                (label, score, box) for label, score, class_boxes in ranked for box in class_boxes
            ]
            yield BoxedPicture(path, tuple(values["size_hw"]), boxes)
