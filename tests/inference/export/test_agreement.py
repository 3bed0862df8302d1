"""What is reported of a network in fewer bits."""

import pytest
import torch

from camtrain.inference.export.agreement import Agreement, correlation


def test_correlation_is_that_of_torch() -> None:
    first, second = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert correlation(first, second) == pytest.approx(float(expected), abs=1e-6)


def test_a_map_that_became_constant_has_no_correlation() -> None:
    flat, slope = torch.full((3, 4), 2.0), torch.arange(12.0).reshape(3, 4)
    assert correlation(flat, slope) == correlation(slope, flat) == 0
    assert correlation(flat, flat + 1) == 1


@pytest.mark.parametrize(
    ("scores", "losses"),
    [
        ({}, {"the same best class": 25.0}),
        ({"accuracy": (0.75, 0.5)}, {"accuracy": 25.0}),
        (
            {"accuracy": (0.5, 0.75), "GT-known localization": (1.0, 0.0), "MaxBoxAcc": (0.5, 0.0)},
            {"accuracy": -25.0, "MaxBoxAcc": 50.0},
        ),
    ],
)
def test_losses_are_percentage_points(
    scores: dict[str, tuple[float, float]], losses: dict[str, float]
) -> None:
    assert Agreement(8, 0.1, 0.75, 1.0, 0.9, scores).losses() == losses
