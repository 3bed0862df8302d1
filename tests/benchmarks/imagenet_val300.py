"""A pretrained classifier, converted and not trained, on 300 ILSVRC validation pictures.

Run: python tests/benchmarks/imagenet_val300.py ../shared
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import camtrain
from camtrain import Preprocessing
from camtrain.data import ImageFolder, PreparedDataset, collate
from camtrain.training.box_scores import on_whole_pictures
from camtrain.training.evaluation import Evaluation


def evaluate(shared: Path, stride: int = 16) -> dict[str, float]:
    """Scores of the converted MobileNetV2 of ``shared/weights``."""
    classifier = timm.create_model("mobilenetv2_100", pad_type="same")
    classifier.load_state_dict(load_file(shared / "weights" / "mobilenetv2_100_tfpad.safetensors"))
    preprocessing = Preprocessing(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
    net = camtrain.convert(classifier.eval(), stride=stride, preprocessing=preprocessing)

    root = shared / "data" / "imagenet_val300"
    source = ImageFolder(root, "test", class_names=_class_names(root))
    loader = DataLoader(PreparedDataset(source, preprocessing), batch_size=16, collate_fn=collate)
    evaluation = Evaluation(num_classes=1000)
    with torch.inference_mode():
        for batch in loader:
            output = net.class_maps(batch.images, classes=batch.labels)
            maps = on_whole_pictures(output.maps[:, 0], preprocessing, batch)
            evaluation.update(output.logits, maps, batch.labels, batch)
    return {name: float(value) for name, value in evaluation.compute().items()}


def _class_names(root: Path) -> list[str]:
    """The 1,000 folder names of ImageNet in order; those without a picture here are numbered."""
    names = [f"class-{number}" for number in range(1000)]
    with open(root / "labels.csv") as file:
        for row in csv.DictReader(file):
            names[int(row["imagenet_index"])] = row["wnid"]
    return names


if __name__ == "__main__":
    for name, value in evaluate(Path(sys.argv[1])).items():
        print(f"{name:16} {value:.4f}")
