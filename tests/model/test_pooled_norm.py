"""The norm of the average, moved before the average."""

import pytest
import torch
from torch import nn

from camtrain.model.pooled_norm import PooledNorm, normalized


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        ("layer", nn.LayerNorm(6, eps=1e-3, elementwise_affine=False)),
        ("rms", nn.RMSNorm(6, eps=1e-3, elementwise_affine=False)),
    ],
)
def test_the_average_of_what_comes_out_is_the_norm_of_the_average(
    kind: str, norm: nn.Module
) -> None:
    features = 3 * torch.randn(2, 6, 4, 5) + 1
    pooled = features.mean((-2, -1))
    expected = norm(pooled)
    found = PooledNorm(kind, 1e-3)(features)
    torch.testing.assert_close(found.mean((-2, -1)), expected)
    torch.testing.assert_close(
        normalized(features.mean((-2, -1)), features.mean((-2, -1)), kind, 1e-3), expected
    )


def test_an_image_does_not_change_another() -> None:
    features = torch.randn(2, 6, 4, 5)
    norm = PooledNorm("layer", 1e-6)
    torch.testing.assert_close(norm(features)[:1], norm(features[:1]))


def test_half_precision_is_normalized_in_float32() -> None:
    features = torch.full((1, 6, 4, 5), 300.0, dtype=torch.float16)
    features[:, 0] += 1
    with torch.autocast("cpu", torch.bfloat16):
        found = PooledNorm("layer", 1e-6)(features)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
