"""Prediction, refinement and export of networks that lie on a GPU."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import camtrain
from camtrain import CAMNet
from camtrain.inference.tta import TTA
from camtrain.model.refine import refine_maps, stage_vectors
from camtrain.preprocessing import Preprocessing
from tests.gpu.conftest import DEVICE, tf32_in_convolutions

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


def network(refine: bool = False) -> CAMNet:
    torch.manual_seed(0)
    net = camtrain.create_model("torchvision/resnet18", 5, weights=None, neck=())
    net.preprocessing = Preprocessing(size=(96, 128))
    return net.set_refine("affinity").eval() if refine else net.eval()


def pictures(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(120, 150), (97, 61), (200, 90)][:count]
    return [torch.randint(256, (3, *s), dtype=torch.uint8, generator=generator) for s in sizes]


@pytest.mark.parametrize("tta", ["none", "flip"])
@pytest.mark.parametrize("refine", [False, True])
def test_predictions_equal_those_of_the_cpu(refine: bool, tta: TTA) -> None:
    net = network(refine)
    on_cpu = camtrain.Predictor(copy.deepcopy(net))
    on_device = camtrain.Predictor(net, device=DEVICE)
    with tf32_in_convolutions(False):
        values = list(on_device(pictures(), top=2, tta=tta))
    for value, expected in zip(values, on_cpu(pictures(), top=2, tta=tta), strict=True):
        assert value.classes == expected.classes
        assert value.scores == pytest.approx(expected.scores, abs=1e-4)
        assert value.heatmaps.device.type == "cpu"
        torch.testing.assert_close(value.heatmaps, expected.heatmaps, rtol=0, atol=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predictions_in_torch_s_usual_precision(precision: str) -> None:
    """TF32 and bfloat16 move heatmaps by a few hundredths of a random network's small range."""
    predictor = camtrain.Predictor(network(), device=DEVICE, precision=precision)  # type: ignore[arg-type]
    for prediction in predictor(pictures(), top=5):
        assert sum(prediction.scores) == pytest.approx(1, abs=1e-3)
        assert prediction.heatmaps.min() == 0
        assert prediction.heatmaps.amax((1, 2)).tolist() == pytest.approx([1] * 5)


def test_refinement_equals_that_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    stages = [torch.rand(2, c, s, s + 4, generator=generator) for c, s in ((200, 24), (64, 12))]
    maps = torch.randn(2, 3, 12, 16, generator=generator)
    expected = refine_maps(maps, stage_vectors(stages, (12, 16)))
    vectors = stage_vectors([stage.to(DEVICE) for stage in stages], (12, 16))
    refined = refine_maps(maps.to(DEVICE), vectors)
    atol = 1e-5 * float(expected.max())
    torch.testing.assert_close(refined.cpu(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_exports_of_a_network_on_the_device(suffix: str, refine: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from camtrain.inference.export.write import export_network

    net = network(refine).to(DEVICE)
    with tf32_in_convolutions(False):
        export = export_network(net, tmp_path / f"net{suffix}")
    assert export.parity is not None
    assert export.parity.complaint() is None
    assert net.head.weight.device.type == DEVICE.type
    expected = list(camtrain.Predictor(net.cpu())(pictures(), top=2))
    devices = ["cpu"] if suffix == ".onnx" else ["cpu", str(DEVICE)]
    for device in devices:
        predictor = camtrain.load(export.path, device=device)
        with tf32_in_convolutions(False):
            values = list(predictor(pictures(), top=2))
        for value, other in zip(values, expected, strict=True):
            assert value.classes == other.classes
            torch.testing.assert_close(value.heatmaps, other.heatmaps, rtol=0, atol=2e-3)


def test_a_bundle_is_read_onto_the_device(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    camtrain.Predictor(network(), device=DEVICE).save(path)
    predictor = camtrain.load(path, device=DEVICE)
    assert predictor.net is not None
    assert predictor.net.head.weight.device.type == DEVICE.type
    [prediction] = predictor(pictures(1), top=1)
    assert prediction.heatmaps.shape == (1, 120, 150)
