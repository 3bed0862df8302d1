"""Sinks for MLflow, and for any logger that takes pictures by a method of a usual name."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger

from camtrain.training.lightnings import is_lightnings
from camtrain.training.run.worker import enqueue_call
from camtrain.training.watch.results import PictureResult
from camtrain.training.watch.snapshot import EpochSnapshot, class_table
from camtrain.visualize import PREDICTED_BOX, TRUE_BOX, confusion_picture, draw_boxes

MATRIX_CLASSES = 60  # a matrix of more cannot be read; W&B gets a table of pairs instead
_TABLE, _CLASSES = "val/cams_table.json", "val/classes.json"
_COLUMNS = ("epoch", "picture", "true", "predicted", "score", "right", "GT-known hit")
_METHODS = ("log_image", "add_image")


def pictures_of(snapshot: EpochSnapshot, *, log_mistakes: bool) -> dict[str, Image.Image]:
    """The contact sheets and charts of an epoch, by the name they are logged with."""
    pictures = {f"{snapshot.split}/cams": snapshot.sheet}
    if log_mistakes and snapshot.mistakes:
        pictures["val/cam_mistakes"] = snapshot.mistake_sheet
    if snapshot.statistics is not None:
        confusion = snapshot.statistics.classes.confusion
        if confusion is not None and len(confusion) <= MATRIX_CLASSES:
            pictures["val/confusion"] = confusion_picture(confusion, snapshot.names)
        if (chart := snapshot.statistics.reliability_chart) is not None:
            pictures["val/reliability"] = chart
    return pictures


@dataclass
class MlflowSink:
    """Gives an MLflow run each picture with heatmap and boxes, contact sheets, charts and tables.

    Pictures are images of a step, which MLflow's page shows with a slider. The tables are JSON:
    ``val/cams_table.json`` grows with each validation, ``val/classes.json`` is of the last one.
    """

    logger: MLFlowLogger
    log_mistakes: bool
    _lines: list[list[Any]] | None = field(default=None, init=False)

    def log(self, snapshot: EpochSnapshot) -> None:
        """Show an epoch."""
        pictures = pictures_of(snapshot, log_mistakes=self.log_mistakes)
        for number, result in enumerate(snapshot.results):
            true = result.true_or_predicted.label
            name = re.sub(r"[^\w\-. ]", "_", snapshot.names[true], flags=re.ASCII)
            key = f"{snapshot.split}/cams {number:02d} {name}"
            pictures[key] = _with_boxes(snapshot, result)
        enqueue_call(self.logger, partial(self._log, pictures, snapshot))

    def _log(self, pictures: Mapping[str, Image.Image], snapshot: EpochSnapshot) -> None:
        client: Any = self.logger.experiment
        run_id, step = self.logger.run_id, snapshot.step
        for key, picture in pictures.items():
            client.log_image(run_id, picture, key=key, step=step, synchronous=True)
        if snapshot.split == "test":
            return
        epochs = snapshot.moment.epochs
        if self._lines is None:  # a continued run goes on with its table
            self._lines = _table_lines(client, run_id) if epochs else []
        self._lines = [line for line in self._lines if line[0] < epochs]
        self._lines += [_line(snapshot, result) for result in snapshot.results]
        tables: dict[str, Any] = {_TABLE: (_COLUMNS, self._lines)}
        classes = snapshot.statistics and class_table(snapshot.statistics.classes, snapshot.names)
        if classes:
            tables[_CLASSES] = tuple(column.name for column in classes.columns), classes.rows
        for file, (columns, lines) in tables.items():
            client.log_dict(run_id, {"columns": columns, "data": lines}, file)
        # MLflow's page shows these files as tables.
        paths = [{"path": file, "type": "table"} for file in tables]
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(paths))


def _table_lines(client: Any, run_id: str | None) -> list[list[Any]]:  # noqa: ANN401 - MLflow's
    """The lines of the table that the run has already."""
    with suppress(Exception):  # there is none yet
        text = Path(client.download_artifacts(run_id, _TABLE)).read_text(encoding="utf-8")
        return list(json.loads(text)["data"])
    return []


def _line(snapshot: EpochSnapshot, result: PictureResult) -> list[Any]:
    row = snapshot.rows[result]
    path = result.picture.path.encode("utf-8", "backslashreplace").decode()  # need not be text
    names = row.true_name, row.predicted_name, row.predicted_score
    return [snapshot.moment.epochs, path, *names, result.is_right, result.is_located]


def _with_boxes(snapshot: EpochSnapshot, result: PictureResult) -> Image.Image:
    """A picture under the heatmap of its true class, else of the predicted one, with boxes."""
    row = snapshot.rows[result]
    tile = row.predicted_tile if result.true is None else row.true_tile
    drawn = draw_boxes(tile, row.true_boxes_xyxy * row.scale, color=TRUE_BOX)
    return draw_boxes(drawn, row.predicted_boxes_xyxy * row.scale, color=PREDICTED_BOX)


@dataclass
class ImageSink:
    """Gives contact sheets and charts to a logger by its ``log_image``.

    The method is that of the logger or of its ``experiment``, as those of W&B and Comet, or
    ``add_image`` as TensorBoard's; for Neptune it is a series. Its parameters are known by name.
    """

    logger: object
    log_mistakes: bool

    def log(self, snapshot: EpochSnapshot) -> None:
        """Show an epoch."""
        pictures = pictures_of(snapshot, log_mistakes=self.log_mistakes)
        for key, picture in pictures.items():
            enqueue_call(self.logger, partial(_log_image, self.logger, key, picture, snapshot.step))


def takes_images(logger: object) -> bool:
    """Whether an ``ImageSink`` can give a logger pictures."""
    return is_lightnings(logger, "NeptuneLogger") or image_method(logger) is not None


def image_method(logger: object) -> Any:  # noqa: ANN401 - of any package
    """The method by which a logger takes pictures; None if it has none."""
    owners = [logger]
    with suppress(Exception):  # there is none, or its service does not answer
        owners.append(cast("Any", logger).experiment)
    for owner in owners:
        for name in _METHODS:
            if callable(method := getattr(owner, name, None)):
                return method
    return None


def _log_image(logger: Any, key: str, picture: Image.Image, step: int) -> None:  # noqa: ANN401
    if is_lightnings(logger, "NeptuneLogger"):
        logger.experiment[key].append(picture, step=step)
        return
    method = image_method(logger)
    values = {
        **dict.fromkeys(("key", "name", "tag"), key),
        **dict.fromkeys(("image", "image_data", "val"), picture),
        "images": [picture],
        **dict.fromkeys(("step", "global_step"), step),
        **{"img_tensor": np.asarray(picture), "dataformats": "HWC"},
    }
    names = inspect.signature(method).parameters
    method(**{name: value for name, value in values.items() if name in names})
