"""An exported network behind the door of the predictor, whatever runs its graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camtrain.data import to_pixels
from camtrain.errors import CamtrainValueError
from camtrain.inference.bundle import FORMAT_VERSION, describe
from camtrain.inference.export.graph import ExportOptions
from camtrain.inference.export.program import Program
from camtrain.localization.boxes import check_threshold
from camtrain.maps import CAMOutput, check_classes
from camtrain.model.camnet import CAMNet, Task, check_task
from camtrain.model.refine import Refine
from camtrain.preprocessing import Preprocessing
from camtrain.version import __version__

MOST_METADATA = 2**24  # bytes; the names of 20,000 classes take a few hundred thousand


@dataclass(frozen=True)
class Description:
    """What an exported file says about itself.

    Attributes:
        class_names: K names.
        preprocessing: What the network expects to be done to its pictures.
        task: Whether scores are a softmax over the logits or a sigmoid of each.
        threshold: Map threshold of the boxes, in [0, 1).
        scores: What the epoch of these weights reached, by logged name.
        options: What it takes and gives.
        input_hw: (H, W) of the only images it takes, in pixels; None for any size.
    """

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    task: Task
    threshold: float
    scores: Mapping[str, float]
    options: ExportOptions
    input_hw: tuple[int, int] | None


def metadata_text(
    net: CAMNet,
    program: Program,
    *,
    threshold: float,
    scores: Mapping[str, float] | None = None,
) -> str:
    """The JSON of a bundle and, under ``export`` and ``task``, what else the reader must know."""
    said = describe(net, threshold=threshold, scores=scores)
    said["task"] = net.task
    said["export"] = {**program.options.to_dict(), "input_hw": program.input_hw}
    return json.dumps(said)


def read_description(path: Path, text: str | bytes | None) -> Description:
    """What the metadata of a file says.

    Raises:
        CamtrainValueError: There is none, it is not ours, or of a newer format version.
    """
    if text is None:
        raise CamtrainValueError(
            f"{path} was not exported by camtrain: it has no camtrain metadata; export one with "
            "`camtrain export CHECKPOINT`."
        )
    try:
        said: dict[str, Any] = json.loads(text)
        version = int(said["format_version"])
        if version <= FORMAT_VERSION:
            return _description(said)
    except Exception as error:  # what damaged values make the readers raise cannot be known
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CamtrainValueError(
            f"{path} has unreadable camtrain metadata ({reason:.300}); export it again."
        ) from error
    raise CamtrainValueError(
        f"{path} has format version {version}, this camtrain ({__version__}) reads up to "
        f"{FORMAT_VERSION}; install a newer camtrain."
    )


def _description(said: dict[str, Any]) -> Description:
    export = dict(said["export"])
    input_hw = export.pop("input_hw")
    names = said["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CamtrainValueError("class_names must be a list of names")
    return Description(
        class_names=tuple(names),
        preprocessing=Preprocessing.from_dict(said["preprocessing"]),
        task=check_task(said["task"]),
        threshold=check_threshold(float(said["map_threshold"])),
        scores={name: float(score) for name, score in said["scores"].items()},
        options=ExportOptions(**export),
        input_hw=None if input_hw is None else (int(input_hw[0]), int(input_hw[1])),
    )


class ExportedNetwork:
    """The network of an exported file; see ``camtrain.inference.network.Network``."""

    def __init__(self, said: Description, run: Callable[[Tensor], Sequence[Tensor]]) -> None:
        """Take what the file says and what runs its graph: input to outputs, in their order."""
        self.said = said
        self.run = run
        self.class_names = said.class_names
        self.preprocessing = said.preprocessing
        self.task: Task = said.task
        self.top = said.options.top

    def class_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """See ``Network.class_maps``.

        Raises:
            CamtrainValueError: The file takes no images of this size or channels, or gives the maps
                of its best classes only and others are asked for.
        """
        return self._maps("maps", images, top, classes)

    @property
    def refine(self) -> Refine:
        """See ``Network.refine``."""
        return self.said.options.refine

    def display_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """See ``Network.display_maps``; the refined maps if the file gives them."""
        name = "maps" if self.refine == "none" else "refined_maps"
        return self._maps(name, images, top, classes)

    def _maps(
        self, name: str, images: Tensor, top: int | None, classes: Tensor | None
    ) -> CAMOutput:
        """Logits, the maps of this output of the file, and their classes."""
        self._check_images(images)
        if classes is not None:
            check_classes(classes, len(images), len(self.class_names))
        outputs = self.outputs(images)
        logits, maps = outputs["logits"], outputs[name]
        if top is not None:
            classes = logits.topk(min(top, logits.shape[1])).indices
        elif classes is None:
            classes = torch.arange(logits.shape[1]).expand_as(logits)
        classes = classes.to(logits.device, torch.int64).reshape(len(images), -1)
        places = self._places(outputs, classes)
        rows = torch.arange(len(images), device=maps.device)[:, None]
        return CAMOutput(logits, maps[rows, places], classes)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """All outputs of the file, by name, for normalized images (B, C, H, W)."""
        if self.said.options.raw:
            images = to_pixels(images.cpu(), self.preprocessing)
        return dict(zip(self.said.options.output_names, self.run(images), strict=True))

    def _check_images(self, images: Tensor) -> None:
        channels = len(self.preprocessing.mean)
        height, width = self.said.input_hw or (images.shape[-2], images.shape[-1])
        if images.ndim != 4 or images.shape[1:] != (channels, height, width):
            sides = f"{height}, {width}" if self.said.input_hw else "H, W"
            raise CamtrainValueError(
                f"This exported network takes images (B, {channels}, {sides}), got "
                f"{tuple(images.shape)}; use the bundle for others."
            )

    def _places(self, outputs: Mapping[str, Tensor], classes: Tensor) -> Tensor:
        """Where (B, k) among the maps of the file those of ``classes`` (B, k) are."""
        if self.said.options.top is None:
            return classes
        is_there = outputs["classes"][:, None] == classes[:, :, None]  # (B, k, k of the file)
        if not is_there.any(2).all():
            count = outputs["classes"].shape[1]
            raise CamtrainValueError(
                f"This file gives the maps of its {count} best classes only; ask for top={count} "
                "or fewer, or export it without --top."
            )
        return is_there.int().argmax(2)
