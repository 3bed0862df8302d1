"""A training with a foreground head: learned, cached, measured, shipped, continued."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import camtrain
from camtrain import cli
from camtrain.errors import CamtrainValueError
from camtrain.inference.bundle import read_network, write_bundle
from camtrain.training import CAMDataModule, CAMModule
from camtrain.training.cache import FeatureDataset
from tests.training.conftest import quiet_trainer, small_module

FOREGROUND = ("--model.foreground", "true", "--model.refine", "affinity")


def fitted_module(root: Path, *, epochs: int = 2, **settings: Any) -> CAMModule:
    """After a training on a folder of photographs."""
    data_settings = {
        name: settings.pop(name) for name in ("augment", "cache_features") if name in settings
    }
    torch.manual_seed(0)
    module = small_module(foreground=True, **settings)
    data = CAMDataModule(root=root, size=32, batch_size=8, workers=0, **data_settings)
    quiet_trainer(max_epochs=epochs).fit(module, data)
    return module


def test_it_learns_end_to_end_and_from_kept_features_alike(photographs: Path) -> None:
    modules = [
        fitted_module(
            photographs, freeze_backbone=True, neck=(4,), augment="flip", cache_features=c
        )
        for c in (True, False)
    ]
    kept, pictures = (module.net.state_dict() for module in modules)
    assert isinstance(modules[0].trainer.train_dataloader.dataset, FeatureDataset)
    before = small_module(foreground=True, neck=(4,)).net.state_dict()
    for name in ("foreground.conv.weight", "foreground.norm.running_mean", "head.weight"):
        assert not torch.equal(kept[name], before[name])
        torch.testing.assert_close(kept[name], pictures[name], atol=0.02, rtol=0)
    scores = [float(module.trainer.callback_metrics["val/max_box_acc"]) for module in modules]
    assert scores[0] == pytest.approx(scores[1], abs=0.2)
    whole = fitted_module(photographs, epochs=1).net.state_dict()
    assert not torch.equal(
        whole["backbone.trunk.conv1.weight"], before["backbone.trunk.conv1.weight"]
    )


def test_alone_it_leaves_everything_else_as_it_is(photographs: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = small_module(neck=(4,))
    data = CAMDataModule(root=photographs, size=32, batch_size=8, workers=0)
    quiet_trainer(max_epochs=1).fit(first, data)
    file = tmp_path / "a.safetensors"
    write_bundle(file, first.net)
    settings = {"weights": file, "neck": (4,), "freeze_backbone": True, "freeze_head": True}
    module = fitted_module(photographs, augment="flip", **settings)
    before, after = first.net.state_dict(), module.net.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert module.net.foreground is not None
    assert int(module.net.foreground.norm.num_batches_tracked) > 0
    from camtrain.training.run.checks import default_monitor

    assert default_monitor(module) == "val/loss"
    with pytest.raises(CamtrainValueError, match=r"freeze_head keeps the trained head of .*zebra"):
        small_module(foreground=True, **settings, class_names=["zebra", "yak"])


def test_a_network_that_is_trained_already_learns_it_in_a_script(photographs: Path) -> None:
    net = camtrain.create_model("camtrain/digits", 2, neck=(), backbone_args={"width": 4})
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    settings = {"foreground": True, "freeze_backbone": True, "freeze_head": True}
    module = CAMModule(net, **settings)
    data = CAMDataModule(root=photographs, size=32, batch_size=8, workers=0)
    quiet_trainer(max_epochs=1).fit(module, data)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in expected.items())
    assert net.foreground is not None
    assert int(net.foreground.norm.num_batches_tracked) > 0


def test_multi_label_learns_it(photographs: Path) -> None:
    module = fitted_module(photographs, epochs=1, task="multilabel")
    assert module.net.foreground is not None
    assert int(module.net.foreground.norm.num_batches_tracked) > 0


def test_a_run_ships_it_and_is_continued_bit_for_bit(
    fit_arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert cli.main(fit_arguments(*FOREGROUND, "--model.schedule", "constant")) == 0
    folder = tmp_path / "runs" / "run"
    whole = read_network(folder / "checkpoints" / "last.ckpt")
    assert whole.description.foreground
    assert whole.description.refine == "affinity"
    predictor = camtrain.load(folder)
    assert predictor.net is not None
    assert predictor.net.foreground is not None
    shorter = fit_arguments(*FOREGROUND, "--model.schedule", "constant", "--name", "two")
    assert cli.main([*shorter, "--trainer.max_epochs", "1"]) == 0
    assert cli.main([*shorter, "--ckpt_path", "last"]) == 0
    resumed = read_network(tmp_path / "runs" / "two" / "checkpoints" / "last.ckpt").net.state_dict()
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.nightly
def test_a_trained_run_is_measured_with_other_maps(
    fitted: Callable[..., Path], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fitted(*FOREGROUND, "--model.refine_layers", '["trunk.relu2"]')
    verb = ["validate", "--ckpt_path", str(folder), "--data.root", str(photographs)]
    assert cli.main([*verb, "--model.refine", "none"]) == 0
    assert list(folder.glob("val-refine=none*"))
    assert cli.main(["validate", "--ckpt_path", str(folder / "model.safetensors"), *verb[3:]]) == 0
    capsys.readouterr()
    for late in ("--model.foreground=false", '--model.refine_layers=["trunk.relu3"]'):
        assert cli.main([*verb, late]) == 2
        assert "comes too late for" in capsys.readouterr().err
