"""A run and its checkpoint that camtrain 0.1.0 has written are read and continued for ever.

``golden_run`` was written once by ``fit`` with the arguments below, one epoch, and must never be
made again; a later format gets a folder of its own beside it.
"""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import camtrain
from camtrain import cli

GOLDEN = Path(__file__).parent / "golden_run"
LOGITS = [[0.0726018026471138, 0.0944969579577446]]
SECOND_EPOCH = {"val/loss": 0.6907185912132263, "train/loss": 0.6483275890350342}


def test_the_golden_checkpoint_is_loaded() -> None:
    predictor = camtrain.load(GOLDEN / "checkpoints" / "last.ckpt")
    assert predictor.threshold == 0.488
    net = predictor.net
    assert net is not None
    assert net.class_names == ("blue", "red")
    assert net.stages is not None
    assert net.stages.layers == ("trunk.pool2", "trunk.relu3")
    images = torch.sin(torch.arange(3 * 32 * 48) * 0.1).reshape(1, 3, 32, 48)
    with torch.inference_mode():
        torch.testing.assert_close(net(images), torch.tensor(LOGITS), rtol=1e-5, atol=1e-5)
    bundle = camtrain.load(GOLDEN / "model.safetensors").net
    assert bundle is not None
    for name, tensor in net.state_dict().items():
        assert torch.equal(bundle.state_dict()[name], tensor), name


def test_the_golden_run_is_continued(
    fit_arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "run"
    shutil.copytree(GOLDEN, folder)
    checkpoints = folder / "checkpoints"
    shutil.copyfile(checkpoints / "last.ckpt", checkpoints / "best.ckpt")
    arguments = fit_arguments("--model.refine", "affinity", "--ckpt_path", "last")
    assert cli.main(arguments) == 0
    with (GOLDEN / "metrics.csv").open() as before, (folder / "metrics.csv").open() as after:
        [first] = csv.DictReader(before)
        again, second = csv.DictReader(after)
    assert {name: float(again[name]) for name in first} == pytest.approx(
        {name: float(value) for name, value in first.items()}
    )
    for name, value in SECOND_EPOCH.items():
        assert float(second[name]) == pytest.approx(value, abs=1e-3), name
