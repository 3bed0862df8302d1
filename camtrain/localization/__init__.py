"""From heatmaps to boxes, and the scores of the localization literature as torchmetrics metrics."""

from camtrain.localization.accuracy import LocalizationAccuracy
from camtrain.localization.baseline import CentreBoxAcc, centre_map
from camtrain.localization.boxes import box_iou, box_iou_inclusive, boxes_from_heatmap
from camtrain.localization.dt_box import dt_boxes
from camtrain.localization.ilsvrc import FlatErrors, flat_errors, read_predictions
from camtrain.localization.map_statistics import MapStatistics
from camtrain.localization.max_box_acc import MaxBoxAcc, MaxBoxAccV2
from camtrain.localization.mosaics import MosaicScore, mosaic, mosaic_plan
from camtrain.localization.pointing import EnergyInBox, PointingGame
from camtrain.localization.pxap import PxAP

__all__ = [
    "CentreBoxAcc",
    "EnergyInBox",
    "FlatErrors",
    "LocalizationAccuracy",
    "MapStatistics",
    "MaxBoxAcc",
    "MaxBoxAccV2",
    "MosaicScore",
    "PointingGame",
    "PxAP",
    "box_iou",
    "box_iou_inclusive",
    "boxes_from_heatmap",
    "centre_map",
    "dt_boxes",
    "flat_errors",
    "mosaic",
    "mosaic_plan",
    "read_predictions",
]
