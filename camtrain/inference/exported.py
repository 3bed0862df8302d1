"""An exported network behind the door of the predictor, whatever runs its graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from camtrain.data import to_pixels
from camtrain.errors import CamtrainValueError
from camtrain.header import Description, parse_description, refusing_damage
from camtrain.inference.bundle import shipped_description
from camtrain.inference.export.graph import ExportOptions
from camtrain.inference.export.program import Program
from camtrain.maps import CAMOutput, check_classes
from camtrain.model.camnet import CAMNet
from camtrain.model.refine import Refine

MOST_METADATA = 2**24  # bytes; the names of 20,000 classes take a few hundred thousand


def export_description(
    net: CAMNet,
    program: Program,
    *,
    threshold: float,
    scores: Mapping[str, float] | None = None,
) -> Description:
    """What an exported file says about its network: as in a bundle, and the options of the file."""
    description = shipped_description(net, threshold=threshold, scores=scores)
    export = {**program.options.to_dict(), "input_hw": program.input_hw}
    return replace(description, export=export)


class ExportedNetwork:
    """The network of an exported file; see ``camtrain.inference.network.Network``.

    Attributes:
        description: What the file says about its network.
        options: What it takes and gives.
        input_hw: (H, W) of the only images it takes, in pixels; None for any size.
        run: Runs its graph: input to outputs, in their order.
    """

    run: Callable[[Tensor], Sequence[Tensor]]

    def __init__(self, path: Path, text: str | bytes | None) -> None:
        """Read the metadata of a file; whoever can run its graph sets ``run``.

        Args:
            path: Of the file, for messages.
            text: Its metadata.

        Raises:
            CamtrainValueError: There are none, they are not ours, or of a newer format version.
        """
        if text is None:
            raise CamtrainValueError(
                f"{path} was not exported by camtrain: it has no camtrain metadata; export one "
                "with `camtrain export CHECKPOINT`."
            )
        self.description = parse_description(text, path)
        with refusing_damage(path):
            export = dict(self.description.export or {})
            size_hw = export.pop("input_hw")
            self.input_hw = None if size_hw is None else (int(size_hw[0]), int(size_hw[1]))
            self.options = ExportOptions(**export)
            if self.description.class_names is None or self.description.preprocessing is None:
                raise CamtrainValueError("class_names or preprocessing are missing")
        self.class_names = self.description.class_names
        self.preprocessing = self.description.preprocessing
        self.task = self.description.task
        self.top = self.options.top

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
        return self.options.refine

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
        if self.options.raw:
            images = to_pixels(images.cpu(), self.preprocessing)
        return dict(zip(self.options.output_names, self.run(images), strict=True))

    def _check_images(self, images: Tensor) -> None:
        channels = len(self.preprocessing.mean)
        height, width = self.input_hw or (images.shape[-2], images.shape[-1])
        if images.ndim != 4 or images.shape[1:] != (channels, height, width):
            sides = f"{height}, {width}" if self.input_hw else "H, W"
            raise CamtrainValueError(
                f"This exported network takes images (B, {channels}, {sides}), got "
                f"{tuple(images.shape)}; use the bundle for others."
            )

    def _places(self, outputs: Mapping[str, Tensor], classes: Tensor) -> Tensor:
        """Where (B, k) among the maps of the file those of ``classes`` (B, k) are."""
        if self.options.top is None:
            return classes
        is_there = outputs["classes"][:, None] == classes[:, :, None]  # (B, k, k of the file)
        if not is_there.any(2).all():
            count = outputs["classes"].shape[1]
            raise CamtrainValueError(
                f"This file gives the maps of its {count} best classes only; ask for top={count} "
                "or fewer, or export it without --top."
            )
        return is_there.int().argmax(2)
