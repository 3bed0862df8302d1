"""Heatmaps, boxes and names drawn on pictures, contact sheets of them, and a chart of scores."""

from camtrain.visualize.charts import threshold_chart
from camtrain.visualize.confusion import confusion_picture
from camtrain.visualize.grid import batch_sheet, gallery, thumbnail, timeline
from camtrain.visualize.overlay import (
    COLORMAPS,
    PREDICTED_BOX,
    TRUE_BOX,
    draw_boxes,
    overlay,
)
from camtrain.visualize.sheets import SheetRow, contact_sheet
from camtrain.visualize.text import Color

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
    "threshold_chart",
    "thumbnail",
    "timeline",
]
