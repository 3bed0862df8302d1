"""Heatmaps, boxes and names drawn on pictures, contact sheets of them, and charts of scores."""

from camtrain.visualize.charts import confusion_picture, reliability_picture, threshold_chart
from camtrain.visualize.grid import batch_sheet, gallery, thumbnail, timeline
from camtrain.visualize.overlay import (
    COLORMAPS,
    PREDICTED_BOX,
    TRUE_BOX,
    Color,
    draw_boxes,
    overlay,
)
from camtrain.visualize.sheets import SheetRow, contact_sheet

__all__ = [
    "COLORMAPS",
    "PREDICTED_BOX",
    "TRUE_BOX",
    "Color",
    "SheetRow",
    "batch_sheet",
    "confusion_picture",
    "contact_sheet",
    "draw_boxes",
    "gallery",
    "overlay",
    "reliability_picture",
    "threshold_chart",
    "thumbnail",
    "timeline",
]
