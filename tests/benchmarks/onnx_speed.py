"""Images per second of an exported network, maps included, beside the plain network in torch.

Run: python tests/benchmarks/onnx_speed.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnxruntime
import torch
import torchvision

import camtrain
from camtrain.inference.export.write import export_network
from camtrain.inference.exported import ExportOptions

BATCH, SIZE_HW = 8, (224, 224)
OPTIONS = {
    "onnx, all maps": ExportOptions(),
    "onnx, top 5": ExportOptions(top=5),
    "onnx, top 5, heatmaps": ExportOptions(top=5, heatmaps=True),
}


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def sessions(folder: Path) -> dict[str, onnxruntime.InferenceSession]:
    """The exported resnet50 in onnxruntime, on as many threads as torch has."""
    preprocessing = camtrain.Preprocessing(SIZE_HW)
    net = camtrain.convert(torchvision.models.resnet50().eval(), preprocessing=preprocessing)
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = torch.get_num_threads()
    made = {}
    for number, (name, options) in enumerate(OPTIONS.items()):
        done = export_network(net, folder / f"{number}.onnx", options=options)
        made[name] = onnxruntime.InferenceSession(str(done.path), threads)
    return made


def print_speed(folder: Path, rounds: int) -> None:
    """The ways take turns, so that other work on the machine meets them all."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval()
    images = torch.randn(BATCH, 3, *SIZE_HW)
    ways: dict[str, Callable[[], object]] = {"torch, logits only": partial(model, images)}
    for name, session in sessions(folder).items():
        ways[name] = partial(session.run, None, {"images": images.numpy()})
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                times[name].append(seconds(ways[name]))
    plain = times["torch, logits only"][1:]  # the first round warms up
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(plain, values[1:], strict=True))
        rate = BATCH / statistics.median(values[1:])
        print(f"{name:24} {rate:6.1f} images/s   {ratio:.2f} times torch")


if __name__ == "__main__":
    print(
        f"resnet50, batch {BATCH}, {SIZE_HW[0]} x {SIZE_HW[1]}, {torch.get_num_threads()} threads"
    )
    with tempfile.TemporaryDirectory() as folder:
        print_speed(Path(folder), rounds=int(sys.argv[1]) if sys.argv[1:] else 15)
