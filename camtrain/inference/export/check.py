"""Comparing an exported network with the network in float32: parity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from camtrain.data import Source, SourcePicture, prepare, read_image
from camtrain.data.source import no_boxes
from camtrain.inference.export.graph import check_sizes
from camtrain.inference.exported import ExportedNetwork
from camtrain.localization.boxes import auto_threshold, boxes_from_heatmap
from camtrain.maps import heatmaps, relative_difference
from camtrain.model.camnet import CAMNet
from camtrain.thresholds import Threshold

TOLERANCE = 1e-4  # of logits absolute; of maps and heatmaps relative to the range of each
_HEATMAP_TOLERANCE = 1e-3  # upsampling narrows the range that the difference is divided by
_LARGE_LOGIT = 100.0
_TOP = 5
RANDOM = "random pictures"


class Pictures(NamedTuple):
    """Pictures to check an export on.

    Attributes:
        images: A few, (C, H, W) uint8 each.
        origin: Where they come from, in words.
        source: The labelled pictures that they are among, where they are labelled.
        files: The pictures that they are among, where those are not labelled.
    """

    images: Sequence[Tensor]
    origin: str
    source: Source | None = None
    files: Sequence[str | Path] = ()

    @property
    def is_random(self) -> bool:
        """Whether they are noise and no pictures of anything."""
        return self.origin == RANDOM

    def sample(self, most: int) -> Iterator[SourcePicture]:
        """At most so many of the pictures that these are among, evenly spaced.

        The label of those without one is empty, (0,).
        """
        count = len(self.source or self.files or self.images)
        for index in spread(count, most):
            if self.source is not None:
                yield self.source.read(index)
            else:
                image = read_image(self.files[index]) if self.files else self.images[index]
                yield SourcePicture(image, torch.zeros(0), no_boxes(index), "")


@dataclass(frozen=True)
class Parity:
    """The difference of an exported network from the network it was made of.

    Attributes:
        sizes_hw: (H, W) of the inputs compared, in pixels.
        images: Number of inputs compared, over all sizes.
        logits: Largest difference.
        size_of_logits: Largest absolute value of the network's logits.
        maps: Largest difference of a class map or refined map, in parts of its range.
        heatmaps: Largest difference of the file's heatmaps; None where it has none.
        boxes: Number of class maps whose boxes were compared.
        near: Those that differ, with a pixel that lies within 1e-4 of the threshold.
        differing: Those that differ without such a pixel.
    """

    sizes_hw: tuple[tuple[int, int], ...]
    images: int = 0
    logits: float = 0.0
    size_of_logits: float = 0.0
    maps: float = 0.0
    heatmaps: float | None = None
    boxes: int = 0
    near: int = 0
    differing: int = 0

    def complaint(self) -> str | None:
        """What lies outside the tolerance, in words; None where nothing does."""
        heat = self.heatmaps or 0.0
        # Above 100 float32 itself is coarser; logits of trained networks are smaller.
        allowed = TOLERANCE * max(1.0, self.size_of_logits / _LARGE_LOGIT)
        # Not a comparison with >, which NaN would pass.
        if self.logits <= allowed and self.maps <= TOLERANCE and heat <= _HEATMAP_TOLERANCE:
            return f"{self.differing} of {self.boxes} boxes differ" if self.differing else None
        return (
            f"its logits differ by up to {self.logits:.3g} and its maps by {self.maps:.3g} of "
            f"their range, more than {allowed:g} and {TOLERANCE:g}"
        )

    def __str__(self) -> str:
        """One line of figures."""
        sizes = " and ".join(f"{height}x{width}" for height, width in self.sizes_hw)
        heat = "" if self.heatmaps is None else f", heatmaps {self.heatmaps:.1e}"
        return (
            f"{self.images} inputs of {sizes}: logits differ by at most {self.logits:.1e}, maps by "
            f"{self.maps:.1e} of their range{heat}; boxes of {self.boxes} maps: "
            f"{self.boxes - self.near - self.differing} equal, {self.near} with a pixel within "
            f"{TOLERANCE:g} of the threshold, {self.differing} different"
        )


def random_pictures(net: CAMNet) -> list[Tensor]:
    """Smooth coloured noise, uint8, four pictures of different sizes with H != W."""
    assert net.preprocessing is not None
    height, width = net.preprocessing.size
    channels = len(net.preprocessing.mean)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, channels, 6, 9, generator=generator)
    smooth = [
        F.interpolate(noise[None], size=(height + 40 * n, width + 16 + 24 * n), mode="bicubic")[0]
        for n, noise in enumerate(coarse)
    ]
    return [(noise.clamp(0, 1) * 255).round().byte() for noise in smooth]


def spread(count: int, most: int) -> list[int]:
    """The indices of at most ``most`` of ``count`` items, evenly spaced."""
    number = min(count, most)
    return [place * count // number for place in range(number)]


@torch.no_grad()
def measure_parity(
    net: CAMNet, exported: ExportedNetwork, pictures: Sequence[Tensor], *, threshold: Threshold
) -> Parity:
    """Compare the outputs at two sizes with H != W, or at the only size that the file takes.

    Args:
        net: In evaluation mode, on the CPU.
        exported: Made of ``net``.
        pictures: (C, H, W) uint8 each.
        threshold: Map threshold of the boxes, in [0, 1), or ``auto``.
    """
    assert net.preprocessing is not None
    sizes_hw = check_sizes(net) if exported.input_hw is None else [exported.input_hw]
    top = exported.top or min(_TOP, len(exported.class_names))
    logits, sizes_of_logits, maps, heats, same_boxes = [], [], [], [], []
    for size in sizes_hw:
        preprocessing = replace(net.preprocessing, size=size)
        prepared = torch.stack([prepare(picture, preprocessing) for picture in pictures])
        for images in torch.split(prepared, 2):
            output = exported.display_maps(images, top=top)
            expected = net.display_maps(images, classes=output.classes)
            class_maps = exported.class_maps(images, top=top).maps
            expected_class_maps = net.class_maps(images, classes=output.classes).maps
            logits.append(output.logits - expected.logits)
            sizes_of_logits.append(expected.logits)
            maps.append(relative_difference(output.maps, expected.maps))
            maps.append(relative_difference(class_maps, expected_class_maps))
            heat, expected_heat = (heatmaps(o.maps, size=size) for o in (output, expected))
            if exported.options.heatmaps:
                heat_in_file = exported.output_maps("heatmaps", images, top=top).maps
                heats.append((heat_in_file - expected_heat).abs().amax())
            pairs = zip(heat.flatten(0, 1), expected_heat.flatten(0, 1), strict=True)
            same_boxes += [_same_boxes(*pair, threshold) for pair in pairs]
    return Parity(
        tuple(sizes_hw),
        images=len(pictures) * len(sizes_hw),
        logits=_largest(logits),
        size_of_logits=_largest(sizes_of_logits),
        maps=_largest(maps),
        heatmaps=_largest(heats) if heats else None,
        boxes=len(same_boxes),
        near=same_boxes.count(None),
        differing=same_boxes.count(False),
    )


def _same_boxes(heat: Tensor, expected: Tensor, threshold: Threshold) -> bool | None:
    """Whether the boxes agree; None where they differ and a pixel lies at the threshold."""
    if threshold == "auto":  # a difference of rounding may move it by one of 256 bins
        threshold = auto_threshold(expected)
    if torch.equal(boxes_from_heatmap(heat, threshold), boxes_from_heatmap(expected, threshold)):
        return True
    level = threshold * expected.max()
    return None if bool(((expected - level).abs() <= TOLERANCE).any()) else False


def _largest(tensors: list[Tensor]) -> float:
    """The largest absolute value of all; NaN where one is NaN."""
    return float(torch.cat([tensor.flatten() for tensor in tensors]).abs().max())
