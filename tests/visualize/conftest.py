"""What the tests of this room share: gray pictures and colours to look for."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

VIRIDIS_0, VIRIDIS_1 = (68, 1, 84), (253, 231, 37)  # the published ends of the colour map
OUTLINE, PAPER = (20, 20, 20), (255, 255, 255)


def gray(height: int, width: int, channels: int = 3, value: int = 100) -> torch.Tensor:
    return torch.full((channels, height, width), value, dtype=torch.uint8)


def has(picture: Image.Image, color: tuple[int, int, int], tolerance: int = 0) -> bool:
    return bool((np.abs(np.asarray(picture).astype(int) - color) <= tolerance).all(-1).any())
