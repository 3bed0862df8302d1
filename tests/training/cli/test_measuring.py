"""What validate and test measure: networks with their own settings, and with others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from camtrain.cli import main
from camtrain.training import CAMDataModule
from camtrain.training.module import CAMModule
from tests.conftest import at_night
from tests.training.conftest import quiet_trainer

CPU = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "localization.json").read_text())
    return results


def test_refined_maps_are_measured_beside_the_run_s_own(
    fitted: Callable[..., Path], photographs: Path
) -> None:
    run = fitted()
    best, before = run / "checkpoints" / "best.ckpt", results_of(run / "test")
    assert before["thresholds"]["calibrated"] is not None
    assert main(["test", "--ckpt_path", str(best), "--model.refine", "affinity", *CPU]) == 0
    assert results_of(run / "test") == before
    refined = results_of(run / "test-refine=affinity")
    assert refined["changes"] == {"refine": "affinity"}
    assert refined["thresholds"]["calibrated"] is None  # it was chosen on class maps

    module = CAMModule.load_from_checkpoint(best, map_location="cpu")
    module.net.set_refine("affinity")
    data = CAMDataModule(root=photographs, size=32, workers=0, mean=[0.5] * 3, std=[0.5] * 3)
    [scores] = quiet_trainer().test(module, data, verbose=False)
    for name in ("loss", "loc_gt_known", "max_box_acc", "cam_area"):
        assert refined["scores"][name] == pytest.approx(scores[f"test/{name}"], abs=1e-6), name
    assert refined["scores"]["cam_area"] != before["scores"]["cam_area"]


CHANGES = {
    "pool": (["--model.pool", "max"], "test-pool=max"),
    "stride": (["--model.stride", "2"], "test-stride=2"),
    "size": (["--data.size", "[40, 48]"], "test-size=40x48"),
    "part": (["--trainer.limit_test_batches", "0.5"], "test-limit_test_batches=0.5"),
    "two": (["--data.size", "40", "--model.refine", "affinity"], "test-refine=affinity-size=40"),
}


@pytest.mark.parametrize("change", at_night(CHANGES, "part", "two"))
def test_each_setting_has_a_folder_of_its_own(change: str, fitted: Callable[..., Path]) -> None:
    run = fitted("--data.batch_size", "4")
    own, folders = results_of(run / "test"), set(run.iterdir())
    more, name = CHANGES[change]
    assert main(["test", "--ckpt_path", str(run), *more, *CPU]) == 0
    assert {*run.iterdir()} - folders == {run / name}
    assert results_of(run / name)["scores"] != own["scores"]
    assert results_of(run / "test") == own


@pytest.mark.nightly
def test_a_refined_network_is_measured_without_refinement(
    fitted: Callable[..., Path],
) -> None:
    run = fitted("--model.refine", "affinity", "--model.refine_layers", '["trunk.relu3"]')
    more = ("--model.refine", "none", *CPU)
    assert main(["test", "--ckpt_path", str(run), *more]) == 0
    assert results_of(run / "test-refine=none")["changes"] == {"refine": "none"}


def test_a_folder_and_a_bundle_are_measured_as_the_best_checkpoint_is(
    fitted: Callable[..., Path], photographs: Path, tmp_path: Path
) -> None:
    run = fitted("--cams.faithfulness", "0")  # a bundle does not know it
    scores = results_of(run / "test")["scores"]
    shutil.rmtree(run / "test")
    assert main(["test", "--ckpt_path", str(run), *CPU, "--data.workers", "1"]) == 0
    assert results_of(run / "test")["scores"] == scores
    bundle = shutil.copy(run / "model.safetensors", tmp_path / "red or blue.safetensors")
    command = ["test", "--ckpt_path", str(bundle), "--data.root", str(photographs)]
    assert main([*command, *CPU]) == 0
    folder = tmp_path / "test-ckpt_path=red_or_blue-root=photographs"
    assert results_of(folder)["scores"] == pytest.approx(scores, abs=1e-6)


FOREIGN = {
    "callbacks": [[], {1: {}}, {"CAMLogger": [1]}, {"CAMLogger": {"faithfulness": {"a": 1}}}],
    "hyper_parameters": [None, [1], {"neck": float("nan")}],
    "datamodule_hyper_parameters": [3, {"split_file": ["x"]}, {"root": {}}],
}


def test_a_foreign_checkpoint_is_one_sentence(
    fitted: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    best = fitted() / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    for name, values in FOREIGN.items():
        for value in values:
            torch.save({**checkpoint, name: value}, best)
            try:
                status = main(["test", "--ckpt_path", str(best), *CPU])
            except SystemExit as error:  # the parser
                status = error.code
            assert status == 2, (name, value)
            assert len(capsys.readouterr().err) < 1000
