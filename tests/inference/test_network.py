"""The torch side of what a predictor runs: precision, device, layout; the heads stay float32."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import camtrain
from camtrain.errors import CamtrainValueError
from camtrain.inference import network as network_module
from camtrain.inference.network import Precision, TorchNetwork, find_device
from camtrain.model.camnet import CAMNet
from camtrain.preprocessing import Preprocessing


def digits_net() -> CAMNet:
    torch.manual_seed(0)
    net = camtrain.create_model("camtrain/digits", 6, neck=(8,), backbone_args={"width": 4})
    net.preprocessing = Preprocessing(size=(32, 40))
    with torch.no_grad():
        net.train()(torch.rand(8, 3, 32, 40))
    return net.eval()


@pytest.fixture
def seen_dtypes() -> Iterator[tuple[CAMNet, list[torch.dtype]]]:
    """A network, and the type of its features each time it runs."""
    net, found = digits_net(), []
    handle = net.neck.register_forward_hook(lambda *given: found.append(given[2].dtype))
    yield net, found
    handle.remove()


@pytest.mark.parametrize(
    ("precision", "dtype", "atol"), [("fp32", torch.float32, 1e-5), ("bf16", torch.bfloat16, 0.1)]
)
def test_the_trunk_computes_in_the_precision_and_the_heads_in_float32(
    precision: Precision,
    dtype: torch.dtype,
    atol: float,
    seen_dtypes: tuple[CAMNet, list[torch.dtype]],
) -> None:
    net, found = seen_dtypes
    images = torch.rand(3, 3, 32, 40)
    with torch.no_grad():
        expected = net.class_maps(images, top=2)
    found.clear()
    out = TorchNetwork(net, precision=precision).class_maps(images, top=2)
    assert found == [dtype]
    assert out.logits.dtype == out.maps.dtype == torch.float32
    torch.testing.assert_close(out.logits, expected.logits, rtol=0, atol=atol)
    law = net.class_maps(images).maps.mean((-2, -1)) + net.head.bias
    every = TorchNetwork(net, precision=precision).display_maps(images)
    pooled = every.maps.mean((-2, -1)) + net.head.bias  # law 1, in this precision
    torch.testing.assert_close(pooled, every.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled, law, rtol=0, atol=atol)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_bf16_saves_the_weights_as_they_were(tmp_path: Path) -> None:
    net = digits_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    predictor = camtrain.Predictor(net, precision="bf16")
    list(predictor(torch.rand(3, 20, 30)))
    predictor.save(tmp_path / "model.safetensors")
    after = camtrain.load(tmp_path / "model.safetensors", precision="bf16")
    assert after.net is not None
    for name, tensor in after.net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_weights_and_images_are_laid_out_channels_last() -> None:
    net, layouts = digits_net(), []

    def look(_: object, given: tuple[Tensor]) -> None:
        layouts.append(given[0].is_contiguous(memory_format=torch.channels_last))

    with_hook = TorchNetwork(net)
    net.backbone.register_forward_pre_hook(look)
    with_hook.display_maps(torch.rand(2, 3, 32, 40))
    assert layouts == [True]
    for parameter in net.parameters():
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)


def test_auto_is_the_best_device_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"cuda": False, "mps": False}
    cuda, mps = network_module.torch.cuda, network_module.torch.backends.mps
    monkeypatch.setattr(cuda, "is_available", lambda: there["cuda"])
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(mps, "is_available", lambda: there["mps"])
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(CamtrainValueError, match=r"one of auto, cpu on this machine, got 'cuda'"):
        find_device("cuda")
    there["mps"] = True
    assert find_device("auto") == torch.device("mps")
    there["cuda"] = True
    assert find_device("auto") == torch.device("cuda")
    assert find_device(torch.device("cuda", 1)) == torch.device("cuda:1")
    with pytest.raises(CamtrainValueError, match="got 'cuda:2'"):
        find_device("cuda:2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, r"device must be one of auto, .*cpu on this machine, got 'gpu'"),
        ({"device": "meta"}, "got 'meta'"),
        ({"precision": "fp16"}, "precision must be one of fp32, bf16, got 'fp16'"),
    ],
)
def test_what_is_not_there_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        camtrain.Predictor(digits_net(), **arguments)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_an_accelerator_predicts_what_the_cpu_predicts(device: str) -> None:
    try:
        find_device(device)
    except CamtrainValueError:
        pytest.skip(f"no {device} on this machine")
    images = torch.rand(5, 3, 50, 70)
    expected = list(camtrain.Predictor(digits_net())(images, batch_size=2))
    found = list(camtrain.Predictor(digits_net(), device=device)(images, batch_size=2))
    for one, other in zip(found, expected, strict=True):
        assert one.names == other.names
        assert one.heatmaps.device.type == "cpu"
        torch.testing.assert_close(one.heatmaps, other.heatmaps, rtol=0, atol=1e-2)


def test_too_little_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    net = camtrain.create_model("camtrain/digits", 3, in_chans=1, weights=None)
    network = network_module.TorchNetwork(net)
    words = "cpu is too small for a batch of 2 pictures of 1 channels and 64x48 pixels"
    monkeypatch.setattr(network._fast_net, "class_maps", fail)
    with pytest.raises(CamtrainValueError, match=words):
        network.class_maps(torch.zeros(2, 1, 64, 48))
