"""Images on their way into a network."""

import pytest
import torch
from torch import Tensor, nn

from camtrain.model.images import run_backbone, to_device


def test_too_little_memory_is_not_taken_for_images_that_are_too_small() -> None:
    def run(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    needs_224 = nn.Sequential(nn.AvgPool2d(200), nn.Flatten())
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        run_backbone(needs_224, run, torch.zeros(1, 3, 32, 32))


def test_a_tensor_that_is_on_its_device_is_not_copied() -> None:
    images = torch.zeros(1, 3, 8, 8)
    assert to_device(images, torch.device("cpu")) is images
    assert to_device(images, torch.device("meta")).is_meta
