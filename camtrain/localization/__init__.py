"""From heatmaps to boxes, and the scores of the localization literature as torchmetrics metrics."""

from camtrain.localization.accuracy import CentreBoxAcc, LocalizationAccuracy
from camtrain.localization.boxes import box_iou, box_iou_inclusive, boxes_from_heatmap
from camtrain.localization.max_box_acc import MaxBoxAcc, MaxBoxAccV2
from camtrain.localization.pxap import PxAP

__all__ = [
    "CentreBoxAcc",
    "LocalizationAccuracy",
    "MaxBoxAcc",
    "MaxBoxAccV2",
    "PxAP",
    "box_iou",
    "box_iou_inclusive",
    "boxes_from_heatmap",
]
