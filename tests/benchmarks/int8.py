"""What int8 costs and gains: pretrained networks on 300 ILSVRC validation pictures.

Run: python tests/benchmarks/int8.py ../shared [mobilenet|squeezenet|resnet50]...

Calibrated on 128 of the pictures and measured on all of them. Of the resnet50, which has
random weights, only sizes and times mean something.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import timm
import torch
import torchvision
from imagenet_val300 import class_names
from safetensors.torch import load_file

import camtrain
from camtrain import CAMNet, Preprocessing
from camtrain.data import ImageFolder
from camtrain.inference.export.check import Pictures
from camtrain.inference.export.write import export_network
from camtrain.inference.exported import ExportOptions

SIZE_HW = (224, 224)


def network(name: str, weights: Path) -> CAMNet:
    """A converted network with weights of ``shared/weights``."""
    torch.manual_seed(0)
    if name == "mobilenet":
        classifier = timm.create_model("mobilenetv2_100", pad_type="same")
        classifier.load_state_dict(load_file(weights / "mobilenetv2_100_tfpad.safetensors"))
        preprocessing = Preprocessing(SIZE_HW, (0.5,) * 3, (0.5,) * 3)
    elif name == "squeezenet":
        classifier = torchvision.models.squeezenet1_1()
        classifier.load_state_dict(load_file(weights / "squeezenet1_1.safetensors"))
        preprocessing = Preprocessing(SIZE_HW)
    else:
        classifier, preprocessing = torchvision.models.resnet50(), Preprocessing(SIZE_HW)
    return camtrain.convert(classifier.eval(), preprocessing=preprocessing)


def main(shared: Path, names: list[str]) -> None:
    """Print what the export reports."""
    root = shared / "data" / "imagenet_val300"
    source = ImageFolder(root, "test", class_names=class_names(root))
    few = [source.read(index).image for index in range(2)]
    for name in names:
        net = network(name, shared / "weights")
        net.name_classes(source.class_names)
        with tempfile.TemporaryDirectory() as folder:
            done = export_network(
                net,
                Path(folder) / "model.onnx",
                options=ExportOptions(precision="int8"),
                pictures=Pictures(few, str(root), source),
                max_drop=100,
            )
        print(name, done.agreement, done.quantization, sep="\n  ", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["mobilenet", "squeezenet", "resnet50"])
