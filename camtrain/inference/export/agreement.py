"""How far a network in fewer bits still says and shows what the network says and shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from camtrain.data import SourcePicture, prepare
from camtrain.errors import CamtrainValueError
from camtrain.inference.export.check import Pictures
from camtrain.inference.exported import ExportedNetwork
from camtrain.localization import LocalizationAccuracy, MaxBoxAcc
from camtrain.localization.boxes import box_iou, boxes_from_heatmap
from camtrain.maps import CAMOutput, picture_heatmaps, whole_picture_maps
from camtrain.model.camnet import CAMNet
from camtrain.preprocessing import Preprocessing
from camtrain.thresholds import Threshold

_MOST_PICTURES = 1000
_SAME_IOU = 0.9
_BENCHMARK_HW = (224, 224)  # of the WSOL benchmark, which MaxBoxAcc follows


@dataclass(frozen=True)
class Agreement:
    """Two networks on the same pictures.

    Attributes:
        pictures: Number of pictures.
        logits: Largest difference.
        same_class: Part of the pictures whose best class is the same.
        same_box: Part of them whose largest boxes of that class have an IoU of 0.9 or more.
        correlation: Pearson correlation of the maps that heatmaps are made of, for the first
            network's best class: the mean over the pictures of which both give that map.
        scores: Accuracy, GT-known localization and MaxBoxAcc of the first and of the second
            network, in [0, 1], by name. Empty without labels; accuracy alone where no picture has
            a box.
    """

    pictures: int
    logits: float
    same_class: float
    same_box: float
    correlation: float
    scores: dict[str, tuple[float, float]]

    def losses(self) -> dict[str, float]:
        """What the second network loses of accuracy and MaxBoxAcc, in percentage points.

        Without labels, of pictures whose best class stays the same.
        """
        losses = {
            name: 100 * (before - after)
            for name, (before, after) in self.scores.items()
            if name in ("accuracy", "MaxBoxAcc")
        }
        return losses or {"the same best class": 100 * (1 - self.same_class)}

    def __str__(self) -> str:
        """One line of figures."""
        changes = "".join(
            f"; {name} {100 * before:.2f}% -> {100 * after:.2f}%"
            for name, (before, after) in self.scores.items()
        )
        return (
            f"{self.pictures} pictures: same best class {100 * self.same_class:.2f}%, same box "
            f"(IoU >= {_SAME_IOU}) {100 * self.same_box:.2f}%, correlation of maps "
            f"{self.correlation:.3f}, logits differ by at most {self.logits:.1e}{changes}"
        )


class _Scores(NamedTuple):
    """The scores of one of the two networks."""

    localization: LocalizationAccuracy
    max_box_acc: MaxBoxAcc


@torch.no_grad()
def measure_agreement(
    net: CAMNet, exported: ExportedNetwork, pictures: Pictures, *, threshold: Threshold
) -> Agreement:
    """Compare a network with its exported form at the network's own preprocessing.

    Args:
        net: In evaluation mode, float32, on the CPU.
        exported: Made of ``net``; localization is measured only if it gives all maps.
        pictures: At most 1,000 of them, evenly spaced.
        threshold: Map threshold of the boxes, in [0, 1), or ``auto``.

    Raises:
        CamtrainValueError: The exported network gives logits or maps that are not finite.
    """
    assert net.preprocessing is not None
    preprocessing = net.preprocessing
    before, after = (_Scores(LocalizationAccuracy(threshold), MaxBoxAcc()) for _ in range(2))
    largest, same_class, same_box = 0.0, 0, 0
    correlations: list[float] = []
    count = 0
    for picture in pictures.sample(_MOST_PICTURES):
        count += 1
        image = picture.image
        images = prepare(image, preprocessing)[None]
        expected, output = net.display_maps(images, top=1), exported.display_maps(images, top=1)
        if not all(torch.isfinite(tensor).all() for tensor in output[:2]):
            raise CamtrainValueError(
                f"The exported network overflows in {_type_name(exported)} (its logits or maps are "
                "not finite); export it with --precision fp32."
            )
        largest = max(largest, float((expected.logits - output.logits).abs().max()))
        is_same = bool(expected.classes == output.classes)
        if is_same:
            same_class += 1
            heats = (_heatmap(maps, preprocessing, image) for maps in (expected, output))
            box, other_box = (boxes_from_heatmap(heat, threshold)[:1] for heat in heats)
            if len(box) and len(other_box):
                same_box += bool(box_iou(box, other_box) >= _SAME_IOU)
            else:
                same_box += len(box) == len(other_box)
        elif exported.top is None:
            output = exported.display_maps(images, classes=expected.classes)
        if is_same or exported.top is None:
            correlations.append(correlation(output.maps[0, 0], expected.maps[0, 0]))
        if isinstance(picture.label, int):
            _update(before, net, images, picture, preprocessing)
            _update(after, exported, images, picture, preprocessing)
    return Agreement(
        count,
        largest,
        same_class / count,
        same_box / count,
        sum(correlations) / max(1, len(correlations)),
        _compute(before, after),
    )


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson correlation of two maps (h, w); of a constant map 1 with another one, else 0.

    Example:
        >>> heat = torch.tensor([[0.0, 1.0, 2.0]])
        >>> [round(correlation(heat, other), 4) for other in (2 * heat + 1, -heat, 0 * heat)]
        [1.0, -1.0, 0.0]
    """
    from_mean = [(each - each.mean()).double().flatten() for each in (first, second)]
    norms = [float(values.norm()) for values in from_mean]
    if not all(norms):
        return float(not any(norms))
    return float(from_mean[0] @ from_mean[1]) / (norms[0] * norms[1])


def _type_name(exported: ExportedNetwork) -> str:
    """The type in which the file computes, in words."""
    return {"fp16": "float16", "int8": "int8"}[exported.options.precision]


def _heatmap(output: CAMOutput, preprocessing: Preprocessing, image: Tensor) -> Tensor:
    """The first heatmap of a network's output for one picture (C, H, W), at its size (H, W)."""
    return picture_heatmaps(output.maps[0], preprocessing, (image.shape[1], image.shape[2]))[0]


def _update(
    scores: _Scores,
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
    boxes = [picture.boxes_xyxy if has_all else picture.boxes_xyxy[:0]]
    size_hw = torch.tensor([heat.shape])
    scores.localization.update([heat], output.logits, label, boxes, size_hw)
    maps = output.maps[0, :1]
    if preprocessing.resize_mode != "squash":  # as evaluation does, on the whole picture
        maps = whole_picture_maps(
            maps, preprocessing, (heat.shape[0], heat.shape[1]), _BENCHMARK_HW
        )
    scores.max_box_acc.update(maps, boxes, size_hw)


def _compute(before: _Scores, after: _Scores) -> dict[str, tuple[float, float]]:
    """The scores of both networks that have counted something, by name."""
    both = (before, after)
    scores: dict[str, tuple[float, float]] = {}
    if not int(before.localization.cls_count):
        return scores
    first, second = (each.localization.compute() for each in both)
    scores["accuracy"] = (float(first["cls_top1"]), float(second["cls_top1"]))
    if int(before.localization.count) and int(after.localization.count):
        scores["GT-known localization"] = (float(first["gt_known"]), float(second["gt_known"]))
        scores["MaxBoxAcc"] = (
            float(before.max_box_acc.compute()),
            float(after.max_box_acc.compute()),
        )
    return scores
