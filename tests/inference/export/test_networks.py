"""Every kind of network exports, and computes what it computed; see benchmarks/export.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import camtrain
from camtrain import Preprocessing
from camtrain.inference.bundle import Bundle
from camtrain.inference.export.command import pictures_of
from camtrain.inference.export.write import export_network

pytest.importorskip("onnx", reason="the extra `export` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")

pytestmark = pytest.mark.nightly

NETWORKS = {  # name: whether it takes images of any size
    "camtrain/digits": True,
    "torchvision/alexnet": True,
    "torchvision/convnext_tiny": True,
    "torchvision/densenet121": True,
    "torchvision/efficientnet_b0": True,
    "torchvision/googlenet": True,
    "torchvision/mobilenet_v3_small": True,
    "torchvision/regnet_y_400mf": True,
    "torchvision/resnet18": True,
    "torchvision/shufflenet_v2_x0_5": True,
    "torchvision/squeezenet1_1": True,
    "torchvision/vgg16": True,
    "timm/convnext_atto": True,
    "timm/resnet50d": True,
    "timm/tf_efficientnet_b0": True,
    "timm/tf_mixnet_s": True,
    "timm/tf_mobilenetv3_small_100": True,
    "timm/nfnet_l0": True,
    "timm/swin_tiny_patch4_window7_224": False,
    "timm/vit_tiny_patch16_224": False,
    "timm/xcit_nano_12_p16_224": False,  # takes any size, but as a row of tokens
}


# torch.export comes before ONNX in any case, so a .pt2 of some is enough.
AS_PT2 = ("torchvision/googlenet", "timm/tf_mixnet_s", "timm/vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, ".onnx") for name in NETWORKS), *((name, ".pt2") for name in AS_PT2)],
)
def test_a_network_exports(name: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = camtrain.create_model(name, 10, weights=None, neck=()).eval()
    done = export_network(net, tmp_path / f"a{suffix}")  # its parity is checked, or it raises
    assert (done.input_hw is None) == NETWORKS[name]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize(
    ("file", "name", "arguments"),
    [
        ("mobilenetv2_100_tfpad", "timm/mobilenetv2_100", {"pad_type": "same"}),
        ("squeezenet1_1", "torchvision/squeezenet1_1", {}),
    ],
)
def test_real_weights_export_with_parity_on_real_photographs(
    file: str, name: str, arguments: dict[str, str], suffix: str, shared: Path, tmp_path: Path
) -> None:
    weights = shared / "weights" / f"{file}.safetensors"
    assert load_file(weights)
    net = camtrain.create_model(name, weights=weights, neck=(), backbone_args=arguments).eval()
    if arguments:
        net.preprocessing = Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3)
    folder = shared / "data" / "imagenet_val300"
    pictures = pictures_of(Bundle(net, net.description), folder)
    done = export_network(net, tmp_path / f"a{suffix}", pictures=pictures)
    assert done.parity is not None
    assert done.parity.images == 16
    assert done.parity.differing == 0
    assert done.parity.logits <= 1e-4
    assert done.parity.maps <= 1e-4
