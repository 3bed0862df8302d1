"""Milliseconds per map of MaxBoxAcc, beside the benchmark's plain loop over 1,000 thresholds.

Run: python tests/benchmarks/localization.py
"""

import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from camtrain.localization.max_box_acc import hits_at_thresholds
from camtrain.localization.wsol import levels_of_thresholds, quantized, score_map


def plain_loop(levels: NDArray[np.uint8]) -> None:
    """Boxes as the benchmark finds them: one threshold after another."""
    for level in levels_of_thresholds(levels).tolist():
        _, foreground = cv2.threshold(levels, level, 255, cv2.THRESH_BINARY)
        contours, _ = cv2.findContours(foreground, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        if contours:
            cv2.boundingRect(max(contours, key=cv2.contourArea))


def milliseconds(function: Callable[[Any], Any], maps: list[Any]) -> float:
    """Mean time of a call, of the fastest of three rounds."""
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        for one in maps:
            function(one)
        rounds.append((time.perf_counter() - start) * 1000 / len(maps))
    return min(rounds)


if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    boxes_xyxy = torch.tensor([[100, 50, 400, 300]])
    for side in (7, 14):
        noise = torch.randn(50, side, side, generator=generator)
        maps = list(functional.avg_pool2d(noise, 3, stride=1, padding=1))  # rougher than real maps
        ours = milliseconds(lambda one: hits_at_thresholds(one, boxes_xyxy, (375, 500)), maps)
        plain = milliseconds(plain_loop, [quantized(score_map(one)) for one in maps])
        ratio = plain / ours
        print(f"{side} x {side}: {ours:.2f} ms per map, plain loop {plain:.1f}, ratio {ratio:.1f}")
