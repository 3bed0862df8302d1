"""Comparing an exported network with the network: parity in float32, agreement in float16."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from camtrain.data import Source, SourcePicture, prepare
from camtrain.errors import CamtrainValueError
from camtrain.inference.export.graph import check_sizes
from camtrain.inference.exported import ExportedNetwork
from camtrain.localization import LocalizationAccuracy
from camtrain.localization.boxes import box_iou, boxes_from_heatmap
from camtrain.maps import CAMOutput, heatmaps, picture_heatmaps, relative_difference
from camtrain.model.camnet import CAMNet
from camtrain.preprocessing import Preprocessing

TOLERANCE = 1e-4  # of logits absolute; of maps and heatmaps relative to the range of each
_HEATMAP_TOLERANCE = 1e-3  # upsampling narrows the range that the difference is divided by
_LARGE_LOGIT = 100.0
_TOP = 5
_MOST_PICTURES = 1000
_SAME_IOU = 0.9


class Pictures(NamedTuple):
    """Pictures to check an export on.

    Attributes:
        images: (C, H, W) uint8 each.
        origin: Where they come from, in words.
        source: The labelled pictures that they are among, where they are labelled.
    """

    images: list[Tensor]
    origin: str
    source: Source | None = None


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


@dataclass(frozen=True)
class Agreement:
    """Two networks on the same pictures.

    Attributes:
        pictures: Number of pictures.
        logits: Largest difference.
        same_class: Part of the pictures whose best class is the same.
        same_box: Part of them whose largest boxes of that class have an IoU of 0.9 or more.
        scores: Accuracy and GT-known localization of the first and of the second network, in
            [0, 1], by name. Empty without labels; without localization where no picture has a box.
    """

    pictures: int
    logits: float
    same_class: float
    same_box: float
    scores: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        """One line of figures."""
        changes = "".join(
            f"; {name} {100 * before:.2f}% -> {100 * after:.2f}%"
            for name, (before, after) in self.scores.items()
        )
        return (
            f"{self.pictures} pictures: same best class {100 * self.same_class:.2f}%, same box "
            f"(IoU >= {_SAME_IOU}) {100 * self.same_box:.2f}%, logits differ by at most "
            f"{self.logits:.1e}{changes}"
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
    net: CAMNet, exported: ExportedNetwork, pictures: list[Tensor], *, threshold: float
) -> Parity:
    """Compare the outputs at two sizes with H != W, or at the only size that the file takes.

    Args:
        net: In evaluation mode, on the CPU.
        exported: Made of ``net``.
        pictures: (C, H, W) uint8 each.
        threshold: Map threshold of the boxes, in [0, 1).
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


def _same_boxes(heat: Tensor, expected: Tensor, threshold: float) -> bool | None:
    """Whether the boxes agree; None where they differ and a pixel lies at the threshold."""
    if torch.equal(boxes_from_heatmap(heat, threshold), boxes_from_heatmap(expected, threshold)):
        return True
    level = threshold * expected.max()
    return None if bool(((expected - level).abs() <= TOLERANCE).any()) else False


def _largest(tensors: list[Tensor]) -> float:
    """The largest absolute value of all; NaN where one is NaN."""
    return float(torch.cat([tensor.flatten() for tensor in tensors]).abs().max())


@torch.no_grad()
def measure_agreement(
    net: CAMNet, exported: ExportedNetwork, pictures: Pictures, *, threshold: float
) -> Agreement:
    """Compare a network with its exported form at the network's own preprocessing.

    Args:
        net: In evaluation mode, float32, on the CPU.
        exported: Made of ``net``; localization is measured only if it gives all maps.
        pictures: All of a labelled source (at most 1,000, evenly spaced), or the pictures.
        threshold: Map threshold of the boxes, in [0, 1).

    Raises:
        CamtrainValueError: The exported network gives logits or maps that are not finite.
    """
    assert net.preprocessing is not None
    source, preprocessing = pictures.source, net.preprocessing
    indices = spread(len(pictures.images if source is None else source), _MOST_PICTURES)
    metrics = (LocalizationAccuracy(threshold), LocalizationAccuracy(threshold))
    largest, same_class, same_box = 0.0, 0, 0
    for index in indices:
        picture = None if source is None else source.read(index)
        image = pictures.images[index] if picture is None else picture.image
        images = prepare(image, preprocessing)[None]
        expected, output = net.display_maps(images, top=1), exported.display_maps(images, top=1)
        if not all(torch.isfinite(tensor).all() for tensor in output[:2]):
            raise CamtrainValueError(
                "The exported network overflows in float16 (its logits or maps are not finite); "
                "export it with --precision fp32."
            )
        largest = max(largest, float((expected.logits - output.logits).abs().max()))
        if bool(expected.classes == output.classes):
            same_class += 1
            heats = (_heatmap(maps, preprocessing, image) for maps in (expected, output))
            box, other_box = (boxes_from_heatmap(heat, threshold)[:1] for heat in heats)
            if len(box) and len(other_box):
                same_box += bool(box_iou(box, other_box) >= _SAME_IOU)
            else:
                same_box += len(box) == len(other_box)
        if picture is not None and isinstance(picture.label, int):
            _update(metrics[0], net, images, picture, preprocessing)
            _update(metrics[1], exported, images, picture, preprocessing)
    count = len(indices)
    return Agreement(count, largest, same_class / count, same_box / count, _scores(*metrics))


def _heatmap(output: CAMOutput, preprocessing: Preprocessing, image: Tensor) -> Tensor:
    """The first heatmap of a network's output for one picture (C, H, W), at its size (H, W)."""
    return picture_heatmaps(output.maps[0], preprocessing, (image.shape[1], image.shape[2]))[0]


def _update(
    metric: LocalizationAccuracy,
    network: CAMNet | ExportedNetwork,
    images: Tensor,
    picture: SourcePicture,
    preprocessing: Preprocessing,
) -> None:
    """Count a picture by its label; by its boxes only if the network gives all maps."""
    has_all = isinstance(network, CAMNet) or network.top is None
    label = torch.tensor([picture.label])
    output = network.display_maps(
        images, top=None if has_all else 1, classes=label if has_all else None
    )
    heat = _heatmap(output, preprocessing, picture.image)
    boxes = picture.boxes_xyxy if has_all else picture.boxes_xyxy[:0]
    metric.update([heat], output.logits, label, [boxes], torch.tensor([heat.shape]))


def _scores(
    first: LocalizationAccuracy, second: LocalizationAccuracy
) -> dict[str, tuple[float, float]]:
    """The scores of both metrics that have counted something, by name."""
    names = {"accuracy": ("cls_top1", "cls_count"), "GT-known localization": ("gt_known", "count")}
    if not int(first.cls_count):
        return {}
    before, after = first.compute(), second.compute()
    return {
        name: (float(before[score]), float(after[score]))
        for name, (score, counter) in names.items()
        if int(getattr(first, counter)) and int(getattr(second, counter))
    }
