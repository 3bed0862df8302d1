"""The report of a training: what it keeps of every epoch, and the page it makes of that."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from camtrain.training.files import write_text
from camtrain.training.watch.chapters import (
    classes_part,
    localization_charts,
    look_part,
    map_charts,
    picture_part,
    score_charts,
    settings_part,
)
from camtrain.training.watch.choice import Watched
from camtrain.training.watch.view import EpochView
from camtrain.visualize.report import PackedJson, packed_colormap, report_page

_MOST_BYTES = 8_000_000  # of the maps of all epochs; beyond it, epochs in between are left out


@dataclass
class _Epoch:
    """What the report keeps of an epoch, in a file of its own.

    Attributes:
        epoch: Epochs done.
        scores: By logged name.
        histograms: Of the maps, by statistic.
        looks: What was seen in the watched pictures, by their place in the data set.
    """

    epoch: int
    scores: dict[str, float | None] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)
    looks: dict[int, PackedJson] = field(default_factory=dict)

    def as_json(self) -> str:
        own = {"epoch": self.epoch, "scores": self.scores, "histograms": self.histograms}
        looks = ",".join(f'"{place}":{look}' for place, look in self.looks.items())
        return f'{json.dumps(own)[:-1]}, "looks": {{{looks}}}}}'

    @classmethod
    def from_json(cls, text: str) -> _Epoch:
        kept = json.loads(text)
        looks = {int(place): _packed(look) for place, look in kept.pop("looks").items()}
        return cls(**kept, looks=looks)


class Report:
    """Follows a training, and writes its page anew after every epoch.

    Args:
        path: The page. Beside it, in the folder of the same name without suffix, it keeps what a
            resumed training goes on with: ``epoch_000.json``, ..., ``latest.json``.
        colormap: See ``camtrain.visualize.overlay``.
    """

    def __init__(self, path: Path, colormap: str) -> None:
        self.path = path
        self.folder = path.with_suffix("")
        self.colormap = colormap
        self._epochs: dict[int, _Epoch] = {}
        self._unwritten: set[int] = set()
        self._places: list[int] = []  # of the watched pictures
        self._latest: dict[str, Any] = {  # chapters about the latest epoch, and about all
            "pictures": [],
            "mistakes": [],
            "localization": [],
            "classes": None,
            "classes_epoch": 0,
        }
        self._test: dict[str, float | None] = {}

    def begin(self) -> None:
        """Forget an earlier training in the same folder."""
        for file in self._files():
            file.unlink()

    def load(self, epochs: int | None = None) -> None:
        """Go on with what is kept.

        Args:
            epochs: How many are done; what a killed training had written beyond is forgotten. None
                means all.
        """
        for file in self._files():
            kept = _Epoch.from_json(file.read_text(encoding="utf-8"))
            if epochs is None or kept.epoch <= epochs:
                self._epochs[kept.epoch] = kept
        latest = self.folder / "latest.json"
        if latest.is_file():
            kept = json.loads(latest.read_text(encoding="utf-8"))
            self._places = kept.pop("places")
            self._latest = {name: _packed(chapter) for name, chapter in kept.items()}

    def show(self, pictures: Mapping[int, Watched], names: Sequence[str]) -> None:
        """Say which pictures are watched, by their place in the data set."""
        self._places = list(pictures)
        packed = [picture_part(one, names) for one in pictures.values()]
        self._latest["pictures"] = _packed(packed)

    def add(self, view: EpochView) -> None:
        """Take what is seen in an epoch; its scores may come later."""
        measured, names = view.measured, view.names
        epoch = self._epochs[view.epoch] = _Epoch(view.epoch)
        self._unwritten.add(view.epoch)
        for place, (one, look) in zip(self._places, view.seen, strict=True):
            epoch.looks[place] = _packed(look_part(one, look, names))
        mistakes = [
            {"picture": picture_part(one, names), "look": look_part(one, look, names)}
            for one, look in view.mistakes
        ]
        chapters = {"mistakes": mistakes, "classes_epoch": view.epoch}
        if measured is not None:
            epoch.histograms = {n: counts.tolist() for n, counts in measured.histograms.items()}
            chapters["localization"] = localization_charts(measured.localization)
            chapters["classes"] = classes_part(measured.classes, names)
        self._latest |= {name: _packed(chapter) for name, chapter in chapters.items()}

    def score(self, epoch: int, scores: Mapping[str, Tensor]) -> None:
        """Give an epoch scores, by logged name, in addition to those it has."""
        self._epochs.setdefault(epoch, _Epoch(epoch)).scores.update(_plain(scores))
        self._unwritten.add(epoch)

    def conclude(self, scores: Mapping[str, Tensor]) -> None:
        """Add the scores of the test split."""
        self._test = _plain(scores)

    def looks(self, most: int) -> dict[int, list[dict[str, Any] | None]]:
        """What was seen in some epochs, as the page has it: dense at first, where most changes.

        Returns:
            By epoch, for each watched picture; None where it was not watched yet.
        """
        seen = [number for number, epoch in sorted(self._epochs.items()) if epoch.looks]
        count = min(most, len(seen))
        parts = [i / max(1, count - 1) for i in range(count)]
        rows = [round(len(seen) ** part) - 1 for part in parts]
        for i in range(1, count):  # no row twice
            rows[i] = max(rows[i], rows[i - 1] + 1)
        return {seen[row]: json.loads(self._looks_of(self._epochs[seen[row]])) for row in rows}

    def write(self, trainer: Trainer, module: LightningModule) -> None:
        """Write what is new, and the page, each atomically."""
        if not self._epochs:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in sorted(self._unwritten):
            write_text(self.folder / f"epoch_{number:03d}.json", self._epochs[number].as_json())
        self._unwritten.clear()
        kept = {"places": _packed(self._places), **self._latest}
        parts = (f'"{name}":{_packed(chapter)}' for name, chapter in kept.items())
        write_text(self.folder / "latest.json", f"{{{','.join(parts)}}}")
        write_text(self.path, report_page(self._content(trainer, module)))

    def _content(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        epochs = [self._epochs[number] for number in sorted(self._epochs)]
        planned = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        seen = [epoch for epoch in epochs if epoch.looks]
        shown = self._with_room(seen)
        looks = (f'{{"epoch":{one.epoch},"looks":{self._looks_of(one)}}}' for one in shown)
        return {
            "title": self.path.absolute().parent.name,
            "state": f"epoch {max(self._epochs)}{f' of {planned}' if planned else ''}, "
            f"written {now}",
            "colormap": packed_colormap(self.colormap),
            "curves": score_charts(epochs),
            "maps": map_charts(epochs),
            "epochs": PackedJson(f"[{','.join(looks)}]"),
            "epochs_seen": len(seen),
            **self._latest,
            "test": {name: value for name, value in self._test.items() if value is not None},
            "settings": settings_part(trainer, module),
        }

    def _looks_of(self, epoch: _Epoch) -> PackedJson:
        """A list with what was seen in each watched picture."""
        looks = (epoch.looks.get(place, "null") for place in self._places)
        return PackedJson(f"[{','.join(looks)}]")

    @staticmethod
    def _with_room(epochs: Sequence[_Epoch]) -> list[_Epoch]:
        """All epochs, or as many, evenly spread, as the page has room for."""
        size = sum(len(look) for epoch in epochs for look in epoch.looks.values())
        whole = len(epochs)
        count = whole if size <= _MOST_BYTES else max(2, whole * _MOST_BYTES // size)
        rows = sorted({round(i * (whole - 1) / max(1, count - 1)) for i in range(count)})
        return [epochs[row] for row in rows]

    def _files(self) -> Iterable[Path]:
        return sorted(self.folder.glob("epoch_*.json"))


def _packed(part: object) -> PackedJson:
    """What the page is made of again and again, as JSON."""
    if isinstance(part, PackedJson):
        return part
    return PackedJson(json.dumps(part, separators=(",", ":"), allow_nan=False))


def _plain(scores: Mapping[str, Tensor]) -> dict[str, float | None]:
    values = {name: float(value) for name, value in scores.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
