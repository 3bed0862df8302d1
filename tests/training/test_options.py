"""Every option changes the training, alone and with two processes that stay in step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.by_two import run_by_two
from tests.conftest import everyday
from tests.training.options import OPTIONS, SPEED, state_hash, train_by_two, trained

# A few of a second each; what is exact about the others is tested elsewhere, fast too.
FAST = ("mixup", "clipping")


@pytest.fixture(scope="module")
def without() -> str:
    """The weights after a training without any option."""
    module, _ = trained({}, {})
    return state_hash(module)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("option", everyday(OPTIONS, *FAST))
def test_an_option_changes_the_training(option: str, without: str) -> None:
    module, _ = trained(*OPTIONS[option])
    assert all(torch.isfinite(p).all() for p in module.net.parameters())
    assert state_hash(module) != without


def test_without_an_option_nothing_is_random(without: str) -> None:
    assert state_hash(trained({}, {})[0]) == without


def test_channels_last_is_a_memory_format() -> None:
    for channels_last in (True, False):
        module, _ = trained({"channels_last": channels_last}, {"max_epochs": 1})
        weight = module.net.backbone.trunk.conv2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert weight.is_contiguous() != channels_last


@pytest.mark.nightly
def test_compiling_changes_neither_names_nor_results() -> None:
    torch._dynamo.utils.counters.clear()
    compiled, _ = trained({"compile": True}, {})
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    plain, _ = trained({}, {})
    states = compiled.state_dict(), plain.state_dict()
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=2e-3, rtol=2e-2)


def results_of(option: str, folder: Path) -> list[dict[str, Any]]:
    """What each of two processes made of an option."""
    run_by_two(train_by_two, option, folder)
    return [json.loads((folder / f"{option}{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="session")
def without_by_two(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights after a training of two processes without any option."""
    [result, _] = results_of("nothing", tmp_path_factory.mktemp("two"))
    return str(result["hash"])


@pytest.mark.nightly
@pytest.mark.parametrize("option", [*OPTIONS, *SPEED])
def test_an_option_works_in_two_processes(option: str, without_by_two: str, tmp_path: Path) -> None:
    one, other = results_of(option, tmp_path)
    assert one == other
    if option in OPTIONS:
        assert one["hash"] != without_by_two
