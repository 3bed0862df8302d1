"""Everything that boxes and masks measure on a split, in one place."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from camtrain.data import Batch
from camtrain.header import DEFAULT_THRESHOLD
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

# Cropped or padded maps are moved onto the picture at the resolution of the WSOL benchmark.
_MOVED_SIZE = (224, 224)


class WholeMaps(NamedTuple):
    """Maps of the true classes that cover the whole pictures.

    Attributes:
        pictures: (B, h, w), or where a crop or padding was undone B heatmaps (H, W) at the size of
            their pictures, as the predictor makes them.
        benchmark: (B, h, w), for the protocol of the WSOL benchmark, which resizes them itself.
    """

    pictures: Tensor | list[Tensor]
    benchmark: Tensor


class BoxScores(nn.Module):
    """The localization metrics of a split, and the baselines that belong beside them."""

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.accuracy = LocalizationAccuracy(threshold=DEFAULT_THRESHOLD, num_classes=num_classes)
        # Both are counted in one pass over the maps.
        self.boxes = MetricCollection(
            [MaxBoxAcc(), MaxBoxAccV2()], compute_groups=[["MaxBoxAcc", "MaxBoxAccV2"]]
        )
        self.pointing = PointingGame()
        self.px_ap = PxAP()
        self.centre_box = CentreBoxAcc()
        self.centre_box_v2 = CentreBoxAcc(iou_threshold=IOU_THRESHOLDS)

    def update(self, maps: WholeMaps, logits: Tensor, labels: Tensor, batch: Batch) -> None:
        """Count a batch.

        Args:
            maps: Of each picture's true class.
            logits: (B, K).
            labels: (B,), int64.
            batch: Where boxes and masks are.
        """
        boxes, sizes_hw = batch.boxes_xyxy, batch.sizes_hw
        self.accuracy.update(maps.pictures, logits, labels, boxes, sizes_hw)
        self.boxes.update(maps.benchmark, boxes, sizes_hw)
        self.pointing.update(maps.pictures, boxes, sizes_hw)
        self.px_ap.update(maps.benchmark, batch.masks)
        self.centre_box.update(boxes, sizes_hw)
        self.centre_box_v2.update(boxes, sizes_hw)

    def compute(self, calibrated: float | None = None) -> dict[str, Tensor]:
        """Scores by name, of all processes; none where no picture had boxes or masks.

        Args:
            calibrated: A threshold that was chosen on other pictures, to be scored too.
        """
        scores = {}
        max_box_acc = self._max_box_acc("MaxBoxAcc")
        if self._has_boxes():
            found, pointing = self.accuracy.compute(), self.pointing.compute()
            scores = {f"loc_{name}": found[name] for name in ("gt_known", "top1", "top5")}
            scores["max_box_acc"] = max_box_acc.compute()
            scores["box_acc_fixed"] = max_box_acc.accuracy_at(DEFAULT_THRESHOLD)
            if calibrated is not None:
                scores["box_acc_calibrated"] = max_box_acc.accuracy_at(calibrated)
            scores["max_box_acc_v2"] = self._max_box_acc("MaxBoxAccV2").compute()
            scores["pointing"] = pointing["pointing"]
            scores["centre_box_acc"] = self.centre_box.compute()
            scores["centre_box_acc_v2"] = self.centre_box_v2.compute()
            scores["centre_pointing"] = pointing["centre"]
        if self._has_masks():
            scores["px_ap"] = self.px_ap.compute()
            scores["constant_px_ap"] = self._share_of_object_pixels()
        return scores

    def calibrated_threshold(self) -> float | None:
        """The map threshold to use on other pictures; None where no box was ever right."""
        metric = self._max_box_acc("MaxBoxAcc")
        return metric.calibrated_threshold() if metric.compute() > 0 else None

    def report(self, calibrated: float | None) -> dict[str, Any]:
        """The thresholds, never to be confused, and the accuracy at every one of them.

        Args:
            calibrated: The threshold that was chosen on the validation pictures, if one was.

        Returns:
            Plain values; empty where no picture had boxes.
        """
        if not self._has_boxes():
            return {}
        single, several = self._max_box_acc("MaxBoxAcc"), self._max_box_acc("MaxBoxAccV2")
        oracle = {f"{iou}": single.best_threshold(iou) for iou in IOU_THRESHOLDS}
        curves = {
            name: {f"{iou}": metric.curve(iou)[1].tolist() for iou in IOU_THRESHOLDS}
            for name, metric in (("largest_contour", single), ("all_contours", several))
        }
        with single.sync_context():
            pictures = int(single.count)
        return {
            "pictures_with_boxes": pictures,
            "thresholds": {
                "fixed": DEFAULT_THRESHOLD,
                "calibrated": calibrated,
                "oracle": single.best_threshold(),
                "oracle_by_iou": oracle,
            },
            "curves": {"threshold": single.curve()[0].tolist(), **curves},
        }

    def reset(self) -> None:
        """Forget what was counted."""
        for metric in self.children():
            assert isinstance(metric, (Metric, MetricCollection))
            metric.reset()
        # A process that meets no picture with boxes synchronizes like the others.
        no_maps, none = torch.zeros(0, 1, 1), torch.zeros(0, dtype=torch.int64)
        batch = Batch(no_maps, none, [], torch.zeros(0, 2), none, [], [], [], none, ())
        self.update(WholeMaps(no_maps, no_maps), torch.zeros(0, 1), none, batch)

    def _max_box_acc(self, name: str) -> MaxBoxAcc | MaxBoxAccV2:
        metric = self.boxes[name]
        assert isinstance(metric, (MaxBoxAcc, MaxBoxAccV2))
        return metric

    def _has_boxes(self) -> bool:
        return not bool(self.centre_box.compute().isnan())

    def _share_of_object_pixels(self) -> Tensor:
        """PxAP of a constant map: its precision at every recall."""
        with self.px_ap.sync_context():
            objects, background = self.px_ap.objects.sum(), self.px_ap.background.sum()
            return objects.double() / (objects + background)

    def _has_masks(self) -> bool:
        with self.px_ap.sync_context():
            return bool(self.px_ap.objects.any())


def on_whole_pictures(maps: Tensor, preprocessing: Preprocessing | None, batch: Batch) -> WholeMaps:
    """Class maps (B, h, w) that cover the network's input, as maps that cover the pictures."""
    is_measured = any(map(len, batch.boxes_xyxy)) or any(map(len, batch.masks))
    if preprocessing is None or preprocessing.resize_mode == "squash" or not is_measured:
        return WholeMaps(maps, maps)
    places = list(zip(maps[:, None], batch.sizes_hw.tolist(), strict=True))
    return WholeMaps(
        [picture_heatmaps(one, preprocessing, (h, w))[0] for one, (h, w) in places],
        torch.cat(
            [whole_picture_maps(one, preprocessing, (h, w), _MOVED_SIZE) for one, (h, w) in places]
        ),
    )
