"""The report of a training, as one page for a browser."""

from camtrain.visualize.report.page import (
    PackedJson,
    packed_colormap,
    packed_map,
    packed_picture,
    part_of_picture,
    report_page,
    unpacked_map,
)

__all__ = [
    "PackedJson",
    "packed_colormap",
    "packed_map",
    "packed_picture",
    "part_of_picture",
    "report_page",
    "unpacked_map",
]
