"""The report of a training: a record of every validation, and the page made of the records."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from camtrain.files import write_text
from camtrain.maps import picture_heatmaps
from camtrain.training.evaluate.scores import score_rows
from camtrain.training.evaluate.verdict import verdict
from camtrain.training.watch.pictures import ValidationPicture
from camtrain.training.watch.report_data import (
    EpochRecord,
    calibration_charts,
    class_data,
    faithfulness_charts,
    localization_charts,
    map_charts,
    picture_data,
    result_data,
    score_charts,
    settings_data,
)
from camtrain.training.watch.snapshot import BoxThreshold, EpochSnapshot, Moment
from camtrain.visualize import PREDICTED_BOX, TRUE_BOX, draw_boxes, overlay, timeline
from camtrain.visualize.overlay import rgb_pixels
from camtrain.visualize.report.page import packed_colormap, report_page, unpacked_map

_MOST_BYTES = 8_000_000  # of the maps of all epochs; beyond it, epochs in between are left out
_TIMELINE_PICTURES, _TIMELINE_EPOCHS = 5, 6
_TIMELINE_SIDE = 128


class TrainingReport:
    """Follows a training, and writes its page anew after every validation and epoch.

    Args:
        path: The page. Beside it, in the folder of the same name without suffix, lies what a
            resumed training continues with: ``epoch_000.json``, ..., ``latest.json``.
        colormap: See ``camtrain.visualize.overlay``.
    """

    def __init__(self, path: Path, colormap: str) -> None:
        self.path = path
        self.folder = path.with_suffix("")
        self.colormap = colormap
        self._records: dict[Moment, EpochRecord] = {}
        self._unwritten: set[Moment] = set()
        self._indices: list[int] = []  # of the watched pictures
        self._latest: dict[str, Any] = {  # what the page shows of the latest epoch, and of all
            "pictures": [],
            "mistakes": [],
            "calibration": [],
            "localization": [],
            "faithfulness": [],
            "mistakes_threshold": str(BoxThreshold()),
            "verdict": None,
            "blanks": None,
            "classes": None,
            "classes_epoch": 0,
        }
        self._test: dict[str, tuple[str, str]] = {}

    def clear(self) -> None:
        """Delete the records of an earlier training in the same folder."""
        for file in sorted(self.folder.glob("epoch_*.json")):
            file.unlink()

    def load(self, epochs: float = math.inf, step: int = 0) -> None:
        """Read the records of the first ``epochs`` epochs and, within the next, up to a step.

        Later ones were written by a training that was killed before its checkpoint.
        """
        for file in sorted(self.folder.glob("epoch_*.json")):
            record = EpochRecord.from_json(file.read_text(encoding="utf-8"))
            moment = record.moment
            if moment.epoch <= epochs or (moment.step is not None and moment.step <= step):
                self._records[moment] = record
        latest = self.folder / "latest.json"
        if latest.is_file():
            self._latest |= json.loads(latest.read_text(encoding="utf-8"))
            self._indices = self._latest.pop("places")

    def set_pictures(self, pictures: Mapping[int, ValidationPicture], names: Sequence[str]) -> None:
        """Set the watched pictures, by their index in the data set."""
        self._indices = list(pictures)
        self._latest["pictures"] = [picture_data(picture, names) for picture in pictures.values()]

    def add(self, snapshot: EpochSnapshot) -> None:
        """Add a validation; its scores may come afterwards."""
        statistics, names, moment = snapshot.statistics, snapshot.names, snapshot.moment
        record = self._records[moment] = EpochRecord(moment, threshold=snapshot.threshold)
        self._unwritten.add(moment)
        for index, result in zip(self._indices, snapshot.results, strict=True):
            record.looks[index] = result_data(result, names)
        mistakes = [
            {"picture": picture_data(result.picture, names), "look": result_data(result, names)}
            for result in snapshot.mistakes
        ]
        self._latest |= {"mistakes": mistakes, "classes_epoch": moment.label}
        self._latest["mistakes_threshold"] = str(snapshot.threshold)
        if statistics is not None:
            record.histograms = {n: counts.tolist() for n, counts in statistics.histograms.items()}
            self._latest["calibration"] = calibration_charts(statistics.reliability)
            self._latest["localization"] = localization_charts(statistics.localization, "val")
            sentence = verdict(statistics.localization, {})
            self._latest["verdict"] = sentence and f"Epoch {moment.label}, val: {sentence}"
            self._latest["classes"] = class_data(statistics.classes, names)

    def add_scores(self, moment: Moment, scores: Mapping[str, Tensor]) -> None:
        """Give a record scores, by logged name, in addition to those it has."""
        record = self._records.setdefault(moment, EpochRecord(moment))
        record.scores.update(_finite_scores(scores))
        self._unwritten.add(moment)

    def set_blanks(self, predictions: str | None) -> None:
        """Set what the network predicts of pictures that show nothing."""
        self._latest["blanks"] = predictions

    def set_test_scores(
        self, scores: Mapping[str, Tensor], report: Mapping[str, Any] | None = None
    ) -> None:
        """Set the scores of the test split, by logged name."""
        values = {n.removeprefix("test/"): v for n, v in _finite_scores(scores).items()}
        self._test = {f"test/{name}": row for name, row in score_rows(values).items()}
        finite = {name: value for name, value in values.items() if value is not None}
        sentence = verdict(report or {}, finite)
        self._latest["verdict"] = sentence and f"Best epoch, test: {sentence}"
        if charts := localization_charts(report or {}, "test"):
            self._latest["localization"] = charts
        self._latest["faithfulness"] = faithfulness_charts((report or {}).get("faithfulness", {}))

    def write(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the new records and the page, each file atomically."""
        if not self._records:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for moment in sorted(self._unwritten):
            record = _json(self._records[moment].to_dict())
            write_text(self.folder / f"{moment.stem}.json", record)
        self._unwritten.clear()
        latest = {"places": self._indices, **self._latest}
        write_text(self.folder / "latest.json", _json(latest))
        write_text(self.path, report_page(self._content(trainer, module)))

    def _content(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """The content of the page, see ``report_page``."""
        records = [record for _, record in sorted(self._records.items())]
        planned, last = trainer.max_epochs, max(self._records)
        state = f"epoch {last.epoch}{f' of {planned}' if planned and planned > 0 else ''}"
        state += "" if last.step is None else f", step {last.step}"
        with_results = [record for record in records if record.looks]
        return {
            "title": self.path.absolute().parent.name,
            "state": f"{state}, written {datetime.now():%Y-%m-%d %H:%M:%S}",
            "colormap": packed_colormap(self.colormap),
            "curves": score_charts(records),
            "maps": map_charts(records),
            "epochs": [
                {
                    "epoch": record.moment.label,
                    "threshold": str(record.threshold),
                    "looks": self._results_of(record),
                }
                for record in self._records_that_fit(with_results)
            ],
            "epochs_seen": len(with_results),
            **self._latest,
            "test": self._test,
            "settings": settings_data(trainer, module),
        }

    def _results_of(self, record: EpochRecord) -> list[dict[str, Any] | None]:
        """The result of each watched picture; None where it was not watched yet."""
        return [record.looks.get(index) for index in self._indices]

    def _records_that_fit(self, records: Sequence[EpochRecord]) -> Sequence[EpochRecord]:
        """As many records, evenly spread, as the page has room for."""
        if not records:
            return records
        size = len(_json(self._results_of(records[-1]))) * len(records)
        last = len(records) - 1
        count = len(records) if size <= _MOST_BYTES else max(2, len(records) * _MOST_BYTES // size)
        rows = sorted({round(row * last / max(1, count - 1)) for row in range(count)})
        return [records[row] for row in rows]

    def timeline(self, pictures: Sequence[ValidationPicture]) -> Image.Image | None:
        """Heatmaps of true classes with boxes, a column per validation; None where there are none.

        The first five watched pictures with a class are shown, in at most six columns; more of
        these are early ones, where most changes.
        """
        labelled = [(row, picture) for row, picture in enumerate(pictures) if picture.labels]
        looks = [record for _, record in sorted(self._records.items()) if record.looks]
        records = self._records_of_timeline(looks)
        if not labelled or not records:
            return None
        rows = []
        for row, picture in labelled[:_TIMELINE_PICTURES]:
            image = _enlarge(picture)
            results = [record.looks.get(self._indices[row]) for record in records]
            rows.append([image, *(_draw_result(picture, image, r, self.colormap) for r in results)])
        headings = [f"epoch {r.moment.label}\nbox at {r.threshold.value:.3g}" for r in records]
        headings = [heading.replace(", ", "\n") for heading in headings]
        return timeline(rows, ["picture", *headings])

    @staticmethod
    def _records_of_timeline(records: Sequence[EpochRecord]) -> list[EpochRecord]:
        """At most six records; the early ones lie closer together."""
        count = min(_TIMELINE_EPOCHS, len(records))
        parts = [i / max(1, count - 1) for i in range(count)]
        rows = [round(len(records) ** part) - 1 for part in parts]
        for i in range(1, count):  # no row twice
            rows[i] = max(rows[i], rows[i - 1] + 1)
        return [records[row] for row in rows]


def _enlarge(picture: ValidationPicture) -> Image.Image:
    """The picture as an image, enlarged by a whole factor if it is small."""
    image = Image.fromarray(rgb_pixels(picture.pixels))
    factor = max(1, _TIMELINE_SIDE // max(image.size))  # small pictures keep their pixels
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _draw_result(
    picture: ValidationPicture, image: Image.Image, result: dict[str, Any] | None, colormap: str
) -> Image.Image:
    """Draw the stored heatmap of the true class, and the boxes, over the picture."""
    if result is None:  # the picture was not watched yet
        return image
    true, size_hw = result["true"], (image.height, image.width)
    class_map = unpacked_map(true["map"])[None]
    heatmap = picture_heatmaps(class_map, picture.preprocessing, size_hw)[0]
    predicted = torch.tensor(true["boxes"]).reshape(-1, 4) * torch.tensor([*image.size] * 2)
    boxes = picture.boxes_xyxy * (image.height / picture.size_hw[0])
    drawn = draw_boxes(overlay(image, heatmap, colormap=colormap), boxes, color=TRUE_BOX)
    return draw_boxes(drawn, predicted, color=PREDICTED_BOX)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _finite_scores(scores: Mapping[str, Tensor]) -> dict[str, float | None]:
    """The scores as numbers; None where a score is not finite."""
    values = {name: float(value) for name, value in scores.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
