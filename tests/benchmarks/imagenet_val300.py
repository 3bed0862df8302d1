"""A pretrained classifier, converted and not trained, on 300 ILSVRC validation pictures.

Run: python tests/benchmarks/imagenet_val300.py ../shared [none|affinity] [SIDE]
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import get_args

import timm
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import camtrain
from camtrain import Preprocessing
from camtrain.data import ImageFolder, PreparedDataset, collate
from camtrain.model.refine import Refine
from camtrain.training.evaluate.box_scores import on_whole_pictures
from camtrain.training.evaluate.scores import Evaluation


def evaluate(
    shared: Path, stride: int = 16, *, refine: Refine = "none", side: int = 224
) -> dict[str, float]:
    """Scores of the converted MobileNetV2 of ``shared/weights``."""
    classifier = timm.create_model("mobilenetv2_100", pad_type="same")
    classifier.load_state_dict(load_file(shared / "weights" / "mobilenetv2_100_tfpad.safetensors"))
    preprocessing = Preprocessing(size=(side, side), mean=(0.5,) * 3, std=(0.5,) * 3)
    net = camtrain.convert(classifier.eval(), stride=stride, preprocessing=preprocessing)
    net.set_refine(refine)

    root = shared / "data" / "imagenet_val300"
    source = ImageFolder(root, "test", class_names=class_names(root))
    loader = DataLoader(PreparedDataset(source, preprocessing), batch_size=16, collate_fn=collate)
    evaluation = Evaluation(num_classes=1000)
    with torch.inference_mode():
        for batch in loader:
            output = net.display_maps(batch.images, classes=batch.labels)
            maps = on_whole_pictures(output.maps[:, 0], preprocessing, batch)
            evaluation.update(output.logits, maps, batch.labels, batch)
    return {name: float(value) for name, value in evaluation.compute().items()}


def class_names(root: Path) -> list[str]:
    """The 1,000 folder names of ImageNet in order; those without a picture here are numbered."""
    names = [f"class-{number}" for number in range(1000)]
    with open(root / "labels.csv") as file:
        for row in csv.DictReader(file):
            names[int(row["imagenet_index"])] = row["wnid"]
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("shared", type=Path)
    parser.add_argument("refine", nargs="?", default="none", choices=get_args(Refine))
    parser.add_argument("side", nargs="?", default=224, type=int)
    given = parser.parse_args()
    for name, value in evaluate(given.shared, refine=given.refine, side=given.side).items():
        print(f"{name:16} {value:.4f}")
