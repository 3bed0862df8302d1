"""The scores of a split that need boxes or masks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from camtrain.data import Batch
from camtrain.localization import (
    CentreBoxAcc,
    LocalizationAccuracy,
    MaxBoxAcc,
    MaxBoxAccV2,
    PointingGame,
    PxAP,
)
from camtrain.localization.max_box_acc import IOU_THRESHOLDS
from camtrain.maps import picture_heatmaps, whole_picture_maps
from camtrain.preprocessing import Preprocessing
from camtrain.thresholds import DEFAULT_THRESHOLD

# Cropped or padded maps are moved onto the picture at the resolution of the WSOL benchmark.
_MOVED_SIZE = (224, 224)


class WholeMaps(NamedTuple):
    """Maps of the true classes that cover whole pictures.

    Attributes:
        pictures: (B, h, w); where a crop or padding was undone, B heatmaps (H, W) of the sizes of
            their pictures, as the predictor returns them.
        benchmark: (B, h, w), for the protocol of the WSOL benchmark, which resizes them itself.
    """

    pictures: Tensor | list[Tensor]
    benchmark: Tensor


class BoxScores(nn.Module):
    """The localization metrics of a split, and the baselines to compare them with."""

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.accuracy = LocalizationAccuracy(threshold=DEFAULT_THRESHOLD, num_classes=num_classes)
        self.boxes = MetricCollection(  # one pass over the maps counts both
            [MaxBoxAcc(), MaxBoxAccV2()], compute_groups=[["MaxBoxAcc", "MaxBoxAccV2"]]
        )
        self.pointing = PointingGame()
        self.px_ap = PxAP()
        self.centre_box = CentreBoxAcc()
        self.centre_box_v2 = CentreBoxAcc(iou_threshold=IOU_THRESHOLDS)

    def update(self, maps: WholeMaps, logits: Tensor, labels: Tensor, batch: Batch) -> None:
        """Count a batch with its maps of the true classes, logits (B, K) and labels (B,) int64."""
        boxes, sizes_hw = batch.boxes_xyxy, batch.sizes_hw
        self.accuracy.update(maps.pictures, logits, labels, boxes, sizes_hw)
        self.boxes.update(maps.benchmark, boxes, sizes_hw)
        self.pointing.update(maps.pictures, boxes, sizes_hw)
        self.px_ap.update(maps.benchmark, batch.masks)
        self.centre_box.update(boxes, sizes_hw)
        self.centre_box_v2.update(boxes, sizes_hw)

    def compute(self, calibrated: float | None = None) -> dict[str, Tensor]:
        """The scores by name, over all processes; empty if no picture had boxes or masks.

        Args:
            calibrated: A threshold that was chosen on other pictures, to be scored too.
        """
        scores = {}
        if self._has_boxes():
            max_box_acc = self._max_box_acc("MaxBoxAcc")
            localization, pointing = self.accuracy.compute(), self.pointing.compute()
            scores = {f"loc_{name}": localization[name] for name in ("gt_known", "top1", "top5")}
            scores["max_box_acc"] = max_box_acc.compute()
            scores["box_acc_fixed"] = max_box_acc.accuracy_at(DEFAULT_THRESHOLD)
            scores["box_acc_auto"] = max_box_acc.accuracy_auto()
            if calibrated is not None:
                scores["box_acc_calibrated"] = max_box_acc.accuracy_at(calibrated)
            scores["max_box_acc_v2"] = self._max_box_acc("MaxBoxAccV2").compute()
            scores["pointing"] = pointing["pointing"]
            scores["centre_box_acc"] = self.centre_box.compute()
            scores["centre_box_acc_v2"] = self.centre_box_v2.compute()
            scores["centre_pointing"] = pointing["centre"]
        with self.px_ap.sync_context():
            objects, background = self.px_ap.objects.sum(), self.px_ap.background.sum()
        if objects > 0:
            scores["px_ap"] = self.px_ap.compute()
            # A constant map has this precision at every recall.
            scores["constant_px_ap"] = objects.double() / (objects + background)
        return scores

    def calibrated_threshold(self) -> float | None:
        """The map threshold to use on other pictures; None if no box is right at any threshold."""
        metric = self._max_box_acc("MaxBoxAcc")
        return metric.calibrated_threshold() if metric.compute() > 0 else None

    def report(self, calibrated: float | None) -> dict[str, Any]:
        """All kinds of thresholds, the accuracy at each, and for what it holds, as plain values.

        Empty if no picture had boxes. ``calibrated`` is the threshold chosen on val pictures. At
        it, or else at 0.2, ``against_centre`` compares the boxes with a fixed one, and
        ``MaxBoxAcc.breakdown`` adds the groups of pictures and the kinds of misses.
        """
        if not self._has_boxes():
            return {}
        single, several = self._max_box_acc("MaxBoxAcc"), self._max_box_acc("MaxBoxAccV2")
        curves = {
            name: {f"{iou}": metric.curve(iou)[1].tolist() for iou in IOU_THRESHOLDS}
            for name, metric in (("largest_contour", single), ("all_contours", several))
        }
        with single.sync_context():
            pictures = int(single.count)
        threshold = DEFAULT_THRESHOLD if calibrated is None else calibrated
        return {
            "pictures_with_boxes": pictures,
            "against_centre": single.against_centre(threshold),
            **single.breakdown(threshold),
            "thresholds": {
                "fixed": DEFAULT_THRESHOLD,
                "calibrated": calibrated,
                "oracle": single.best_threshold(),
                "oracle_by_iou": {f"{iou}": single.best_threshold(iou) for iou in IOU_THRESHOLDS},
            },
            "curves": {"threshold": single.curve()[0].tolist(), **curves},
        }

    def reset(self) -> None:
        """Set all counts to zero."""
        for metric in self.children():
            assert isinstance(metric, (Metric, MetricCollection))
            metric.reset()
        # Counts nothing, so that a process without any boxes synchronizes like the others.
        no_maps, none = torch.zeros(0, 1, 1), torch.zeros(0, dtype=torch.int64)
        batch = Batch(no_maps, none, [], torch.zeros(0, 2), none, [], [], [], none, ())
        self.update(WholeMaps(no_maps, no_maps), torch.zeros(0, 1), none, batch)

    def _max_box_acc(self, name: str) -> MaxBoxAcc | MaxBoxAccV2:
        metric = self.boxes[name]
        assert isinstance(metric, (MaxBoxAcc, MaxBoxAccV2))
        return metric

    def _has_boxes(self) -> bool:
        return not bool(self.centre_box.compute().isnan())


def on_whole_pictures(maps: Tensor, preprocessing: Preprocessing | None, batch: Batch) -> WholeMaps:
    """Maps that cover the whole pictures, made of class maps (B, h, w) of the network's input."""
    is_measured = any(map(len, batch.boxes_xyxy)) or any(map(len, batch.masks))
    if preprocessing is None or preprocessing.resize_mode == "squash" or not is_measured:
        return WholeMaps(maps, maps)
    heatmaps, benchmark = [], []
    for class_map, (height, width) in zip(maps[:, None], batch.sizes_hw.tolist(), strict=True):
        size_hw = (height, width)
        heatmaps.append(picture_heatmaps(class_map, preprocessing, size_hw)[0])
        benchmark.append(whole_picture_maps(class_map, preprocessing, size_hw, _MOVED_SIZE))
    return WholeMaps(heatmaps, torch.cat(benchmark))
