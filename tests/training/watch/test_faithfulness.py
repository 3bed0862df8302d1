"""Faithfulness at test: what is compared, where it goes, and who asks for it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from camtrain.errors import CamtrainValueError
from camtrain.localization import Faithfulness
from camtrain.model.camnet import CAMNet
from camtrain.training import CAMDataModule, CAMLogger
from camtrain.training.cli.main import main
from camtrain.training.watch.faithfulness import curves_of, kinds_of
from tests.training.conftest import quiet_trainer, small_module
from tests.training.watch.test_report import content_of


def test_the_curves_of_a_network_whose_map_is_its_picture() -> None:
    net = CAMNet(nn.Identity(), nn.Linear(1, 1), task="multilabel")
    nn.init.ones_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    image = torch.arange(20.0).reshape(1, 4, 5)
    curves = curves_of(net, image, seed=0)
    assert kinds_of(net) == ["shown", "centre", "random"]
    losses = torch.cumsum(torch.cat([torch.zeros(1), 9.5 - torch.arange(20.0)]), 0)
    deletion = ((190 - losses) / 20).sigmoid()  # the logit is the mean of the pixels
    assert curves[0, 0, 0].tolist() == pytest.approx(deletion.tolist())
    assert torch.equal(curves, curves_of(net, image, seed=0))
    assert not torch.equal(curves[2], curves_of(net, image, seed=1)[2])
    metric = Faithfulness(kinds_of(net))
    metric.update(curves)
    assert metric.report()["srg"]["shown"] > metric.report()["srg"]["centre"]


def test_a_run_ends_with_it_in_files_and_report(fitted: Callable[..., Path]) -> None:
    run = fitted("--model.refine", "affinity")
    written = json.loads((run / "test" / "localization.json").read_text())
    kinds = ["shown", "plain", "centre", "random"]
    assert list(written["faithfulness"]["srg"]) == kinds
    assert written["faithfulness"]["pictures"] == 2
    scores = written["scores"]
    assert scores["srg"] == pytest.approx(scores["insertion"] - scores["deletion"], abs=1e-6)
    assert scores["srg_plain"] == pytest.approx(written["faithfulness"]["srg"]["plain"], abs=1e-6)
    charts = content_of(run / "report.html")["faithfulness"]
    assert [chart["title"].partition(":")[0] for chart in charts] == ["deletion", "insertion"]
    for chart in charts:
        assert [series["name"] for series in chart["series"]] == kinds
        assert [len(series["points"]) for series in chart["series"]] == [21] * 4


def test_zero_measures_nothing_and_less_is_refused(
    fitted: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = fitted()
    quiet = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
    main(["test", "--ckpt_path", str(run), "--cams.faithfulness", "0", *quiet])
    assert "test/acc1" in capsys.readouterr().out
    [folder] = {path.parent for path in run.glob("test*0/localization.json")}
    assert "faithfulness" not in json.loads((folder / "localization.json").read_text())
    assert "faithfulness" in json.loads((run / "test" / "localization.json").read_text())
    with pytest.raises(CamtrainValueError, match="faithfulness must be at least 0, got -1"):
        CAMLogger(faithfulness=-1)


def test_a_part_of_the_split_and_a_trainer_of_ones_own(photographs: Path) -> None:
    data = CAMDataModule(root=photographs, size=32, batch_size=4, workers=0)
    module = small_module(num_classes=2)
    trainer = quiet_trainer(callbacks=[CAMLogger(faithfulness=3)])
    trainer.test(module, data, verbose=False)
    assert module.reports["test"]["faithfulness"]["pictures"] == 3
    first = trainer.callback_metrics["test/srg"]
    data = CAMDataModule(root=photographs, size=32, batch_size=1, workers=0)
    trainer.test(module, data, verbose=False)
    assert trainer.callback_metrics["test/srg"] == first  # whatever the batch size
    trainer = quiet_trainer(callbacks=[CAMLogger(faithfulness=3)], limit_test_batches=1)
    trainer.test(module, data, verbose=False)
    assert "faithfulness" not in module.reports["test"]


def test_without_a_gpu_it_is_measured_where_it_is_asked_for(
    fitted: Callable[..., Path], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before: 64 pictures by default, 90 minutes with a ResNet-50 on two cores."""
    module = small_module(num_classes=2)
    data = CAMDataModule(root=photographs, size=32, batch_size=4, workers=0)
    quiet_trainer(callbacks=[CAMLogger()]).test(module, data, verbose=False)
    assert "faithfulness" not in module.reports["test"]

    run, quiet = fitted(), ("--trainer.accelerator", "cpu", "--data.workers", "1")
    before = json.loads((run / "test" / "localization.json").read_text())["scores"]
    main(["test", "--ckpt_path", str(run), *quiet])
    assert not list(run.glob("test-faithfulness*"))  # that of the run is the default
    assert json.loads((run / "test" / "localization.json").read_text())["scores"] == before
    assert "test/srg" in capsys.readouterr().out
