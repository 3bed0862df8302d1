"""What the tests of this room share: a stream of random pictures."""

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def batch_of() -> Callable[[list[int]], dict[str, Any]]:
    """Arguments of ``update`` for some of 24 pictures.

    They have H != W and 0 to 3 boxes each; some of the maps are degenerate.
    """
    generator = torch.Generator().manual_seed(7)
    maps = torch.randn(24, 5, 8, generator=generator)
    maps[3], maps[7], maps[11] = torch.nan, 0.3, maps[11] - 100
    logits = torch.randn(24, 9, generator=generator)
    labels = torch.randint(9, (24,), generator=generator)
    labels[::3] = logits[::3].argmax(dim=1)
    sizes_hw = torch.randint(30, 90, (24, 2), generator=generator)
    boxes_xyxy = []
    for index, (height, width) in enumerate(sizes_hw.tolist()):
        mins = torch.rand(index % 4, 2, generator=generator) * 0.5
        sides = 0.2 + torch.rand(index % 4, 2, generator=generator) * 0.3
        edges = torch.cat((mins, mins + sides), dim=1)
        boxes_xyxy.append((edges * torch.tensor([width, height, width, height])).round().long())

    def batch(indices: list[int]) -> dict[str, Any]:
        return {
            "maps": maps[indices],
            "logits": logits[indices],
            "labels": labels[indices],
            "boxes_xyxy": [boxes_xyxy[index] for index in indices],
            "sizes_hw": sizes_hw[indices],
        }

    return batch
