"""Milliseconds per map of the WSOL metrics, beside the benchmark's loop over 1,000 thresholds.

Run: python tests/benchmarks/localization.py [../shared] [--threads 2]

Ours is the ``update`` of a metric: resize, normalization, all 1,000 thresholds, the largest contour
and all contours, three IoU thresholds. The loop starts at the quantized map and has one thread, as
in the benchmark: once for the largest contour, once for all contours. Without the shared folder
only noise is measured. The fastest of five rounds counts, on both sides. Before, the hits of both
are held equal.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import camtrain
from camtrain import Preprocessing
from camtrain.data import ImageFolder, PreparedDataset, collate
from camtrain.localization import MaxBoxAccV2, PxAP
from camtrain.localization.boxes import inclusive_boxes
from camtrain.localization.contours import THRESHOLDS, quantize
from camtrain.maps import score_map

Pictures = tuple[Tensor, list[Tensor], Tensor]  # maps, boxes_xyxy, sizes_hw


def boxes_at(levels: NDArray[np.uint8], threshold: float, multiple: bool) -> NDArray[np.int64]:
    """The benchmark's boxes at one threshold: of the largest contour, or of all contours."""
    height, width = levels.shape
    level = int(threshold * levels.max())
    _, foreground = cv2.threshold(levels, level, 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(foreground, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.zeros((1, 4), dtype=np.int64)
    if not multiple:
        contours = [max(contours, key=cv2.contourArea)]
    boxes = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        boxes.append([x, y, min(x + w, width - 1), min(y + h, height - 1)])
    return np.array(boxes)


def inclusive_iou(boxes: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU of (n, 4) and (m, 4) inclusive boxes, (n, m)."""
    mins = np.maximum(boxes[:, None, :2], truth[:, :2])
    maxs = np.minimum(boxes[:, None, 2:], truth[:, 2:])
    intersection = np.maximum(maxs - mins + 1, 0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    truth_areas = (truth[:, 2:] - truth[:, :2] + 1).prod(axis=1)
    return intersection / (areas[:, None] + truth_areas - intersection)


def plain_loop(levels: NDArray[np.uint8], truth: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Hits (2, 3, 1000) as the benchmark finds them: one threshold after another."""
    best = [
        [
            inclusive_iou(boxes_at(levels, threshold, multiple), truth).max()
            for threshold in THRESHOLDS
        ]
        for multiple in (False, True)
    ]
    return np.array(best)[:, None] >= np.array([0.3, 0.5, 0.7])[:, None]


def loop_without_iou(levels: NDArray[np.uint8]) -> None:
    """The boxes alone: what is left of the loop when its IoUs cost nothing."""
    for multiple in (False, True):
        for threshold in THRESHOLDS:
            boxes_at(levels, threshold, multiple)


def milliseconds(function: Callable[[], Any], maps: int) -> float:
    """Time of a call per map, of the fastest of five rounds."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        function()
        rounds.append((time.perf_counter() - start) * 1000 / maps)
    return min(rounds)


def noise(side: int) -> Pictures:
    """Smoothed noise, rougher than the maps of a network."""
    generator = torch.Generator().manual_seed(0)
    maps = F.avg_pool2d(torch.randn(64, side, side, generator=generator), 3, stride=1, padding=1)
    return maps, [torch.tensor([[100, 50, 400, 300]])] * 64, torch.tensor([[375, 500]] * 64)


def oracle(shared: Path) -> Pictures:
    """The 61 score maps of the benchmark's evaluator, 21 of them edge cases."""
    inputs = np.load(shared / "oracles" / "wsol_metrics" / "inputs.npz")
    boxes = torch.from_numpy(inputs["boxes_imgidx_x0y0x1y1"])
    half_open = boxes[:, 1:] + torch.tensor([0, 0, 1, 1])
    boxes_xyxy = [half_open[boxes[:, 0] == index] for index in range(61)]
    sizes_hw = torch.from_numpy(inputs["image_sizes_wh"]).flip(1)
    return torch.from_numpy(inputs["scoremaps_u16"] / 65535), boxes_xyxy, sizes_hw


def class_maps(shared: Path, stride: int) -> Pictures:
    """The maps of a converted MobileNetV2's best guesses, of 64 photographs."""
    classifier = timm.create_model("mobilenetv2_100", pad_type="same")
    classifier.load_state_dict(load_file(shared / "weights" / "mobilenetv2_100_tfpad.safetensors"))
    preprocessing = Preprocessing(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
    net = camtrain.convert(classifier.eval(), stride=stride, preprocessing=preprocessing)
    source = ImageFolder(shared / "data" / "imagenet_val300", "test")
    dataset = PreparedDataset(source, preprocessing)
    batch = collate([dataset[index] for index in range(0, 256, 4)])
    with torch.inference_mode():
        maps = net.class_maps(batch.images, top=1).maps[:, 0]
    return maps, batch.boxes_xyxy, batch.sizes_hw


def measure(name: str, pictures: Pictures) -> None:
    """Hold our hits against those of the loop, then print a line of times."""
    maps, boxes_xyxy, sizes_hw = pictures
    levels = [quantize(score_map(one)) for one in maps]
    truth = [
        inclusive_boxes(boxes, (height, width)).numpy()
        for boxes, (height, width) in zip(boxes_xyxy, sizes_hw.tolist(), strict=True)
    ]
    few = list(zip(levels, truth, strict=True))[::8]
    metric = MaxBoxAccV2()
    metric.update(maps[::8], boxes_xyxy[::8], sizes_hw[::8])
    assert np.array_equal(metric.hits, sum(plain_loop(*one).astype(int) for one in few)), name

    ours = milliseconds(lambda: metric.update(*pictures), len(maps))
    loop = milliseconds(lambda: [plain_loop(*one) for one in few], len(few))
    boxes_only = milliseconds(lambda: [loop_without_iou(one) for one, _ in few], len(few))
    pxap, masks = PxAP(), [(one > 128).astype(np.uint8) for one in levels]
    pixels = milliseconds(lambda: pxap.update(maps, masks), len(maps))
    print(
        f"{name:20} {ours:9.2f} {loop:9.1f} {loop / ours:6.1f} {boxes_only:9.1f} "
        f"{boxes_only / ours:6.1f} {pixels:9.2f}",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("shared", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("ms per map                ours      loop  ratio   no IoUs  ratio      PxAP")
    kinds = {"noise, 7 x 7": noise(7), "noise, 14 x 14": noise(14)}
    if arguments.shared:
        kinds["the benchmark's maps"] = oracle(arguments.shared)
        kinds["class maps, 7 x 7"] = class_maps(arguments.shared, 32)
        kinds["class maps, 14 x 14"] = class_maps(arguments.shared, 16)
    for name, pictures in kinds.items():
        measure(name, pictures)
