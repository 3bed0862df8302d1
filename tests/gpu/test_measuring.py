"""Metrics on a GPU equal those of the CPU, given the same maps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from camtrain.localization import (
    EnergyInBox,
    LocalizationAccuracy,
    MapStatistics,
    MaxBoxAcc,
    MaxBoxAccV2,
    PointingGame,
    PxAP,
)
from camtrain.training.evaluate.calibration import CalibrationError
from camtrain.training.evaluate.evaluator import EpochMean
from camtrain.training.evaluate.scores import MeanAveragePrecision
from tests.gpu.conftest import DEVICE

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

GENERATOR = torch.Generator().manual_seed(0)
MAPS = torch.randn(12, 9, 14, generator=GENERATOR)
LOGITS = torch.randn(12, 8, generator=GENERATOR)
LABELS = torch.randint(8, (12,), generator=GENERATOR)
MANY = (torch.rand(12, 8, generator=GENERATOR) > 0.6).float()
CORNERS = torch.randint(0, 60, (12, 2, 2), generator=GENERATOR)
BOXES = [torch.cat((corners, corners + 50), dim=1) for corners in CORNERS]
SIZES = torch.tensor([[110, 140]] * 12)
MASKS = [(torch.rand(110, 140, generator=GENERATOR) > 0.5).byte() for _ in range(12)]
TARGET = (MAPS, BOXES, SIZES)

CASES = {
    "MaxBoxAcc": (MaxBoxAcc(), TARGET),
    "MaxBoxAccV2": (MaxBoxAccV2(), TARGET),
    "PointingGame": (PointingGame(), TARGET),
    "EnergyInBox": (EnergyInBox(), TARGET),
    "LocalizationAccuracy": (
        LocalizationAccuracy(num_classes=8),
        (MAPS, LOGITS, LABELS, BOXES, SIZES),
    ),
    "PxAP": (PxAP(), (MAPS, MASKS)),
    "MapStatistics": (MapStatistics(threshold=0.2), (MAPS, BOXES, (110, 140))),
    "CalibrationError": (CalibrationError("multiclass"), (LOGITS, LABELS)),
    "MeanAveragePrecision": (MeanAveragePrecision(8), (LOGITS, MANY)),
    "EpochMean": (EpochMean(), (LOGITS.mean(), 12)),
}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_metrics_equal_those_of_the_cpu(name: str, deterministic: bool) -> None:
    metric, arguments = CASES[name]
    on_cpu, on_device = copy.deepcopy(metric), copy.deepcopy(metric).to(DEVICE)
    moved = [value.to(DEVICE) if isinstance(value, Tensor) else value for value in arguments]
    torch.use_deterministic_algorithms(deterministic)
    try:
        for _ in range(2):
            on_cpu.update(*arguments)
            on_device.update(*moved)
        expected, values = as_scores(on_cpu.compute()), as_scores(on_device.compute())
    finally:
        torch.use_deterministic_algorithms(False)
    assert values == pytest.approx(expected, abs=1e-12, rel=0)


def as_scores(scores: Tensor | dict[str, Tensor]) -> dict[str, float]:
    if isinstance(scores, Tensor):
        return {"": scores.item()}
    return {name: value.item() for name, value in scores.items()}
