"""What maps gain from another normalization, from more views, and from another head.

Prints two markdown tables in a few minutes. A MobileNetV2 pretrained on ImageNet at stride 16 is
measured as it is on imagenet_val300; its frozen features of animals3 train the heads.

Run: python tests/benchmarks/better_maps.py ../shared
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import get_args

import torch
from mosaics import mobilenetv2
from torch import nn
from torch.nn import functional as F

from camtrain import Preprocessing
from camtrain.data import Batch, ImageFolder, PreparedDataset, collate
from camtrain.inference.tta import TTA, tta_maps
from camtrain.localization import LocalizationAccuracy, MaxBoxAcc, PointingGame
from camtrain.maps import HeatmapMethod, PoolName, heatmaps
from camtrain.model.camnet import CAMNet

METHODS = get_args(HeatmapMethod)
HEADS: dict[str, tuple[int, PoolName]] = {  # channels of the 3x3 neck, 0 for none; pool
    "linear, avg (plain)": (0, "avg"),
    "neck 256, avg": (256, "avg"),
    "neck 256, lse": (256, "lse"),
}
SEEDS, EPOCHS, BATCH_SIZE, LR = 3, 10, 32, 1e-3


def batches(source: ImageFolder, preprocessing: Preprocessing) -> list[Batch]:
    """The prepared pictures of a split."""
    prepared = PreparedDataset(source, preprocessing)
    order = range(len(prepared))
    return [
        collate([prepared[index] for index in order[start : start + 16]]) for start in order[::16]
    ]


def table_of_options(net: CAMNet, root: Path) -> None:
    """Normalizations and views on ``imagenet_val300``."""
    names = [f"class-{number}" for number in range(1000)]
    with open(root / "labels.csv") as file:
        for row in csv.DictReader(file):
            names[int(row["imagenet_index"])] = row["wnid"]
    source = ImageFolder(root, "test", class_names=names)
    print("| views | normalization | MaxBoxAcc | GT-known at 0.2 | pointing | accuracy |")
    print("|---|---|---|---|---|---|")
    for tta in get_args(TTA):
        side = 256 if tta == "tencrop" else 224  # the crops of 256 are 224
        preprocessing = Preprocessing(size=(side, side), mean=(0.5,) * 3, std=(0.5,) * 3)
        boxes = {method: (MaxBoxAcc(), LocalizationAccuracy()) for method in METHODS}
        game = PointingGame()
        for batch in batches(source, preprocessing):
            with torch.inference_mode():
                output = tta_maps(net, batch.images, tta=tta, classes=batch.labels)
            game.update(output.maps[:, 0], batch.boxes_xyxy, batch.sizes_hw)
            for method, (best, fixed) in boxes.items():
                heat = heatmaps(output.maps, size=(224, 224), method=method)[:, 0]
                best.update(heat, batch.boxes_xyxy, batch.sizes_hw)
                fixed.update(heat, output.logits, batch.labels, batch.boxes_xyxy, batch.sizes_hw)
        for method, (best, fixed) in boxes.items():
            found = fixed.compute()
            scores = [best.compute(), found["gt_known"], game.compute()["pointing"]]
            cells = " | ".join(f"{score:.1%}" for score in [*scores, found["cls_top1"]])
            print(f"| {tta} | {method} | {cells} |", flush=True)


class Split:
    """The frozen features of a split, with what is needed to train on them and to measure."""

    def __init__(self, net: CAMNet, source: ImageFolder) -> None:
        assert net.preprocessing is not None
        every = batches(source, net.preprocessing)
        with torch.inference_mode():
            features = torch.cat([net.features(batch.images) for batch in every])
        self.features = features.clone().contiguous(memory_format=torch.channels_last)
        self.labels = torch.cat([batch.labels for batch in every])
        self.boxes_xyxy = [boxes for batch in every for boxes in batch.boxes_xyxy]
        self.sizes_hw = torch.cat([batch.sizes_hw for batch in every])

    def metric(self, head: CAMNet, method: HeatmapMethod) -> MaxBoxAcc:
        """MaxBoxAcc of a head's maps of the true classes, already counted."""
        with torch.inference_mode():
            maps = [
                head.class_maps(features, classes=labels).maps
                for features, labels in zip(
                    self.features.split(BATCH_SIZE), self.labels.split(BATCH_SIZE), strict=True
                )
            ]
        metric = MaxBoxAcc()
        heat = heatmaps(torch.cat(maps), size=(224, 224), method=method)[:, 0]
        metric.update(heat, self.boxes_xyxy, self.sizes_hw)
        return metric


def trained_head(split: Split, channels: int, pool: PoolName, classes: int, seed: int) -> CAMNet:
    """A neck (if any) and a head over frozen features, as a CAM network whose images they are."""
    torch.manual_seed(seed)
    width = split.features.shape[1]
    neck = nn.Sequential(nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()) if channels else None
    net = CAMNet(nn.Identity(), nn.Linear(channels or width, classes), neck=neck, pool=pool)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR)
    steps = EPOCHS * (len(split.labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(split.labels))
        for chosen in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            loss = F.cross_entropy(net(split.features[chosen]), split.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def table_of_heads(net: CAMNet, root: Path) -> None:
    """Heads on the frozen features of ``animals3``; the threshold is chosen on its val split."""
    train, val, test = (Split(net, ImageFolder(root, name)) for name in ("train", "val", "test"))
    print("| head | normalization | MaxBoxAcc, val threshold | MaxBoxAcc, best threshold |")
    print("|---|---|---|---|")
    for name, (channels, pool) in HEADS.items():
        heads = [trained_head(train, channels, pool, 3, seed) for seed in range(SEEDS)]
        for method in METHODS:
            calibrated, best = [], []
            for head in heads:
                threshold = val.metric(head, method).calibrated_threshold()
                measured = test.metric(head, method)
                calibrated.append(float(measured.accuracy_at(threshold)))
                best.append(float(measured.compute()))
            print(f"| {name} | {method} | {_spread(calibrated)} | {_spread(best)} |", flush=True)


def _spread(scores: list[float]) -> str:
    return f"{mean(scores):.3f} ± {stdev(scores):.3f}"


if __name__ == "__main__":
    torch.set_num_threads(2)
    shared = Path(sys.argv[1])
    net = mobilenetv2(shared / "weights", stride=16)
    table_of_options(net, shared / "data" / "imagenet_val300")
    print()
    table_of_heads(net, shared / "data" / "animals3")
