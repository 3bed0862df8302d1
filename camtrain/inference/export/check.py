"""Whether an exported network computes what the network computes: logits, maps and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from camtrain.data import prepare
from camtrain.inference.export.program import check_sizes
from camtrain.inference.exported import ExportedNetwork
from camtrain.inference.network import Network
from camtrain.localization.boxes import boxes_from_heatmap
from camtrain.maps import CAMOutput, heatmaps
from camtrain.model.camnet import CAMNet

TOLERANCE = 1e-4  # of logits absolute; of maps and heatmaps relative to the range of each
_HEATMAP_TOLERANCE = 1e-3  # upsampling narrows the range that the difference is divided by
_LARGE_LOGIT = 100.0
_TOP = 5


@dataclass(frozen=True)
class Parity:
    """How far an exported network is from the network it was made of.

    Attributes:
        sizes_hw: (H, W) of the inputs compared, in pixels.
        images: Number of inputs compared, over all sizes.
        logits: Largest difference.
        size_of_logits: Largest absolute value of the network's own logits.
        maps: Largest difference of a class map or refined map, in parts of its range.
        heatmaps: Largest difference of the file's own heatmaps; None where it has none.
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
        # Beyond some hundred, float32 itself is coarser; no trained network is there.
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


def measure_parity(
    net: CAMNet, exported: ExportedNetwork, pictures: Sequence[Tensor], *, threshold: float
) -> Parity:
    """Compare at two sizes with H != W, or at the one size that the file takes.

    Args:
        net: In evaluation mode.
        exported: Made of ``net``.
        pictures: (C, H, W) uint8 each.
        threshold: Map threshold of the boxes, in [0, 1).
    """
    assert net.preprocessing is not None
    sizes_hw = check_sizes(net) if exported.input_hw is None else [exported.input_hw]
    parity = Parity(tuple(sizes_hw))
    for size in sizes_hw:
        preprocessing = replace(net.preprocessing, size=size)
        images = torch.stack([prepare(picture, preprocessing) for picture in pictures])
        for start in range(0, len(images), 2):
            parity = _compared(parity, net, exported, images[start : start + 2], threshold)
    return parity


def _compared(
    parity: Parity, net: CAMNet, exported: ExportedNetwork, images: Tensor, threshold: float
) -> Parity:
    """The parity of what was compared before and of these images, (B, C, H, W)."""
    size = (images.shape[2], images.shape[3])
    options = exported.options
    outputs = exported.outputs(images)
    top = options.top or min(_TOP, len(exported.class_names))
    plain = exported.class_maps(images, top=top)
    found = exported.display_maps(images, top=top)
    expected = maps_of(net, images, found.classes)
    with torch.inference_mode():
        plain_maps = net.class_maps(images, classes=found.classes).maps
    heat, expected_heat = heatmaps(found.maps, size=size), heatmaps(expected.maps, size=size)
    own_heat = parity.heatmaps
    if options.heatmaps:
        places = found.classes if options.top is None else torch.arange(found.classes.shape[1])
        own = outputs["heatmaps"].gather(
            1, places.expand(len(images), -1)[:, :, None, None].expand(-1, -1, *size)
        )
        own_heat = max(own_heat or 0.0, float((own - expected_heat).abs().max()))
    pairs = list(zip(heat.flatten(0, 1), expected_heat.flatten(0, 1), strict=True))
    verdicts = [_same_boxes(one, other, threshold) for one, other in pairs]
    return replace(
        parity,
        images=parity.images + len(images),
        logits=_worst(parity.logits, (found.logits - expected.logits).abs()),
        size_of_logits=_worst(parity.size_of_logits, expected.logits.abs()),
        maps=_worst(
            _worst(parity.maps, relative_difference(plain.maps, plain_maps)),
            relative_difference(found.maps, expected.maps),
        ),
        heatmaps=own_heat,
        boxes=parity.boxes + len(pairs),
        near=parity.near + verdicts.count(None),
        differing=parity.differing + verdicts.count(False),
    )


def maps_of(net: CAMNet | Network, images: Tensor, classes: Tensor) -> CAMOutput:
    """Logits and what heatmaps of ``classes`` (B, k) are made of, on the CPU."""
    with torch.inference_mode():
        logits, maps, classes = net.display_maps(images, classes=classes.cpu())
    return CAMOutput(logits.cpu(), maps.cpu(), classes.cpu())


def relative_difference(maps: Tensor, expected: Tensor) -> Tensor:
    """Largest difference of each map, (B, k), in parts of the expected map's range.

    Example:
        >>> expected = torch.tensor([[[[0.0, 4.0]]]])
        >>> relative_difference(expected + 1.0, expected)
        tensor([[0.2500]])
    """
    difference = (maps - expected).abs().amax((-2, -1))
    low, high = expected.amin((-2, -1)), expected.amax((-2, -1))
    # A constant map has no range; its own size is then what rounding is small against.
    scale = torch.where(high > low, high - low, expected.abs().amax((-2, -1)))
    return torch.where(difference == 0, 0.0, difference / scale)


def _same_boxes(heat: Tensor, expected: Tensor, threshold: float) -> bool | None:
    """Whether the boxes agree; None where they differ and a pixel lies at the threshold."""
    if torch.equal(boxes_from_heatmap(heat, threshold), boxes_from_heatmap(expected, threshold)):
        return True
    level = threshold * expected.max()
    return None if bool(((expected - level).abs() <= TOLERANCE).any()) else False


def _worst(before: float, differences: Tensor) -> float:
    """The larger of both; NaN stays."""
    return float(torch.cat((torch.tensor([before]), differences.flatten().float())).max())
