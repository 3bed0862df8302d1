"""The calibration error against torchmetrics' own, in one stream and in parts."""

import pytest
import torch
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from camtrain.training.evaluate.calibration import CalibrationError
from camtrain.training.evaluate.scores import is_smaller_better
from camtrain.training.watch.report_data import calibration_charts


def test_torchmetrics_gives_the_same_of_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (300,), generator=generator)
    whole, parts = CalibrationError("multiclass"), CalibrationError("multiclass")
    whole.update(logits, labels)
    for rows in torch.randperm(300, generator=generator).split(7):
        parts.update(logits[rows], labels[rows])
    reference = multiclass_calibration_error(logits.softmax(1), labels, 5, n_bins=15)
    assert whole.compute().item() == pytest.approx(reference.item(), abs=1e-6)
    assert whole.compute().item() == pytest.approx(parts.compute().item(), abs=1e-12)


def test_torchmetrics_gives_the_same_of_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (100, 3), generator=generator)
    metric = CalibrationError("multilabel")
    metric.update(logits, labels)
    reference = binary_calibration_error(logits.sigmoid().flatten(), labels.flatten(), n_bins=15)
    assert metric.compute().item() == pytest.approx(reference.item(), abs=1e-6)


def test_a_score_of_1_is_of_the_last_bin_and_nan_of_none() -> None:
    metric = CalibrationError("multiclass")
    assert metric.reliability() == []
    metric.update(torch.tensor([[1e4, 0.0], [torch.nan, 0.0], [1e4, 0.0]]), torch.tensor([0, 0, 1]))
    assert metric.reliability() == [[1.0, 0.5, 2.0]]
    assert metric.compute() == 0.5


def test_the_chart_shows_each_bin_and_the_diagonal() -> None:
    [chart] = calibration_charts([[0.6, 0.5, 2.0], [0.9, 1.0, 3.0]])
    assert [series["points"] for series in chart["series"]] == [
        [[0, 0], [1, 1]],
        [[0.6, 0.5], [0.9, 1.0]],
    ]
    assert calibration_charts([]) == []


def test_the_best_error_is_the_smallest() -> None:
    assert [is_smaller_better(name) for name in ("val/ece", "val/loss", "val/acc1")] == [
        True,
        True,
        False,
    ]
