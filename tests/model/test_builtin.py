"""The small built-in trunks: their layers, widths and maps."""

from typing import Any

import pytest
import torch
from torch import nn

from camtrain.model.create import create_model

TRUNKS: list[tuple[str, dict[str, Any], list[tuple[int, int]], tuple[int, int]]] = [
    # name, backbone_args, (outputs, kernel) of each convolution, side of the usual picture and map
    ("digits", {}, [(32, 3), (64, 3), (96, 3), (128, 3)], (64, 16)),
    ("lenet", {}, [(20, 5), (50, 5), (500, 5)], (64, 16)),
    ("lenet", {"width": 0.1}, [(2, 5), (5, 5), (50, 5)], (64, 16)),
    ("mnist", {}, [(16, 3)] * 4 + [(256, 3)], (28, 7)),
    ("mnist", {"width": 0.25}, [(4, 3)] * 4 + [(64, 3)], (28, 7)),
]


@pytest.mark.parametrize(("name", "args", "convs", "sides"), TRUNKS)
def test_layers_and_maps(
    name: str, args: dict[str, Any], convs: list[tuple[int, int]], sides: tuple[int, int]
) -> None:
    net = create_model(f"camtrain/{name}", 10, in_chans=1, neck=(), backbone_args=args).eval()
    layers = [m for m in net.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [(conv.out_channels, conv.kernel_size[0]) for conv in layers] == convs
    side, map_side = sides
    assert net.preprocessing is not None
    assert net.preprocessing.size == (side, side)
    maps = net.class_maps(torch.rand(2, 1, side, side + 8)).maps
    assert maps.shape == (2, 10, map_side, map_side + 2)


def test_the_network_of_the_mnist_notebook_has_its_channels() -> None:
    net = create_model("camtrain/mnist", 10, in_chans=1, neck=())
    assert net.head.weight.shape == (10, 256)
