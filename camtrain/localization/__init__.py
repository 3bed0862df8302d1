"""From heatmaps to boxes, and the scores of the localization literature as torchmetrics metrics.

The names load on first use: boxes alone load no torchmetrics.
"""

from typing import TYPE_CHECKING

from camtrain.lazy import lazy_names

if TYPE_CHECKING:
    from camtrain.localization.accuracy import FlatErrors as FlatErrors
    from camtrain.localization.accuracy import LocalizationAccuracy as LocalizationAccuracy
    from camtrain.localization.accuracy import flat_errors as flat_errors
    from camtrain.localization.accuracy import read_predictions as read_predictions
    from camtrain.localization.boxes import auto_threshold as auto_threshold
    from camtrain.localization.boxes import box_iou as box_iou
    from camtrain.localization.boxes import box_iou_inclusive as box_iou_inclusive
    from camtrain.localization.boxes import boxes_from_heatmap as boxes_from_heatmap
    from camtrain.localization.boxes import dt_boxes as dt_boxes
    from camtrain.localization.centre import CentreBoxAcc as CentreBoxAcc
    from camtrain.localization.centre import centre_map as centre_map
    from camtrain.localization.faithfulness import Faithfulness as Faithfulness
    from camtrain.localization.faithfulness import perturbation_curves as perturbation_curves
    from camtrain.localization.max_box_acc import MaxBoxAcc as MaxBoxAcc
    from camtrain.localization.max_box_acc import MaxBoxAccV2 as MaxBoxAccV2
    from camtrain.localization.mosaics import MosaicScore as MosaicScore
    from camtrain.localization.mosaics import mosaic as mosaic
    from camtrain.localization.mosaics import mosaic_plan as mosaic_plan
    from camtrain.localization.pointing import EnergyInBox as EnergyInBox
    from camtrain.localization.pointing import MapStatistics as MapStatistics
    from camtrain.localization.pointing import PointingGame as PointingGame
    from camtrain.localization.pxap import PxAP as PxAP

_HOMES = {
    "camtrain.localization.accuracy": (
        "FlatErrors LocalizationAccuracy flat_errors read_predictions"
    ),
    "camtrain.localization.boxes": (
        "auto_threshold box_iou box_iou_inclusive boxes_from_heatmap dt_boxes"
    ),
    "camtrain.localization.centre": "CentreBoxAcc centre_map",
    "camtrain.localization.faithfulness": "Faithfulness perturbation_curves",
    "camtrain.localization.max_box_acc": "MaxBoxAcc MaxBoxAccV2",
    "camtrain.localization.mosaics": "MosaicScore mosaic mosaic_plan",
    "camtrain.localization.pointing": "EnergyInBox MapStatistics PointingGame",
    "camtrain.localization.pxap": "PxAP",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _HOMES)
