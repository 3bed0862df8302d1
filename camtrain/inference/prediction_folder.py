"""The folder that ``camtrain predict`` writes: JSON lines, overlays, heatmaps, contact sheets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from camtrain.errors import CamtrainValueError
from camtrain.inference.prediction import Prediction
from camtrain.visualize import PREDICTED_BOX, draw_boxes, gallery, thumbnail

_LINES = "predictions.jsonl"
FOLDERS = ("overlays", "heatmaps", "sheets")
_PER_SHEET, _TILE = 60, 224


class PredictionFolder:
    """Results written as they come; of each picture only a thumbnail stays in memory.

    Line n of ``predictions.jsonl`` is input n, and its other files begin with n, so that pictures
    of one name in several folders stay apart.
    """

    def __init__(
        self, path: str | Path, *, overwrite: bool, overlays: int, heatmaps: bool, sheets: bool
    ) -> None:
        """Check the folder; nothing is written or deleted before it is entered.

        Args:
            path: Of the folder.
            overwrite: What an earlier prediction wrote there may be deleted; other files stay.
            overlays: Classes per picture of which an overlay is written, best first.
            heatmaps: Whether heatmaps are written as ``.npy``, (k, H, W) float32.
            sheets: Whether contact sheets are written, 60 pictures on each.

        Raises:
            CamtrainValueError: The folder is not empty and may not be overwritten or holds no
                earlier prediction, or is no folder; or ``overlays`` is negative.
        """
        self.path = Path(path)
        self.count = 0
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

    def __enter__(self) -> Self:
        """Make the folder, and delete an earlier prediction."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CamtrainValueError(
                f"The folder {self.path} cannot be made ({error}); choose another --output."
            ) from error
        for name in FOLDERS:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
        self._file = (self.path / _LINES).open("w", encoding="utf-8", errors="backslashreplace")
        return self

    def __exit__(self, *_: object) -> None:
        """Write the last sheet and close the lines."""
        with self._file:
            if self._tiles:
                self._write_sheet()

    def add(self, prediction: Prediction) -> None:
        """Write the files of a picture, then its line: a picture with a line is complete."""
        self.count += 1
        name = f"{self.count:06d}_{Path(prediction.path or 'picture').stem[:100]}"
        files: dict[str, Any] = {}
        count = min(max(self._overlays, 1 if self._sheets else 0), len(prediction.names))
        drawn = [
            draw_boxes(prediction.overlay(rank), prediction.boxes[rank], color=PREDICTED_BOX)
            for rank in range(count)
        ]
        if self._overlays:
            files["overlays"] = [
                self._write_overlay(picture, f"{name}_{rank + 1}")
                for rank, picture in enumerate(drawn[: self._overlays])
            ]
        if self._heatmaps:
            path = self._path("heatmaps", f"{name}.npy")
            np.save(self.path / path, prediction.heatmaps.numpy())
            files["heatmaps"] = path
        if self._sheets:
            best = f"{prediction.names[0]} {prediction.scores[0]:.2f}"
            source = Path(prediction.path or "").name.encode("utf-8", "replace").decode()
            self._tiles.append((thumbnail(drawn[0], _TILE), best, source))
            if len(self._tiles) == _PER_SHEET:
                self._write_sheet()
        self._write_line({**record(prediction), **files})

    def add_error(self, file: str, error: Exception) -> None:
        """Write the line of a file that could not be read."""
        self.count += 1
        self._write_line({"file": file, "error": str(error)})

    def _write_line(self, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(values, ensure_ascii=False) + "\n")
        self._file.flush()

    def _write_overlay(self, picture: Image.Image, name: str) -> str:
        path = self._path("overlays", f"{name}.jpg")
        picture.save(self.path / path, quality=90)
        return path

    def _write_sheet(self) -> None:
        self._sheet += 1
        title = f"Best class, its score and its boxes, sheet {self._sheet}"
        sheet = gallery(self._tiles, title=title, tile=_TILE)
        sheet.save(self.path / self._path("sheets", f"{self._sheet:04d}.jpg"), quality=90)
        self._tiles.clear()

    def _path(self, folder: str, name: str) -> str:
        """The path of a file below the output folder; its folder is created."""
        (self.path / folder).mkdir(exist_ok=True)
        return f"{folder}/{name}"


def record(prediction: Prediction) -> dict[str, Any]:
    """A prediction as plain values for JSON; every list is best class first."""
    return {
        "file": prediction.path,
        "size_hw": list(prediction.size_hw),
        "names": list(prediction.names),
        "classes": list(prediction.classes),
        "scores": list(prediction.scores),
        "boxes_xyxy": [boxes.tolist() for boxes in prediction.boxes],
        "threshold": prediction.threshold,
    }
