"""OpenVINO reads our ONNX files and gives the same maps."""

from pathlib import Path

import pytest
import torch

import camtrain
from camtrain.inference.export.check import Pictures
from camtrain.inference.export.write import export_network
from camtrain.inference.exported import ExportOptions, ExportPrecision
from camtrain.maps import relative_difference
from tests.inference.export.test_quantize import noise, small_net

openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("int8", 0.1)])
def test_its_maps_are_those_of_onnxruntime(
    precision: ExportPrecision, tolerance: float, tmp_path: Path
) -> None:
    """In 8 bits both round differently, since OpenVINO fuses other layers."""
    path = tmp_path / "model.onnx"
    options = ExportOptions(precision=precision)
    export_network(
        small_net(), path, options=options, pictures=Pictures(noise(), "noise"), max_drop=100
    )
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    network = camtrain.load(path).network
    for size_hw in ((48, 40), (57, 40)):
        images = torch.randn(2, 3, *size_hw, generator=torch.Generator().manual_seed(1))
        result = compiled({"images": images.numpy()})
        maps = torch.from_numpy(result["maps"].copy())
        expected = network.class_maps(images)
        assert maps.shape == expected.maps.shape
        assert relative_difference(maps, expected.maps).max() < tolerance
        logits = torch.from_numpy(result["logits"].copy())
        torch.testing.assert_close(logits, expected.logits, rtol=0, atol=tolerance)
