"""Laws 1, 2 and 4 of camtrain/README.md on a GPU, in every precision and layout."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import camtrain
from camtrain import CAMNet
from camtrain.maps import PoolName, pool_maps
from tests.gpu.conftest import DEVICE, tf32_in_convolutions

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

DTYPES = (None, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
SIZE_HW = (96, 160)  # H != W


def autocast(dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(DEVICE.type, dtype or torch.bfloat16, enabled=dtype is not None)


def pictures(layout: torch.memory_format = torch.contiguous_format, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, *SIZE_HW, generator=generator)
    return images.to(DEVICE).contiguous(memory_format=layout)


def network(pool: PoolName = "avg", name: str = "torchvision/resnet18") -> CAMNet:
    torch.manual_seed(0)
    neck = () if name.startswith("camtrain") else (64,)
    net = camtrain.create_model(name, 7, weights=None, neck=neck, pool=pool)
    nn.init.normal_(net.head.bias)
    return net.to(DEVICE).eval()


def assert_same_to_rounding(values: Tensor, expected: Tensor, parts: float = 1e-5) -> None:
    """Equal within a part of the largest expected value."""
    difference = (values.double() - expected.double()).abs().max()
    assert difference <= parts * expected.double().abs().max(), difference


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", ["avg", "max", "lse"])
def test_law_1_the_pooled_maps_are_the_logits(
    pool: PoolName, dtype: torch.dtype | None, layout: torch.memory_format
) -> None:
    net = network(pool).to(memory_format=layout)
    with torch.inference_mode(), autocast(dtype):
        output = net.class_maps(pictures(layout))
        logits = net(pictures(layout))
    assert_same_to_rounding(pool_maps(output.maps, pool) + net.head.bias, output.logits)
    assert output.maps.shape[2] < output.maps.shape[3]
    assert_same_to_rounding(logits, output.logits, 1e-5 if dtype is None else 1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_law_1_in_a_compiled_network(dtype: torch.dtype | None) -> None:
    net = network(name="camtrain/digits")
    class_maps: Callable[[Tensor], Any] = torch.compile(net.class_maps)
    with torch.inference_mode(), autocast(dtype):
        output = class_maps(pictures())
    assert output.maps.dtype == output.logits.dtype == torch.float32
    assert_same_to_rounding(output.maps.mean((2, 3)) + net.head.bias, output.logits)


def test_the_compiled_training_gives_the_loss_of_the_plain_one() -> None:
    net, labels = network(name="camtrain/digits").train(), torch.tensor([0, 1, 2, 3])
    compiled = copy.deepcopy(net)
    compiled.compile()
    losses = [F.cross_entropy(n(pictures()), labels.to(DEVICE)) for n in (net, compiled)]
    assert_same_to_rounding(losses[1], losses[0], 1e-3)
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    for parameter, other in zip(net.parameters(), compiled.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_law_2_a_converted_classifier_keeps_its_logits(
    name: str, tf32: bool, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    classifier = torchvision.models.get_model(name).eval().to(DEVICE, memory_format=layout)
    net = camtrain.convert(copy.deepcopy(classifier)).to(memory_format=layout)
    with torch.inference_mode(), tf32_in_convolutions(tf32):
        expected, logits = classifier(pictures(layout)), net(pictures(layout))
    assert_same_to_rounding(logits, expected, 2e-3 if tf32 else 2e-5)


@pytest.mark.parametrize(("dtype", "parts"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_law_2_in_autocast_differs_by_the_rounding_of_the_classifier_s_own_head(
    dtype: torch.dtype, parts: float
) -> None:
    torch.manual_seed(0)
    classifier = torchvision.models.resnet18().eval().to(DEVICE)
    net = camtrain.convert(copy.deepcopy(classifier))
    with torch.inference_mode(), autocast(dtype):
        assert_same_to_rounding(net(pictures()), classifier(pictures()), parts)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_law_4_head_and_maps_are_float32_of_one_forward_pass(
    dtype: torch.dtype | None, layout: torch.memory_format
) -> None:
    """Held against float64: TF32 would be wrong by 1e-3, and the law by nothing that shows."""
    net, features = network().to(memory_format=layout), []
    handle = net.neck.register_forward_hook(lambda _m, _i, output: features.append(output))
    with torch.inference_mode(), autocast(dtype):
        output = net.class_maps(pictures(layout))
        some = net.maps_of(features[0], classes=torch.tensor([[1, 5]] * 4, device=DEVICE))
    handle.remove()
    assert len(features) == 1
    assert output.logits.dtype == output.maps.dtype == torch.float32
    weight, bias = net.head.weight.double(), net.head.bias.double()
    maps = torch.einsum("kc,bchw->bkhw", weight, features[0].double())
    assert_same_to_rounding(output.maps, maps)
    assert_same_to_rounding(some.maps, maps[:, [1, 5]])
    assert_same_to_rounding(output.logits, maps.mean((2, 3)) + bias)


def test_gradients_pass_through_the_float32_head() -> None:
    net = network("lse").train()
    with autocast(torch.bfloat16):
        loss = F.cross_entropy(net(pictures()), torch.tensor([0, 1, 2, 3], device=DEVICE))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
