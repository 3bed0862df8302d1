"""The report of a training, as one page for a browser."""

from camtrain.visualize.report.page import (
    packed_colormap,
    packed_map,
    packed_picture,
    part_of_picture,
    report_page,
    unpacked_map,
)

__all__ = [
    "packed_colormap",
    "packed_map",
    "packed_picture",
    "part_of_picture",
    "report_page",
    "unpacked_map",
]
