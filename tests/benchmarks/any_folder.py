"""What ``coverage.py --root`` measures: any folder of pictures with boxes, with any network.

With a train split, heads are trained on the frozen backbone from image labels, three times, and
boxes of val choose the threshold. Without one, the classifier is measured as it is, and half of the
pictures is measured at the threshold of the other half, 100 times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import coverage
import torch
from imagenet_val300 import class_names
from torch import Tensor, nn

import camtrain
from camtrain import Preprocessing
from camtrain.data import ImageFolder
from camtrain.localization import MaxBoxAcc, auto_threshold, box_iou, boxes_from_heatmap
from camtrain.localization.centre import centre_iou
from camtrain.localization.max_box_acc import _middle_of_longest_run as middle_of_longest_run
from camtrain.localization.max_box_acc import outcomes_at_thresholds
from camtrain.localization.pointing import PointingGame
from camtrain.maps import heatmaps
from camtrain.model.camnet import CAMNet
from camtrain.model.refine import positive_maps, refine_maps
from camtrain.thresholds import DEFAULT_THRESHOLD

HALVINGS = 100
HEADER = (
    "in %                     accuracy  at 0.2      auto    chosen    oracle  pointing"
    "   chosen - plain: 95 % interval"
)
NAMES = ("accuracy", "fixed", "auto", "chosen", "oracle", "pointing")


@dataclass
class Maps:
    """Maps of the true classes of a split, and what is true of its pictures."""

    maps: Tensor
    logits: Tensor
    seen: coverage.Seen

    def metric(self) -> MaxBoxAcc:
        """``MaxBoxAcc`` of the split."""
        metric = MaxBoxAcc()
        metric.update(self.maps, self.seen.boxes_xyxy, self.seen.sizes_hw)
        return metric


def maps_of(head: CAMNet, seen: coverage.Seen, *, refined: bool) -> Maps:
    """The maps that are shown, plain or refined, in the foreground where the head learned it."""
    maps, logits = [], []
    with torch.inference_mode():
        for features, vectors, labels in zip(
            seen.features.split(16), seen.vectors.split(16), seen.labels.split(16), strict=True
        ):
            output = head.class_maps(features, classes=labels)
            shown = output.maps
            if head.foreground is not None:
                shown = positive_maps(shown) * head.foreground(vectors)
            maps.append((refine_maps(shown, vectors) if refined else shown)[:, 0])
            logits.append(output.logits)
    return Maps(torch.cat(maps).clone(), torch.cat(logits).clone(), seen)


@dataclass
class Scores:
    """Scores in [0, 1], and for each picture with boxes whether its box is right.

    Attributes:
        values: By name.
        right: (n,) float64 in [0, 1], at the chosen threshold; the mean over several of them.
    """

    values: dict[str, float]
    right: Tensor


def score(test: Maps, threshold: float | None) -> Scores:
    """Score the maps of a split at a chosen threshold, or at those of halves of the pictures."""
    pointing, hits, auto = PointingGame(), [], []
    pointing.update(test.maps, test.seen.boxes_xyxy, test.seen.sizes_hw)
    sizes_hw = test.seen.sizes_hw.tolist()
    for class_map, boxes, size_hw in zip(test.maps, test.seen.boxes_xyxy, sizes_hw, strict=True):
        if len(boxes):
            outcomes = outcomes_at_thresholds(class_map, boxes, tuple(size_hw), (0.5,))
            hits.append(outcomes.hits[0, 0])
            auto.append(hits[-1][outcomes.auto])
    every = torch.stack(hits).double()  # (n, 1000)
    right = right_by_halves(every) if threshold is None else every[:, round(1000 * threshold)]
    values = {
        "accuracy": (test.logits.argmax(1) == test.seen.labels).double().mean(),
        "fixed": every[:, round(1000 * DEFAULT_THRESHOLD)].mean(),
        "auto": torch.stack(auto).double().mean(),
        "chosen": right.mean(),
        "oracle": every.mean(0).max(),
        "pointing": pointing.compute()["pointing"],
    }
    return Scores({name: float(value) for name, value in values.items()}, right)


def right_by_halves(hits: Tensor) -> Tensor:
    """How often each picture is right at the threshold of half of the others, (n,), of (n, 1000).

    The mean over 100 random halvings; the threshold is chosen as ``MaxBoxAcc`` does.
    """
    generator, count = torch.Generator().manual_seed(0), len(hits)
    right, times = torch.zeros(count).double(), torch.zeros(count).double()
    for _ in range(HALVINGS):
        order = torch.randperm(count, generator=generator)
        chosen_on, used_on = order[: count // 2], order[count // 2 :]
        curve = hits[chosen_on].mean(0)
        best = middle_of_longest_run((curve == curve.max()).numpy())
        right[used_on] += hits[used_on, best]
        times[used_on] += 1
    return right / times


def print_row(name: str, scores: Sequence[Scores], plain: Sequence[Scores]) -> None:
    """Print means over the seeds, and the paired difference to the plain maps of the pictures."""
    cells = []
    for key in NAMES:
        values = [100 * each.values[key] for each in scores]
        spread = f"±{stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.1f}{spread}".rjust(10))
    own, other = (torch.stack([s.right for s in some]).mean(0) for some in (scores, plain))
    difference = 100 * (own - other)
    reach = 1.96 * difference.std() / len(difference) ** 0.5
    is_plain = scores[0] is plain[0]
    paired = "" if is_plain else f"   {difference.mean():+.1f} ± {reach:.1f}"
    print(f"{name:23}{''.join(cells)}{paired}", flush=True)


def print_breakdown(name: str, tests: Sequence[Maps], thresholds: Sequence[float]) -> None:
    """Print by size and number of things how many boxes are right, beside the centre box."""
    rows: dict[str, list[Mapping[str, float]]] = {}
    for test, threshold in zip(tests, thresholds, strict=True):
        whole = test.metric().breakdown(threshold)
        for group, row in (whole["by_size"] | whole["by_number"]).items():
            rows.setdefault(group, []).append(row)
    print(f"\n{name}, in %        pictures   boxes  centre")
    for group, seeds in rows.items():
        boxes = 100 * mean(row["boxes"] for row in seeds)
        print(f"{group:20}{seeds[0]['pictures']:8} {boxes:7.1f} {100 * seeds[0]['centre']:7.1f}")


def print_splits(tests: Sequence[Maps], thresholds: Sequence[float]) -> None:
    """Print what ``split=True`` changes where there is one thing, and where there are several."""
    for split in (False, True):
        first, every = ({False: [], True: []} for _ in range(2))
        for test, threshold in zip(tests, thresholds, strict=True):
            seen = test.seen
            for class_map, truth, size_hw in zip(
                test.maps, seen.boxes_xyxy, seen.sizes_hw.tolist(), strict=True
            ):
                if len(truth):
                    heatmap = heatmaps(class_map[None, None], size=tuple(size_hw))[0, 0]
                    boxes = boxes_from_heatmap(heatmap, threshold, split=split)
                    hits = box_iou(boxes, truth) >= 0.5
                    first[len(truth) > 1].append(float(hits[:1].any()))
                    every[len(truth) > 1].append(float(hits.any(0).double().mean()))
        cells = [
            f"{100 * mean(first[several]):.1f} ({100 * mean(every[several]):.1f})"
            for several in (False, True)
            if first[several]
        ]
        print(f"split={split!s:6} first box right (things that have a box): {', '.join(cells)}")


def milliseconds_of_auto(test: Maps) -> float:
    """Time of ``auto_threshold`` for a picture, the fastest of some."""
    heatmap = heatmaps(test.maps[:1, None], size=tuple(test.seen.sizes_hw[0].tolist()))[0, 0]
    times = []
    for _ in range(50):
        start = time.perf_counter()
        auto_threshold(heatmap)
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def measure(options: argparse.Namespace) -> None:
    """Print the tables of a folder."""
    root, has_train = options.root, (options.root / "train").is_dir()
    names = class_names(root) if (root / "labels.csv").is_file() else None
    train = ImageFolder(root, "train", class_names=names) if has_train else None
    net = camtrain.create_model(
        options.backbone,
        len(train.class_names) if train else None,
        weights=options.weights,
        neck=(),
        stride=options.stride,
        backbone_args=json.loads(options.backbone_args),
    ).eval()
    assert net.preprocessing is not None
    means, stds = net.preprocessing.mean, net.preprocessing.std
    if options.mean is not None:
        means, stds = (options.mean,) * 3, (options.std,) * 3
    # Squashed, so that maps cover the whole picture.
    net.preprocessing = Preprocessing(size=(options.size, options.size), mean=means, std=stds)
    net.set_refine("affinity").to(memory_format=torch.channels_last)
    test = coverage.look(net, ImageFolder(root, "test", class_names=names), options.size)
    pairs = zip(test.boxes_xyxy, test.sizes_hw.tolist(), strict=True)
    centre = [centre_iou(boxes, tuple(size)) >= 0.5 for boxes, size in pairs if len(boxes)]
    print(f"{root.name}, {options.backbone}, {options.size} pixels, {len(centre)} pictures")
    print(f"{HEADER}\ncentre box{'':43}{100 * mean(centre):10.1f}")
    if train is not None:
        _trained_rows(net, train, test, options)
    else:
        _classifier_rows(CAMNet(nn.Identity(), net.head), test)


def _classifier_rows(head: CAMNet, seen: coverage.Seen) -> None:
    """Plain and refined maps of the classifier as it is."""
    plain: list[Scores] = []
    for name, refined in (("plain", False), ("affinity", True)):
        test = maps_of(head, seen, refined=refined)
        scores = [score(test, None)]
        plain = plain or scores
        print_row(name, scores, plain)
    whole = [test.metric().calibrated_threshold()]
    print_breakdown("affinity, best threshold", [test], whole)
    print_splits([test], whole)
    print(f"auto_threshold: {milliseconds_of_auto(test):.2f} ms for a picture")


def _trained_rows(
    net: CAMNet, source: ImageFolder, test: coverage.Seen, options: argparse.Namespace
) -> None:
    """Heads on the frozen backbone: plain, affinity, foreground, both, and the second stage."""
    train = coverage.look(net, source, options.size, mirrored=True)
    val = coverage.look(net, ImageFolder(options.root, "val"), options.size)
    seeds = range(options.seeds)
    heads = [coverage.trained(coverage.plain(train), train, seed) for seed in seeds]
    plain: list[Scores] = []

    def row(name: str, heads: Sequence[CAMNet], *, refined: bool) -> tuple[list[Maps], list[float]]:
        tests = [maps_of(head, test, refined=refined) for head in heads]
        on_val = [maps_of(head, val, refined=refined) for head in heads]
        chosen = [maps.metric().calibrated_threshold() for maps in on_val]
        pairs = zip(tests, chosen, strict=True)
        scores = [score(maps, threshold) for maps, threshold in pairs]
        if not plain:
            plain.extend(scores)
        print_row(name, scores, plain)
        return tests, chosen

    row("plain", heads, refined=False)
    refined = row("affinity", heads, refined=True)
    step = coverage.in_foreground(train)
    things = [coverage.trained(step, train, seed, epochs=15, stages=net.stages) for seed in seeds]
    row("foreground", things, refined=False)
    row("foreground, affinity", things, refined=True)
    second = [
        coverage.trained(coverage.taught(train, teacher), train, seed, neck=256, epochs=15)
        for seed, teacher in zip(seeds, heads, strict=True)
    ]
    row("second stage, affinity", second, refined=True)
    print_breakdown("affinity", *refined)
    print_splits(*refined)


def parser() -> argparse.ArgumentParser:
    """The options of ``coverage.py --root``."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--root", type=Path, required=True, help="folder with boxes: {train,val,test}/CLASS/*")
    add("--backbone", required=True, help="as for camtrain.create_model")
    add("--weights", default="DEFAULT", help="DEFAULT, a name, or a file")
    add("--backbone_args", default="{}", help="as JSON")
    add("--stride", type=int, default=16)
    add("--size", type=int, default=224, help="of the network's input, in pixels")
    add("--mean", type=float, help="of every channel, where the weights need another")
    add("--std", type=float, default=1.0, help="likewise")
    add("--seeds", type=int, default=3, help="of trained heads")
    return parser
