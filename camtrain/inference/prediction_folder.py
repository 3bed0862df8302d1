"""The folder of ``camtrain predict``: lines, overlays, heatmaps, contact sheets."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from PIL import Image

from camtrain.errors import CamtrainError, CamtrainValueError
from camtrain.files import append, check_writable, replacing, write_picture, write_text
from camtrain.inference.box_files import COCO, YOLO
from camtrain.inference.division import Division, share, wait_for_all
from camtrain.inference.pictures import Input
from camtrain.inference.prediction import Prediction, scaled_boxes
from camtrain.visualize import PREDICTED_BOX, draw_boxes, gallery, thumbnail

LINES = "predictions.jsonl"
PER_SHEET = 60
_UNFINISHED = "unfinished"  # the folder of what is only needed until all pictures are predicted
RESULTS = ("overlays", "heatmaps", "sheets", YOLO, _UNFINISHED)
_TILE = 224

T = TypeVar("T")


class PredictionFolder:
    """The output folder. Results are written one by one; what a kill leaves can be continued.

    Line n of ``predictions.jsonl`` is input n. The names of its other files begin with n, so that
    pictures of the same name do not overwrite each other. Sheet m shows the inputs from 60 m - 59
    on. The lines of a batch are written together, after its other files, so that a continued
    prediction goes on with a whole batch. Each of several processes writes a file of lines of its
    own; in the end they become one.

    Attributes:
        count: How many of the inputs of this process are predicted.
        total: How many there are.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        division: Division,
        settings: Mapping[str, Any],
        overwrite: bool,
        resume: bool,
    ) -> None:
        """Check the folder; nothing is written or deleted before it is entered.

        Args:
            path: The folder; it is created if it does not exist.
            division: Which of the inputs are those of this process, in whole batches and sheets.
            settings: Plain values of all options that must be the same when the prediction is
                continued, by name. Used are ``pictures``, the number of all inputs, ``batch_size``;
                ``overlays``, for how many classes of a picture one is written, best first;
                ``heatmaps``, whether those of all k predicted classes are written as ``.npy``,
                (k, H, W) float32; ``no_sheets``, whether no contact sheets are written.
            overwrite: Whether to delete what an earlier prediction wrote there; other files stay.
            resume: Whether to go on where an earlier prediction ended.

        Raises:
            CamtrainValueError: ``path`` is a file. Or the folder is not empty, and it is neither
                overwritten nor continued, or holds no prediction, or one of other settings. Or
                ``overlays`` is negative.
        """
        self.path, self.count = Path(path), 0
        self._division, self._settings = division, dict(settings)
        self.total, self._batch_size = division.count(settings["pictures"]), settings["batch_size"]
        self._overlays, self._heatmaps = settings["overlays"], settings["heatmaps"]
        self._sheets = not settings["no_sheets"]
        self._tiles: list[tuple[Image.Image, str, str]] = []
        self._old_tiles: list[Path] = []  # files of tiles whose sheet is written
        self._lines: list[bytes] = []  # of the present batch
        self._unfinished = self.path / _UNFINISHED
        self._settings_file = self._unfinished / "settings.json"
        part = LINES if division.processes == 1 else f"{_UNFINISHED}/{division.rank}.jsonl"
        self._lines_file = self.path / part
        if self._overlays < 0:
            raise CamtrainValueError(f"overlays must be at least 0, got {self._overlays}.")
        # The first process is always the first to write; the others hear of it.
        state = self._check(overwrite, resume) if division.rank == 0 else ""
        self._state = share(state)[0]

    @property
    def is_finished(self) -> bool:
        """Whether it is to be continued and holds all predictions already."""
        return bool(self._state == "finished")

    def _check(self, overwrite: bool, resume: bool) -> str:
        """Whether the prediction is ``new``, ``unfinished`` or ``finished``."""
        if self.path.exists() and not self.path.is_dir():
            raise CamtrainValueError(f"--output must be a folder, and {self.path} is a file.")
        is_unfinished, has_lines = self._settings_file.is_file(), (self.path / LINES).is_file()
        if self.path.is_dir() and any(self.path.iterdir()) and not (resume and is_unfinished):
            if resume and has_lines:
                shutil.rmtree(self._unfinished, ignore_errors=True)  # if it ended meanwhile
                return "finished"
            if not overwrite:
                way = "give --resume true to go on with it, or " if is_unfinished else "give "
                raise CamtrainValueError(
                    f"The folder {self.path} is not empty; {way}--overwrite to replace what an "
                    "earlier prediction wrote there, or choose another --output."
                )
            if not (is_unfinished or has_lines):
                raise CamtrainValueError(
                    f"--overwrite replaces only an earlier prediction, and {self.path} holds none "
                    f"(no {LINES}); choose another --output, or delete the folder yourself."
                )
        check_writable(self.path, "--output")
        if not (resume and is_unfinished):
            return "new"
        self._check_settings()
        return "unfinished"

    def _check_settings(self) -> None:
        """Raise CamtrainValueError if the prediction was begun with other settings."""
        try:
            stored = dict(json.loads(self._settings_file.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise CamtrainValueError(
                f"{self._settings_file} is damaged, so the prediction cannot be continued; give "
                "--overwrite to begin anew."
            ) from error
        current = json.loads(json.dumps(self._settings))
        changed = [
            f"{name} was {stored.get(name)!r:.200}, got {value!r:.200}"
            for name, value in current.items()
            if stored.get(name) != value
        ]
        if changed:
            raise CamtrainValueError(
                f"A prediction is continued with the settings it began with: {'; '.join(changed)}; "
                "give the same, or --overwrite to begin anew."
            )

    def __enter__(self) -> Self:
        """Make the folder, and delete an earlier prediction, or find where it ended."""
        if self._state == "new" and self._division.rank == 0:
            for name in RESULTS:
                if (self.path / name).is_dir():
                    shutil.rmtree(self.path / name)
            for file in (COCO, LINES):
                (self.path / file).unlink(missing_ok=True)
            self._unfinished.mkdir(parents=True)
            write_text(self._settings_file, json.dumps(self._settings))
        wait_for_all()
        if not self._lines_file.exists():
            append(self._lines_file, b"")
        self._continue()
        return self

    def _continue(self) -> None:
        """Cut off the lines after the last whole batch, and take up the sheet that was begun."""
        size = 0
        lines: deque[bytes] = deque(maxlen=PER_SHEET)
        with self._lines_file.open("rb") as file:
            while batch := list(islice(file, self._batch_size)):
                is_last = self.count + len(batch) == self.total
                if not batch[-1].endswith(b"\n") or not (is_last or len(batch) == self._batch_size):
                    break
                lines.extend(batch)
                self.count += len(batch)
                size += sum(map(len, batch))
        os.truncate(self._lines_file, size)
        begun = self.count % PER_SHEET if self._sheets else 0
        for place, line in enumerate(list(lines)[len(lines) - begun :], start=self.count - begun):
            if not _is_error(line):
                values = json.loads(line)
                picture = Image.fromarray(np.load(self._tile_file(place)))
                self._add_tile(picture, values["names"][0], values["scores"][0], values["file"])

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the last contact sheet and lines; if all is done, make one file of all lines."""
        if kind is not None:
            with suppress(CamtrainError):  # of a full disk, which has ended it
                self._write_lines()
                self._write_sheet()
            done = f"{self.count} of {self.total} pictures are predicted"
            print(f"camtrain: {done}; --resume true goes on with the rest", file=sys.stderr)
            return
        self._write_sheet()
        self._write_lines()
        wait_for_all()
        if self._division.rank == 0:
            if self._division.processes > 1:
                self._join_lines()
            shutil.rmtree(self._unfinished)
        wait_for_all()

    def _join_lines(self) -> None:
        """Make one file of the lines of all processes, in the order of the inputs."""
        block, parts = self._division.block, range(self._division.processes)
        with replacing(self.path / LINES) as whole_file, ExitStack() as stack:
            whole = stack.enter_context(whole_file.open("wb"))
            paths = [self._unfinished / f"{rank}.jsonl" for rank in parts]
            files = cycle([stack.enter_context(path.open("rb")) for path in paths])
            while lines := list(islice(next(files), block)):
                whole.writelines(lines)

    def pick_rest(self, inputs: Iterable[T]) -> Iterator[T]:
        """Those of all inputs that are left to this process."""
        return self._division.pick(inputs, first=self.count)

    def count_errors(self) -> int:
        """How many files of a finished prediction could not be read."""
        with (self.path / LINES).open("rb") as lines:
            return sum(map(_is_error, lines))

    def add(self, prediction: Prediction) -> None:
        """Write the files of a picture, and in its turn its line."""
        number = self._division.number(self.count) + 1
        stem = os.fsencode(Path(prediction.path or "picture").stem)[:200].decode(errors="ignore")
        name = f"{number:06d}_{stem}"
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
            tile = thumbnail(overlays[0], _TILE)
            with replacing(self._tile_file(self.count), is_synced=False) as part:
                np.save(part, np.asarray(tile))
            self._add_tile(tile, prediction.names[0], prediction.scores[0], prediction.path)
        self._add_line({**json_values(prediction), **files})

    def add_error(self, file: Input, error: CamtrainError) -> None:
        """Say why a file could not be read, and write its line."""
        print(f"camtrain: unreadable: {error}", file=sys.stderr)
        self._add_line({"file": str(file), "error": str(error)})

    def _add_line(self, values: dict[str, Any]) -> None:
        line = json.dumps(values, ensure_ascii=False) + "\n"
        self._lines.append(line.encode("utf-8", "backslashreplace"))
        self.count += 1
        if self.count % PER_SHEET == 0:
            self._write_sheet()  # before its lines: where there are lines, there is the rest
            places = range(self.count - PER_SHEET, self.count)
            self._old_tiles += map(self._tile_file, places)
        if self.count % self._batch_size == 0:
            self._write_lines()

    def _write_lines(self) -> None:
        append(self._lines_file, b"".join(self._lines))
        self._lines.clear()
        for file in self._old_tiles:
            file.unlink(missing_ok=True)
        self._old_tiles.clear()

    def _save(self, picture: Image.Image, folder: str, name: str) -> str:
        """Save a picture as a JPEG; return its path relative to the output folder."""
        path = self._make_path(folder, f"{name}.jpg")
        write_picture(self.path / path, picture, is_synced=False)
        return path

    def _add_tile(self, picture: Image.Image, name: str, score: float, path: str | None) -> None:
        source = Path(path or "").name.encode("utf-8", "replace").decode()
        self._tiles.append((picture, f"{name} {score:.2f}", source))

    def _tile_file(self, place: int) -> Path:
        return self._unfinished / f"{self._division.number(place)}.npy"

    def _write_sheet(self) -> None:
        """Write the sheet of the last inputs, if any of them could be read."""
        if not self._tiles:
            return
        first = (self.count - 1) // PER_SHEET * PER_SHEET
        sheet = self._division.number(first) // PER_SHEET + 1
        title = f"Best class, its score and its boxes, sheet {sheet}"
        self._save(gallery(self._tiles, title=title, tile=_TILE), "sheets", f"{sheet:04d}")
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


def _is_error(line: bytes) -> bool:
    """Whether a line is that of a file that could not be read; text has its quotes escaped."""
    return b'", "error": "' in line and b'"size_hw": ' not in line


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
