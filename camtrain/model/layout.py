"""How a network stores its feature map: where the channels, the rows and the columns are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from camtrain.errors import CamtrainValueError

Order = Literal["nchw", "nhwc", "nlc", "ncl"]

_CHANNEL_AXES: dict[Order, int] = {"nchw": 1, "nhwc": 3, "nlc": 2, "ncl": 1}
# Class, distillation and register tokens stand before the tokens of the patches.
_MOST_PREFIX_TOKENS = 16


class Layout(NamedTuple):
    """How a feature map is stored: as a map, channels first or last, or as a row of tokens.

    Attributes:
        order: The axes; ``l`` is h * w patches in reading order.
        prefix: Tokens before the first patch.
    """

    order: Order = "nchw"
    prefix: int = 0

    def to_map(self, output: object, image_hw: tuple[int, int]) -> Tensor:
        """The output of a network for images of (H, W) as a feature map (B, C, h, w).

        Of several feature maps (a tuple or a list) the last is taken.
        """
        output = last_of(output)
        if self.order == "nchw":
            return output
        if self.order == "nhwc":
            return output.permute(0, 3, 1, 2)
        tokens = output.transpose(1, 2) if self.order == "nlc" else output  # (B, C, L)
        tokens = tokens[:, :, self.prefix :]
        return tokens.reshape(*tokens.shape[:2], *grid_of(tokens.shape[2], image_hw))


def last_of(output: object) -> Tensor:
    """The tensor itself, or the last one of several."""
    while isinstance(output, (tuple, list)):
        output = output[-1]
    assert isinstance(output, Tensor)
    return output


def find_layout(
    shape: Sequence[int],
    image_hw: tuple[int, int],
    *,
    channels: int | None = None,
    prefix: int | None = None,
) -> Layout:
    """The layout of features of this shape: the axes that have the proportions of the image.

    Args:
        shape: Of the features, with the batch.
        image_hw: (H, W) of the images they were computed from.
        channels: Their number where it is known; it decides where both orders are possible.
        prefix: Tokens before the first patch where their number is known.

    Raises:
        CamtrainValueError: No axes of this shape are a map.

    Example:
        >>> find_layout((1, 197, 768), (224, 224))
        Layout(order='nlc', prefix=1)
        >>> find_layout((1, 7, 14, 512), (224, 448))
        Layout(order='nhwc', prefix=0)
    """
    layouts = list(_possible(shape, image_hw, prefix))
    if not layouts and len(shape) == 4:  # a network that changes the proportions
        return Layout()
    if channels is not None and len(layouts) > 1:
        layouts.sort(key=lambda layout: shape[_CHANNEL_AXES[layout.order]] != channels)
    if not layouts:
        raise CamtrainValueError(
            "cut must give a feature map (B, C, h, w), or the tokens of its patches, got the shape "
            f"{tuple(shape)} for images of {image_hw[0]}x{image_hw[1]}; choose an earlier cut."
        )
    return layouts[0]


def map_hw_of(shape: Sequence[int], image_hw: tuple[int, int]) -> tuple[int, int] | None:
    """(h, w) of a result with the proportions of the image; None for any other, and for a pixel.

    Example:
        >>> map_hw_of((1, 197, 768), (224, 224)), map_hw_of((1, 3, 197, 64), (224, 224))
        ((14, 14), None)
    """
    return next((hw for hw in _possible(shape, image_hw).values() if hw != (1, 1)), None)


def grid_of(patches: int, image_hw: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a row of patches that covers an image of (H, W).

    Example:
        >>> grid_of(98, (224, 448))
        (7, 14)
    """
    h = max(1, round(math.sqrt(patches * image_hw[0] / image_hw[1])))
    return h, patches // h


def _possible(
    shape: Sequence[int], image_hw: tuple[int, int], prefix: int | None = None
) -> dict[Layout, tuple[int, int]]:
    """Every layout that makes a map with the proportions of the image of this shape, with (h, w).

    Channels first comes before channels last.
    """
    if len(shape) == 4:
        sides = {Layout("nchw"): (shape[2], shape[3]), Layout("nhwc"): (shape[1], shape[2])}
        return {layout: hw for layout, hw in sides.items() if _is_grid(*hw, image_hw)}
    grids: dict[Layout, tuple[int, int]] = {}
    rows: tuple[tuple[Order, int], ...] = (("nlc", 1), ("ncl", 2))
    for order, axis in rows if len(shape) == 3 else ():
        for tokens_before in range(_MOST_PREFIX_TOKENS + 1) if prefix is None else (prefix,):
            patches = shape[axis] - tokens_before
            h, w = grid_of(patches, image_hw) if patches > 0 else (0, 0)
            if h * w == patches > 0 and _is_grid(h, w, image_hw):
                grids[Layout(order, tokens_before)] = h, w
                break
    return grids


def _is_grid(h: int, w: int, image_hw: tuple[int, int]) -> bool:
    """Whether h x w has the proportions of the image, to less than a pixel of the map."""
    return abs(h * image_hw[1] / image_hw[0] - w) < 1
