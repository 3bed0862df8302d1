"""Heatmaps, boxes and names drawn on pictures, contact sheets of them, and a chart of scores."""

from camtrain.visualize.batch import batch_sheet
from camtrain.visualize.charts import threshold_chart
from camtrain.visualize.confusion import confusion_picture
from camtrain.visualize.gallery import gallery, thumbnail
from camtrain.visualize.overlay import (
    COLORMAPS,
    PREDICTED_BOX,
    TRUE_BOX,
    draw_boxes,
    overlay,
)
from camtrain.visualize.sheets import Tiles, WatchedPicture, contact_sheet, panel, tiles
from camtrain.visualize.text import Color
from camtrain.visualize.timeline import timeline

__all__ = [
    "COLORMAPS",
    "PREDICTED_BOX",
    "TRUE_BOX",
    "Color",
    "Tiles",
    "WatchedPicture",
    "batch_sheet",
    "confusion_picture",
    "contact_sheet",
    "draw_boxes",
    "gallery",
    "overlay",
    "panel",
    "threshold_chart",
    "thumbnail",
    "tiles",
    "timeline",
]
