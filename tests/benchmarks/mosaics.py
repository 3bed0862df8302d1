"""Does a class's map keep to its own picture of four? Two pretrained nets, converted, not trained.

Run: python tests/benchmarks/mosaics.py ../shared
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor

import camtrain
from camtrain import Preprocessing
from camtrain.data import prepare, read_image
from camtrain.localization import MosaicScore, mosaic, mosaic_plan
from camtrain.model.camnet import CAMNet


def mobilenetv2(weights: Path, stride: int | None = None) -> CAMNet:
    """The converted MobileNetV2 of ``shared/weights``."""
    classifier = timm.create_model("mobilenetv2_100", pad_type="same")
    classifier.load_state_dict(load_file(weights / "mobilenetv2_100_tfpad.safetensors"))
    preprocessing = Preprocessing(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
    net = camtrain.convert(classifier.eval(), stride=stride, preprocessing=preprocessing)
    return net.to(memory_format=torch.channels_last)  # twice as fast


def squeezenet(weights: Path) -> CAMNet:
    """The converted SqueezeNet of ``shared/weights``."""
    classifier = torchvision.models.squeezenet1_1()
    classifier.load_state_dict(load_file(weights / "squeezenet1_1.safetensors"))
    net = camtrain.convert(classifier.eval(), preprocessing=Preprocessing(size=(224, 224)))
    return net.to(memory_format=torch.channels_last)


def score(net: CAMNet, root: Path) -> tuple[int, dict[str, Tensor]]:
    """The number of mosaics of ``imagenet_val300`` and the score on them."""
    with open(root / "labels.csv") as file:
        rows = list(csv.DictReader(file))
    labels = torch.tensor([int(row["imagenet_index"]) for row in rows])
    assert net.preprocessing is not None
    images = torch.stack(
        [prepare(read_image(root / row["path"]), net.preprocessing) for row in rows]
    )
    plan, metric = mosaic_plan(labels), MosaicScore()
    with torch.inference_mode():
        for four in plan:
            shown = net.display_maps(mosaic(images[four])[None], classes=labels[four][None])
            metric.update(shown.maps)
    return len(plan), metric.compute()


if __name__ == "__main__":
    torch.set_num_threads(2)
    shared = Path(sys.argv[1])
    nets = {
        "MobileNetV2": mobilenetv2(shared / "weights"),
        "MobileNetV2, stride 16": mobilenetv2(shared / "weights", stride=16),
        "SqueezeNet 1.1": squeezenet(shared / "weights"),
    }
    print("| network | mosaics | peak in its quarter | energy in its quarter |")
    print("|---|---|---|---|")
    for name, net in nets.items():
        count, scores = score(net, shared / "data" / "imagenet_val300")
        print(f"| {name} | {count} | {scores['peak']:.1%} | {scores['energy']:.1%} |")
    print("| chance | | 25.0% | 25.0% |")
