"""What each option changes: plain CAM, affinity refinement, training for coverage, a second stage.

Two pretrained backbones, frozen. On animals3 heads are trained from class labels, with three seeds
(mean and standard deviation); boxes of its val split choose the threshold and nothing else. On
imagenet_val300 the converted classifiers are measured as they are, and nothing is trained. One
picture of animals3 is 0.7 points, one of imagenet_val300 0.3; the standard error of a score near
70 % is 4 and 2.6 points. Prints markdown; takes half an hour.

Run: python tests/benchmarks/coverage.py ../shared [mobilenetv2|squeezenet]
Or, for any folder with boxes and any network (see ``any_folder.py``):
    python tests/benchmarks/coverage.py --root FOLDER --backbone NAME [--weights FILE]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from better_maps import batches
from imagenet_val300 import class_names
from mosaics import mobilenetv2, score, squeezenet
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

import camtrain
from camtrain.data import ImageFolder
from camtrain.data.augment import hide
from camtrain.localization import (
    CentreBoxAcc,
    LocalizationAccuracy,
    MaxBoxAcc,
    MaxBoxAccV2,
    PointingGame,
)
from camtrain.maps import PoolName
from camtrain.model.camnet import CAMNet
from camtrain.model.foreground import ForegroundHead
from camtrain.model.refine import BackboneOutput, positive_maps, refine_maps
from camtrain.model.stages import Stages
from camtrain.training.learn.losses import TrainingLoss
from camtrain.training.learn.objective import foreground_loss
from camtrain.training.learn.teacher import map_disagreement

SEEDS, BATCH_SIZE, SIZE, LARGER = 3, 32, 256, 320
HEADER = (
    "| option | accuracy | GT-known at 0.2 | MaxBoxAcc, val threshold | MaxBoxAcc, oracle | V2 "
    "| pointing | mosaics: peak, energy | ms per image |\n" + "|---" * 9 + "|"
)

Step = Callable[[CAMNet, Tensor], tuple[Tensor, Tensor | float]]


@dataclass
class Seen:
    """What a frozen backbone made of a split."""

    features: Tensor
    vectors: Tensor
    images: Tensor
    labels: Tensor
    boxes_xyxy: list[Tensor]
    sizes_hw: Tensor


def look(net: CAMNet, source: ImageFolder, side: int, *, mirrored: bool = False) -> Seen:
    """Put a split through the backbone."""
    assert net.preprocessing is not None
    every = batches(source, replace(net.preprocessing, size=(side, side)))
    images = torch.cat([batch.images for batch in every])
    if mirrored:
        images = torch.cat((images, images.flip(-1)))
    with torch.inference_mode():
        some = [
            net.backbone_output(part.contiguous(memory_format=torch.channels_last))
            for part in images.split(16)
        ]
        features = torch.cat([one.features for one in some])
        vectors = torch.cat([one.vectors for one in some])
    labels = torch.cat([batch.labels for batch in every])
    return Seen(
        features.clone(),
        vectors.clone(),
        images,
        labels.repeat(2) if mirrored else labels,
        [boxes for batch in every for boxes in batch.boxes_xyxy],
        torch.cat([batch.sizes_hw for batch in every]),
    )


class Measured:
    """The scores of a head on a split."""

    def __init__(self, head: CAMNet, seen: Seen, *, refined: bool) -> None:
        with torch.inference_mode():
            outputs = [
                head.class_maps(features, classes=labels)
                for features, labels in zip(
                    seen.features.split(16), seen.labels.split(16), strict=True
                )
            ]
            logits = torch.cat([output.logits for output in outputs])
            maps = torch.cat([output.maps for output in outputs])
            if head.foreground is not None:
                maps = positive_maps(maps) * head.foreground(seen.vectors)
            maps = refine_maps(maps, seen.vectors)[:, 0] if refined else maps[:, 0]
        boxes, sizes_hw = seen.boxes_xyxy, seen.sizes_hw
        self.boxes = MetricCollection(
            [MaxBoxAcc(), MaxBoxAccV2()], compute_groups=[["MaxBoxAcc", "MaxBoxAccV2"]]
        )
        self.boxes.update(maps, boxes, sizes_hw)
        accuracy, pointing = LocalizationAccuracy(), PointingGame()
        accuracy.update(maps, logits, seen.labels, boxes, sizes_hw)
        pointing.update(maps, boxes, sizes_hw)
        found, best = accuracy.compute(), self.boxes.compute()
        self.scores = {
            "accuracy": found["cls_top1"],
            "gt_known": found["gt_known"],
            "oracle": best["MaxBoxAcc"],
            "v2": best["MaxBoxAccV2"],
            "pointing": pointing.compute()["pointing"],
        }


def trained(
    step: Step,
    seen: Seen,
    seed: int,
    *,
    neck: int = 0,
    pool: PoolName = "avg",
    epochs: int = 10,
    stages: Stages | None = None,
) -> CAMNet:
    """A 1x1 neck (if any) and a head over frozen features, as a CAM network whose images they are.

    Args:
        step: From the head and the pictures of a step (indices) to logits and targets or a loss.
        seen: Of the training pictures, mirrored ones in the second half.
        seed: Of everything random.
        neck: Its channels.
        pool: See ``CAMNet``.
        epochs: Over the pictures.
        stages: What a foreground head reads; None for no such head.
    """
    torch.manual_seed(seed)
    width, classes = seen.features.shape[1], int(seen.labels.max()) + 1
    layers = nn.Sequential(nn.Conv2d(width, neck, 1), nn.ReLU()) if neck else None
    head = CAMNet(nn.Identity(), nn.Linear(neck or width, classes), neck=layers, pool=pool)
    if stages is not None:
        head.foreground = ForegroundHead(stages.channels)
    pictures = len(seen.labels) // 2
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-3, total_steps=epochs * (pictures // BATCH_SIZE)
    )
    for _ in range(epochs):
        views = torch.arange(pictures) + pictures * torch.randint(2, (pictures,))
        order = views[torch.randperm(pictures)][: pictures // BATCH_SIZE * BATCH_SIZE]
        for chosen in order.split(BATCH_SIZE):
            logits, rest = step(head, chosen)
            loss = F.cross_entropy(logits, rest) if isinstance(rest, Tensor) else logits
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def plain(seen: Seen) -> Step:
    """Training on the features as they are."""
    return lambda head, chosen: (head(seen.features[chosen]), seen.labels[chosen])


def in_foreground(seen: Seen) -> Step:
    """Training of head and foreground head on the features as they are."""

    def step(head: CAMNet, chosen: Tensor) -> tuple[Tensor, float]:
        output = BackboneOutput(head.neck(seen.features[chosen]), seen.vectors[chosen])
        return foreground_loss(head, output, seen.labels[chosen]), 0.0

    return step


def on_changed_images(
    net: CAMNet, seen: Seen, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Step:
    """Training on pictures that are changed in every step."""

    def step(head: CAMNet, chosen: Tensor) -> tuple[Tensor, Tensor]:
        images, targets = change(seen.images[chosen], seen.labels[chosen])
        with torch.no_grad():
            features = net.backbone(images.contiguous(memory_format=torch.channels_last))
        return head(features), targets

    return step


def hidden(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Hide-and-seek: half of the cells are grey."""
    return torch.stack([hide(image, 0.5, [0.0] * 3) for image in images]), labels


def taught(seen: Seen, teacher: CAMNet) -> Step:
    """Training on labels and on the refined maps of a first head."""
    with torch.inference_mode():
        maps = [
            refine_maps(teacher.class_maps(features, classes=labels).maps, vectors)[:, 0]
            for features, vectors, labels in zip(
                seen.features.split(16), seen.vectors.split(16), seen.labels.split(16), strict=True
            )
        ]
    targets = torch.cat(maps).clone()

    def step(head: CAMNet, chosen: Tensor) -> tuple[Tensor, float]:
        output = head.class_maps(seen.features[chosen], classes=seen.labels[chosen])
        loss = F.cross_entropy(output.logits, seen.labels[chosen])
        return loss + map_disagreement(output.maps[:, 0], targets[chosen]).mean(), 0.0

    return step


def table_of_training(net: CAMNet, root: Path) -> None:
    """Options on ``animals3``."""
    train = look(net, ImageFolder(root, "train"), SIZE, mirrored=True)
    val, test = (look(net, ImageFolder(root, name), SIZE) for name in ("val", "test"))
    large_train = look(net, ImageFolder(root, "train"), LARGER, mirrored=True)
    large = [look(net, ImageFolder(root, name), LARGER) for name in ("val", "test")]
    seeds = range(SEEDS)

    def row(name: str, heads: Sequence[CAMNet], *, refined: bool, on: Sequence[Seen]) -> None:
        found = []
        for head in heads:
            chosen = Measured(head, on[0], refined=refined).boxes["MaxBoxAcc"]
            measured = Measured(head, on[1], refined=refined)
            at_val = measured.boxes["MaxBoxAcc"].accuracy_at(chosen.calibrated_threshold())
            found.append({**measured.scores, "val": at_val})
        names = ("accuracy", "gt_known", "val", "oracle", "v2", "pointing")
        cells = [_spread([float(scores[name]) for scores in found]) for name in names]
        took = milliseconds(net, on[1].images.shape[-1], refined=refined)
        print(f"| {name} | {' | '.join(cells)} | | {took:.0f} |", flush=True)

    centre = CentreBoxAcc()
    centre.update(test.boxes_xyxy, test.sizes_hw)
    print(HEADER)
    print(f"| centre box | | | | {float(centre.compute()):.1%} | | | | |")
    usual = (val, test)
    first = [trained(plain(train), train, seed) for seed in seeds]
    row("plain CAM, linear head", first, refined=False, on=usual)
    row("affinity alone", first, refined=True, on=usual)
    things = [
        trained(in_foreground(train), train, seed, epochs=15, stages=net.stages) for seed in seeds
    ]
    row("foreground", things, refined=False, on=usual)
    row("foreground, affinity", things, refined=True, on=usual)
    larger = [trained(plain(large_train), large_train, seed) for seed in seeds]
    row(f"input of {LARGER} alone", larger, refined=False, on=large)
    row(f"input of {LARGER}, affinity", larger, refined=True, on=large)
    necks = [trained(plain(train), train, seed, neck=256) for seed in seeds]
    row("neck of 256 alone", necks, refined=False, on=usual)
    lse = [trained(plain(train), train, seed, neck=256, pool="lse") for seed in seeds]
    row("neck of 256, lse", lse, refined=False, on=usual)
    row("neck of 256, lse, affinity", lse, refined=True, on=usual)
    second = [
        trained(taught(train, teacher), train, seed, neck=256, epochs=15)
        for seed, teacher in enumerate(first)
    ]
    row("second stage, neck of 256", second, refined=False, on=usual)
    row("**second stage, affinity (best)**", second, refined=True, on=usual)
    mixing = TrainingLoss(int(train.labels.max()) + 1, "multiclass", cutmix=1.0)
    for name, change in (("hide-and-seek", hidden), ("cutmix", mixing)):
        heads = [trained(on_changed_images(net, train, change), train, seed) for seed in seeds]
        row(f"{name}, linear head", heads, refined=False, on=usual)
        row(f"{name}, affinity", heads, refined=True, on=usual)


def table_of_classifiers(net: CAMNet, root: Path) -> None:
    """The classifier as it is on ``imagenet_val300``."""
    source = ImageFolder(root, "test", class_names=class_names(root))
    head = CAMNet(nn.Identity(), net.head)
    print(HEADER)
    for side in (224, 288, 320):
        seen = look(net, source, side)
        if side == 224:
            centre = CentreBoxAcc()
            centre.update(seen.boxes_xyxy, seen.sizes_hw)
            print(f"| centre box | | | | {float(centre.compute()):.1%} | | | | |")
        for refined in (False, True):
            measured = Measured(head, seen, refined=refined)
            metric, scores = measured.boxes["MaxBoxAcc"], measured.scores
            every = [float(metric.curve(iou)[1].max()) for iou in (0.3, 0.5, 0.7)]
            cells = [f"{float(scores[name]):.1%}" for name in ("accuracy", "gt_known")]
            cells += ["", f"{every[1]:.1%} (mean of three IoUs {mean(every):.1%})"]
            cells += [f"{float(scores[name]):.1%}" for name in ("v2", "pointing")]
            mosaics = ""
            if side == 224:
                net.set_refine("affinity" if refined else "none")
                found = score(net, root)[1]
                net.set_refine("affinity")
                mosaics = f"{float(found['peak']):.1%}, {float(found['energy']):.1%}"
            took = milliseconds(net, side, refined=refined)
            name = f"input of {side}, {'affinity' if refined else 'plain CAM'}"
            print(f"| {name} | {' | '.join(cells)} | {mosaics} | {took:.0f} |", flush=True)


@torch.inference_mode()
def milliseconds(net: CAMNet, side: int, *, refined: bool, batch: int = 8) -> float:
    """Time of a picture, with a map of one class, in the fastest of several batches."""
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels, times = torch.zeros(batch, 1, dtype=torch.int64), []
    run = net.refined_maps if refined else net.class_maps
    for _ in range(15):
        start = time.perf_counter()
        run(images, classes=labels)
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / batch


@torch.inference_mode()
def cost(net: CAMNet, batch: int) -> float:
    """Time of refinement in parts of a forward pass with class maps, both at their fastest.

    They take turns, and the first of a turn changes: what else runs makes either only slower.
    """
    images = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, 1, dtype=torch.int64)
    runs = [net.class_maps, net.refined_maps]
    times: list[list[float]] = [[], []]
    for turn in range(600 // batch + 60):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            runs[which](images, classes=labels)
            times[which].append(time.perf_counter() - start)
    return min(times[1]) / min(times[0]) - 1


def _spread(scores: Sequence[float]) -> str:
    return f"{mean(scores):.1%} ± {100 * stdev(scores):.1f}"


if __name__ == "__main__":
    torch.set_num_threads(2)
    if any(argument.startswith("--") for argument in sys.argv[1:]):
        import any_folder

        any_folder.measure(any_folder.parser().parse_args())
        sys.exit()
    shared = Path(sys.argv[1])
    nets = {"mobilenetv2": lambda path: mobilenetv2(path, stride=16), "squeezenet": squeezenet}
    for name in sys.argv[2:] or nets:
        classifier = nets[name](shared / "weights").set_refine("affinity")
        costs = [f"{cost(classifier, batch):.1%} (batch of {batch})" for batch in (1, 16)]
        print(f"\n{name}: stages {', '.join(classifier.stages.layers)}; cost {', '.join(costs)}")
        print("\nimagenet_val300, the classifier as it is\n")
        table_of_classifiers(classifier, shared / "data" / "imagenet_val300")
        print("\nanimals3, heads on the frozen backbone\n")
        trunk = classifier
        if name == "squeezenet":  # its classifier's convolution belongs to the 1,000 classes
            trunk = camtrain.create_model(
                "torchvision/squeezenet1_1",
                3,
                weights=shared / "weights" / "squeezenet1_1.safetensors",
                neck=(),
            ).eval()
            trunk.set_refine("affinity")
        table_of_training(trunk, shared / "data" / "animals3")
