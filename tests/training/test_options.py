"""Every option changes the training, alone and with two processes that stay in step."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.options import OPTIONS, SPEED, state_hash, trained

ROOT = Path(__file__).parents[2]
# A few of a second each; what is exact about the others is tested elsewhere, fast too.
FAST = {
    *("backbone_lr_ratio", "timm's optimizer", "step", "label_smoothing", "balanced", "mixup"),
    *("cutmix", "ema_decay", "accumulation", "clipping", "early stopping", "fast_dev_run"),
}


@pytest.fixture(scope="module")
def without() -> str:
    """The weights after a training without any option."""
    module, _ = trained({}, {})
    return state_hash(module)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "option",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS],
)
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


@pytest.mark.slow
def test_compiling_changes_neither_names_nor_results() -> None:
    torch._dynamo.utils.counters.clear()
    compiled, _ = trained({"compile": True}, {})
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    plain, _ = trained({}, {})
    states = compiled.state_dict(), plain.state_dict()
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=2e-3, rtol=2e-2)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes made of every option, trained one after another."""
    out = tmp_path_factory.mktemp("two") / "results.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "29617", "-m", "tests.training.options", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("option", [*OPTIONS, *SPEED])
def test_an_option_works_in_two_processes(option: str, by_two: dict[str, Any]) -> None:
    one, other = by_two[option]
    assert "error" not in one, one["error"]
    assert one == other
    if option in OPTIONS:
        assert one["hash"] != by_two["nothing"][0]["hash"]
