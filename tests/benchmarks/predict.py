"""What the predictor costs beside the bare forward pass: pictures in memory, and JPEG files.

Run: python tests/benchmarks/predict.py [ROUNDS [FOLDER]]

Everything takes turns, so that other work on the machine meets all; ratios are medians over rounds.
Without a folder 48 JPEG files of 500 x 375 pixels are drawn.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import camtrain

BATCH = 8
PICTURES_HW = ((224, 224), (375, 500))


def picture(size_hw: tuple[int, int], seed: int) -> Tensor:
    """Smooth colours with some grain, (3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=size_hw, mode="bicubic")[0].clamp(0, 1)
    return ((0.9 * smooth + 0.1 * torch.rand(3, *size_hw, generator=generator)) * 255).byte()


def plain(network: Callable[[Tensor], object], images: Tensor, batches: int = 1) -> None:
    """The forward pass alone."""
    with torch.inference_mode():
        for _ in range(batches):
            network(images)


def predicted(predictor: camtrain.Predictor, pictures: list[Tensor] | str) -> None:
    """Classes, top-5 heatmaps at the size of the pictures, and boxes."""
    for prediction in predictor(pictures, top=5, batch_size=BATCH):
        assert len(prediction.heatmaps) == 5


def compare(title: str, ways: dict[str, Callable[[], None]], rounds: int, images: int) -> None:
    """Print images per second, and the time of each way as a part of the first one's."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way in list(ways)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            ways[way]()
            times[way].append(time.perf_counter() - start)
    print(title)
    first = next(iter(ways))
    for way, values in times.items():
        pairs = zip(values[1:], times[first][1:], strict=True)  # the first round warms up
        ratio = statistics.median(ours / plain for ours, plain in pairs)
        speed = images / statistics.median(values[1:])
        print(f"  {way:34} {speed:7.1f} images/s   time {ratio:5.3f}   throughput {1 / ratio:5.3f}")


def main(rounds: int, folder: str | None) -> None:
    """Measure and print."""
    classifier = torchvision.models.resnet50().eval()
    preprocessing = camtrain.Preprocessing()
    predictors = {
        precision: camtrain.Predictor(
            camtrain.convert(torchvision.models.resnet50().eval(), preprocessing=preprocessing),
            precision=precision,
        )
        for precision in ("fp32", "bf16")
    }
    images = torch.randn(BATCH, 3, 224, 224)
    print(f"resnet50, batch {BATCH}, {torch.get_num_threads()} threads, top-5 heatmaps and boxes")
    bare = "model(images), default layout"
    for size_hw in PICTURES_HW:
        pictures = [picture(size_hw, seed) for seed in range(BATCH)]
        ways = {bare: partial(plain, classifier, images)}
        for precision, predictor in predictors.items():
            ways[f"predictor, {precision}"] = partial(predicted, predictor, pictures)
        compare(f"pictures of {size_hw[0]} x {size_hw[1]} in memory", ways, rounds, BATCH)
    with tempfile.TemporaryDirectory() as drawn:
        if folder is None:
            for seed in range(6 * BATCH):
                pixels = picture((375, 500), seed).permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(Path(drawn, f"{seed:02}.jpg"), quality=92)
        files = len(list(camtrain.inference.pictures.expand_inputs(folder or drawn)))
        for precision, predictor in predictors.items():
            network = predictor.network
            last = images.to(memory_format=torch.channels_last)
            alone = partial(network.display_maps, top=1)
            forward = partial(plain, alone, last, batches=-(-files // BATCH))
            whole = partial(predicted, predictor, folder or drawn)
            ways = {"the predictor's forward pass alone": forward, "predictor": whole}
            compare(f"{files} JPEG files, {precision}", ways, max(2, rounds // 3), files)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 15, sys.argv[2] if sys.argv[2:] else None)
