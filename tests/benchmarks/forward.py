"""What class maps cost beside the plain forward pass, and a conversion beside the building.

Run: python tests/benchmarks/forward.py [ROUNDS]
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor

import camtrain
from camtrain import CAMNet

SIZE_HW = (224, 224)


def networks() -> dict[str, CAMNet]:
    """ResNet-50 with its own head, and VGG-16 with the paper's cut, neck and head."""
    return {
        "resnet50": camtrain.convert(torchvision.models.resnet50().eval()),
        "vgg16": camtrain.create_model("torchvision/vgg16", 1000, weights=None).eval(),
    }


def upsampled(net: CAMNet, images: Tensor) -> Tensor:
    """Maps of the top 5 classes, upsampled to the image."""
    maps = net.class_maps(images, top=5).maps
    return torch.nn.functional.interpolate(maps, size=SIZE_HW, mode="bilinear")


def heatmaps(net: CAMNet, images: Tensor) -> Tensor:
    """Heatmaps of the top 5 classes: upsampled to the image and normalized."""
    return camtrain.heatmaps(net.class_maps(images, top=5).maps, size=SIZE_HW)


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def print_forward(name: str, net: CAMNet, rounds: int) -> None:
    """Times and ratios; the three take turns, so that other work on the machine meets them all."""
    images = torch.randn(8, 3, *SIZE_HW, generator=torch.Generator().manual_seed(0))
    ways = {
        "forward": partial(net, images),
        "upsampled": partial(upsampled, net, images),
        "heatmaps": partial(heatmaps, net, images),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            # Every second round backwards, since what runs later finds the memory warmed up.
            for way in list(ways)[:: 1 if turn % 2 else -1]:
                times[way].append(seconds(ways[way]))
    for way, values in times.items():
        pairs = zip(values[1:], times["forward"][1:], strict=True)  # the first round warms up
        ratio = statistics.median(ours / plain for ours, plain in pairs)
        milliseconds = 1000 * statistics.median(values[1:])
        print(f"{name:12} {way:10} {milliseconds:8.1f} ms   ratio {ratio:.3f}")


def print_conversion() -> None:
    """Seconds that a conversion takes beyond building the network, the median of five."""
    for name in ("resnet50", "densenet121", "squeezenet1_1"):
        classifier = torchvision.models.get_model(name)
        times = [seconds(partial(camtrain.convert, classifier)) for _ in range(5)]
        print(f"{name:14} convert       {statistics.median(times):6.2f} s")
    build = partial(torchvision.models.get_model, "vgg16")
    make = partial(camtrain.create_model, "torchvision/vgg16", 1000, weights=None)
    times = [seconds(make) - seconds(build) for _ in range(5)]
    print(f"{'vgg16':14} create_model  {statistics.median(times):6.2f} s beyond torchvision's own")


if __name__ == "__main__":
    print(f"batch 8, {SIZE_HW[0]} x {SIZE_HW[1]}, {torch.get_num_threads()} threads")
    for name, net in networks().items():
        print_forward(name, net, rounds=int(sys.argv[1]) if sys.argv[1:] else 15)
    print_conversion()
