"""What the tests of this room share: real weights, and random networks whose maps say something."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """The folder of pretrained weights beside the repository."""
    path = Path(__file__).parents[3] / "shared" / "weights"
    if not path.is_dir():
        pytest.skip(f"the shared weights are not here: {path}")
    return path


@pytest.fixture(scope="session")
def enliven() -> Callable[[nn.Module], nn.Module]:
    """Give BatchNorm layers random statistics, so that they count; returns the network in eval."""

    def make(network: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    for tensor in (module.bias, module.running_mean):
                        tensor.normal_(0, 0.2, generator=generator)
                    for tensor in (module.weight, module.running_var):
                        tensor.uniform_(0.5, 1.5, generator=generator)
        return network.eval()

    return make
