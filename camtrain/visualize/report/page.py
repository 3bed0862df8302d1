"""The page of a training's report: one HTML file with its pictures, its style and its program."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from camtrain.maps import parts_of_range
from camtrain.visualize.overlay import palette, rgb_pixels

if TYPE_CHECKING:
    from jinja2 import Environment

SHOWN_SIDE = 512  # most pixels of the longer side of a picture
MAP_SIDE = 48  # most cells of the longer side of a map

_SCRIPTS = ("elements.js", "chart.js", "heatmap.js", "cards.js", "tables.js", "main.js")
_SMALL = 128  # pixels; pictures up to this size are stored without loss


def report_page(content: Mapping[str, Any]) -> str:
    """The page as HTML that opens from a file, without a network.

    Args:
        content: What ``main.js`` shows, plain values: ``title``, ``state``, ``colormap`` (see
            ``packed_colormap``), ``curves``, ``maps``, ``calibration``, ``localization`` and
            ``faithfulness`` (charts, see ``chart.js``), ``pictures``, ``epochs`` and ``mistakes``
            (see ``cards.js``), ``classes``, ``classes_epoch`` and ``settings``.

    Raises:
        ValueError: A number is not finite; browsers refuse it, so None must stand there.
    """
    page = _environment().get_template("page.html")
    return page.render(title=content["title"], content=content, scripts=_SCRIPTS)


@cache
def _environment() -> Environment:
    """The templates of this folder: values are escaped, also the JSON in a script element."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # when a page is written

    environment = Environment(
        loader=PackageLoader("camtrain.visualize.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def packed_map(class_map: Tensor) -> dict[str, Any]:
    """A class map (h, w) as the page draws it: its raw range, and its values in 256 steps.

    A map of more than 48 cells along a side is averaged down for the page, not for its range.

    Returns:
        ``hw``, ``range`` (minimum, maximum, mean; None where the map is not finite), ``levels``
        (base64 of a byte per cell, row by row; None likewise).

    Example:
        >>> packed_map(torch.tensor([[-1.0, 0.0, 1.0]]))
        {'hw': [1, 3], 'range': [-1.0, 1.0, 0.0], 'levels': 'AID/'}
    """
    values = class_map.detach().cpu().double()
    if not values.isfinite().all():
        return {"hw": list(values.shape), "range": None, "levels": None}
    range_ = [values.min().item(), values.max().item(), values.mean().item()]
    if max(values.shape) > MAP_SIDE:
        factor = MAP_SIDE / max(values.shape)
        rows, columns = (max(1, round(side * factor)) for side in values.shape)
        values = functional.adaptive_avg_pool2d(values[None], (rows, columns))[0]
    low, high = range_[:2]
    levels = (parts_of_range(values, low, high) * 255).round().byte()
    packed = base64.b64encode(levels.numpy().tobytes()).decode()
    return {
        "hw": list(values.shape),
        "range": [float(f"{value:.9g}") for value in range_],
        "levels": packed,
    }


def unpacked_map(packed: Mapping[str, Any]) -> Tensor:
    """The class map (h, w) of a ``packed_map``, to a 256th of its range; zeros if it has no range.

    Example:
        >>> unpacked_map(packed_map(torch.tensor([[-1.0, 0.0, 1.0]])))[0, ::2].tolist()
        [-1.0, 1.0]
    """
    rows, columns = packed["hw"]
    if packed["levels"] is None:
        return torch.zeros(rows, columns)
    low, high, _ = packed["range"]
    levels = np.frombuffer(base64.b64decode(packed["levels"]), np.uint8).reshape(rows, columns)
    return torch.from_numpy(low + levels / 255 * (high - low)).float()


def packed_picture(image: Image.Image | Tensor) -> dict[str, Any]:
    """A picture as the page shows it, at most 512 pixels wide or high.

    Args:
        image: PIL image, or uint8 (C, H, W) with C = 1 or 3.

    Returns:
        ``src`` (a data URL: PNG up to 128 pixels, JPEG above), ``wh`` (its width and height).
    """
    picture = Image.fromarray(rgb_pixels(image))
    kind, options = ("PNG", {}) if max(picture.size) <= _SMALL else ("JPEG", {"quality": 85})
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    packed = base64.b64encode(file.getvalue()).decode()
    return {"src": f"data:image/{kind.lower()};base64,{packed}", "wh": list(picture.size)}


def packed_colormap(name: str) -> dict[str, str]:
    """The 256 colours of a colour map of ``camtrain.visualize.COLORMAPS``."""
    return {"name": name, "colors": base64.b64encode(palette(name).tobytes()).decode()}


def part_of_picture(
    boxes_xyxy: Tensor | Sequence[Sequence[float]], size_hw: tuple[int, int]
) -> list[list[float]]:
    """Boxes (n, 4) in pixels of a picture as parts of its width and height.

    Example:
        >>> part_of_picture([[10, 0, 20, 40]], (40, 80))
        [[0.125, 0.0, 0.25, 1.0]]
    """
    height, width = size_hw
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    parts: list[list[float]] = (boxes / [width, height, width, height]).round(5).tolist()
    return parts
