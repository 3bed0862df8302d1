"""Sheets of a batch."""

import numpy as np
import pytest
import torch

from camtrain.errors import CamtrainValueError
from camtrain.visualize import batch_sheet


@pytest.mark.parametrize(("count", "shape"), [(1, (3, 20, 30)), (6, (1, 64, 48)), (25, (3, 8, 16))])
def test_every_picture_has_its_place(count: int, shape: tuple[int, int, int]) -> None:
    images = torch.full((count, *shape), 90, dtype=torch.uint8)
    none = torch.zeros(0, 4)
    sheet = batch_sheet(images, [none] * count, ["cat"] * count, title="batch")
    gray = (np.asarray(sheet) == 90).all(axis=2)
    tile = (1480 - 6 * 12) // 5
    height, width = (round(side * tile / max(shape[1:])) for side in shape[1:])
    assert sheet.width == 1480
    assert abs(gray.sum() - count * height * width) < 0.01 * gray.sum()


def test_a_box_is_drawn_where_it_is() -> None:
    images = torch.full((1, 3, 40, 80), 90, dtype=torch.uint8)
    box = torch.tensor([[20.0, 10.0, 60.0, 30.0]])
    plain, boxed = (
        np.asarray(batch_sheet(images, [boxes], ["cat"], title="batch")).astype(int)
        for boxes in (torch.zeros(0, 4), box)
    )
    ys, xs = np.nonzero((plain != boxed).any(axis=2))
    scale = ((1480 - 72) // 5) / 80
    found = np.array([xs.min() - 12, ys.min() - 48, xs.max() + 1 - 12, ys.max() + 1 - 48])
    assert np.abs(found - box[0].numpy() * scale).max() <= 3


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_a_name_for_each_is_needed(names: list[str]) -> None:
    with pytest.raises(CamtrainValueError, match="boxes and a name for each"):
        batch_sheet(torch.zeros(1, 3, 8, 8).byte(), [torch.zeros(0, 4)], names, title="")
