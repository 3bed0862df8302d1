"""A training whose heatmaps are refined: measured, kept, continued and shipped so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import camtrain
from camtrain import cli
from camtrain.inference.bundle import read_network
from camtrain.localization import MaxBoxAcc
from camtrain.training import CAMDataModule, CAMModule
from camtrain.training.cache import FeatureDataset
from tests.training.conftest import quiet_trainer, small_module


def scores(module: CAMModule, root: Path, **data: Any) -> dict[str, float]:
    """Of the validation of a training of four epochs."""
    torch.manual_seed(0)
    trainer = quiet_trainer(max_epochs=4)
    trainer.fit(module, CAMDataModule(root=root, size=32, batch_size=8, workers=0, **data))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_what_is_measured_are_the_refined_maps(photographs: Path) -> None:
    torch.manual_seed(0)
    module = small_module(refine="affinity", num_classes=2)
    data = CAMDataModule(root=photographs, size=32, batch_size=8, workers=0)
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(module, data)
    [said] = trainer.validate(module, data, verbose=False)
    metric, net = MaxBoxAcc(), module.net.eval()
    for batch in data.val_dataloader():
        with torch.no_grad():
            output = net.refined_maps(batch.images, classes=batch.labels)
        metric.update(output.refined_maps[:, 0], batch.boxes_xyxy, batch.sizes_hw)
    assert said["val/max_box_acc"] == pytest.approx(float(metric.compute()))
    assert module.map_threshold == metric.calibrated_threshold()


@pytest.mark.nightly
def test_kept_features_give_the_same_as_pictures(photographs: Path) -> None:
    found = []
    for cached in (True, False):
        torch.manual_seed(0)
        module = small_module(refine="affinity", freeze_backbone=True, neck=(4,))
        found.append(scores(module, photographs, augment="flip", cache_features=cached))
        dataset = module.trainer.train_dataloader.dataset
        assert isinstance(dataset, FeatureDataset) == cached
    for name in ("val/loss", "val/acc1", "val/max_box_acc", "val/cam_energy_in_box"):
        assert found[0][name] == pytest.approx(found[1][name], abs=0.02), name


def test_training_itself_does_not_change(photographs: Path) -> None:
    nets = []
    for refine in ("none", "affinity"):
        torch.manual_seed(0)
        module = small_module(refine=refine)
        scores(module, photographs)
        nets.append(module.net.state_dict())
    assert all(torch.equal(nets[1][name], tensor) for name, tensor in nets[0].items())


def test_a_run_ships_what_it_measured(
    fit_arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    layers = ("--model.refine", "affinity", "--model.refine_layers", '["trunk.relu3"]')
    assert cli.main(fit_arguments(*layers)) == 0
    folder = tmp_path / "runs" / "run"
    predictor = camtrain.load(folder / "model.safetensors")
    assert predictor.net is not None
    assert predictor.net.stages is not None
    assert predictor.net.stages.layers == ("trunk.relu3",)
    bundle = read_network(folder / "checkpoints" / "last.ckpt")
    assert bundle.net.refine == "affinity"
    again = fit_arguments(*layers, "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert cli.main(again) == 0


def test_a_run_is_not_continued_with_other_maps(
    fit_arguments: Callable[..., list[str]],
    fitted: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fitted()
    more = ("--model.refine", "affinity", "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert cli.main(fit_arguments(*more)) == 2
    assert "model.refine was 'none', got 'affinity'" in capsys.readouterr().err


@pytest.mark.parametrize("solver", ["logistic", "svm"])
def test_a_solved_head_may_be_refined(solver: str, photographs: Path) -> None:
    module = small_module(refine="affinity", freeze_backbone=True, head_solver=solver)
    found = scores(module, photographs, augment="none")
    assert "val/max_box_acc" in found


@pytest.mark.nightly
def test_a_checkpoint_says_what_is_measured(fitted: Callable[..., Path], tmp_path: Path) -> None:
    fitted("--model.refine", "affinity")
    checkpoint = torch.load(tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt")
    other = small_module()
    other.on_load_checkpoint(checkpoint)
    assert other.net.refine == "affinity"
    assert other.map_threshold == checkpoint["camtrain"]["map_threshold"]
