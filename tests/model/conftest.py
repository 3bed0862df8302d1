"""What the tests of this room share: random networks whose maps say something."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from camtrain.files import write_text
from camtrain.model.catalogue import Entry, catalogue


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small to share: waiting threads cost more than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def entry_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Entry]:
    """What a network becomes, by its name; looked at once for all processes of pytest."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def entry(name: str) -> Entry:
        cache = folder / "catalogue" / f"{name.replace('/', '_')}.json"
        if not cache.is_file():  # without it, what is shipped would be taken
            cache.parent.mkdir(exist_ok=True)
            write_text(cache, '{"entries": []}')
        [found] = catalogue([name], cache)
        return found

    return entry


@pytest.fixture(scope="session")
def enliven() -> Callable[[nn.Module], nn.Module]:
    """Random weights through which a picture is seen to the end, in evaluation mode.

    The usual ones let it fade, and fresh BatchNorm layers change nothing.
    """

    def make(network: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, generator=generator)
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    for tensor in (module.bias, module.running_mean):
                        tensor.normal_(0, 0.2, generator=generator)
                    for tensor in (module.weight, module.running_var):
                        tensor.uniform_(0.5, 1.5, generator=generator)
                elif "Norm" in type(module).__name__:  # gain and bias
                    for name, tensor in module.named_parameters(recurse=False):
                        low, high = (0.5, 1.5) if name == "weight" else (-0.2, 0.2)
                        tensor.uniform_(low, high, generator=generator)
        return network.eval()

    return make
