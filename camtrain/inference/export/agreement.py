"""What a lower precision changes: accuracy and localization where there are labels and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camtrain.data import Source, SourcePicture, prepare
from camtrain.errors import CamtrainValueError
from camtrain.inference.export.pictures import Pictures
from camtrain.inference.exported import ExportedNetwork
from camtrain.inference.network import Network
from camtrain.localization import LocalizationAccuracy
from camtrain.localization.boxes import box_iou, boxes_from_heatmap
from camtrain.maps import CAMOutput, picture_heatmaps
from camtrain.model.camnet import CAMNet
from camtrain.preprocessing import Preprocessing

_MOST = 1000  # pictures measured
_SAME_IOU = 0.9


@dataclass(frozen=True)
class Agreement:
    """Two networks on the same pictures.

    Attributes:
        pictures: How many.
        logits: Largest difference.
        same_class: Part of the pictures whose best class is the same.
        same_box: Part of them whose largest boxes of the first one's best class overlap by an
            IoU of 0.9 or more.
        scores: Accuracy and GT-known localization of the first and of the second, in [0, 1], by
            name; empty without labels, without localization where no picture has a box.
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


def measure_agreement(
    net: CAMNet, exported: ExportedNetwork, pictures: Pictures, *, threshold: float
) -> Agreement:
    """Compare a network with its exported form at the network's own preprocessing.

    Args:
        net: In evaluation mode, float32.
        exported: Made of ``net``; all maps of it must be there for localization.
        pictures: All of a labelled source (at most 1,000, evenly spaced), or the pictures.
        threshold: Map threshold of the boxes, in [0, 1).

    Raises:
        CamtrainValueError: The exported network gives logits or maps that are not finite.
    """
    assert net.preprocessing is not None
    source = pictures.source
    indices = range(len(pictures.images)) if source is None else _chosen(source)
    meters = (LocalizationAccuracy(threshold), LocalizationAccuracy(threshold))
    largest, same_class, same_box = 0.0, 0, 0
    for index in indices:
        picture = None if source is None else source.read(index)
        image = pictures.images[index] if picture is None else picture.image
        images = prepare(image, net.preprocessing)[None]
        both = _at_best(net, images), _at_best(exported, images)
        if not all(torch.isfinite(tensor).all() for tensor in both[1][:2]):
            raise CamtrainValueError(
                "The exported network overflows in float16 (its logits or maps are not finite); "
                "export it with --precision fp32."
            )
        largest = max(largest, float((both[0].logits - both[1].logits).abs().max()))
        is_same = bool(both[0].classes == both[1].classes)
        same_class += is_same
        same_box += is_same and _overlap(both, net, image, threshold) >= _SAME_IOU
        if picture is not None and isinstance(picture.label, int):
            _count(net, meters[0], images, picture, net.preprocessing)
            _count(exported, meters[1], images, picture, net.preprocessing)
    total = len(indices)
    scores = _scores(meters)
    return Agreement(total, largest, same_class / total, same_box / total, scores)


def _at_best(network: CAMNet | Network, images: Tensor) -> CAMOutput:
    with torch.inference_mode():
        return CAMOutput(*(tensor.cpu() for tensor in network.display_maps(images, top=1)))


def _overlap(
    both: tuple[CAMOutput, CAMOutput], net: CAMNet, image: Tensor, threshold: float
) -> float:
    """IoU of the largest boxes of both on the picture; 1 where neither has one."""
    assert net.preprocessing is not None
    hw = (image.shape[1], image.shape[2])
    heats = [picture_heatmaps(output.maps[0], net.preprocessing, hw)[0] for output in both]
    first, second = (boxes_from_heatmap(heat, threshold)[:1] for heat in heats)
    if not len(first) or not len(second):
        return float(len(first) == len(second))
    return float(box_iou(first, second))


def _count(
    network: CAMNet | ExportedNetwork,
    meter: LocalizationAccuracy,
    images: Tensor,
    picture: SourcePicture,
    preprocessing: Preprocessing,
) -> None:
    """Count a picture by its label and its boxes."""
    has_all = isinstance(network, CAMNet) or network.options.top is None
    label = torch.tensor([picture.label])
    with torch.inference_mode():
        logits, maps, _ = network.display_maps(
            images, top=None if has_all else 1, classes=label if has_all else None
        )
    hw = (picture.image.shape[1], picture.image.shape[2])
    boxes = picture.boxes_xyxy if has_all else picture.boxes_xyxy[:0]
    meter.update(
        [picture_heatmaps(maps[0].cpu(), preprocessing, hw)[0]],
        logits.cpu(),
        label,
        [boxes],
        torch.tensor([hw]),
    )


def _scores(meters: Sequence[LocalizationAccuracy]) -> dict[str, tuple[float, float]]:
    """What both were counted for, by name."""
    names = {"accuracy": ("cls_top1", "cls_count"), "GT-known localization": ("gt_known", "count")}
    values = [meter.compute() for meter in meters] if int(meters[0].cls_count) else []
    return {
        name: (float(values[0][score]), float(values[1][score]))
        for name, (score, counter) in names.items()
        if values and all(int(getattr(meter, counter)) for meter in meters)
    }


def _chosen(source: Source) -> list[int]:
    count = min(len(source), _MOST)
    return [place * len(source) // count for place in range(count)]
