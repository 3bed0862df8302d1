"""Images per second of five heatmaps at image size: camtrain, torch-cam and pytorch-grad-cam.

Run: pip install torchcam grad-cam; python tests/benchmarks/peers.py [ROUNDS]

Each is used as its own README shows, on the same resnet50 and the same 8 images; torch-cam also
with the network laid out channels last, as camtrain lays it out. The classes are each image's five
best. camtrain's predictor also prepares the pictures and finds the boxes. All take turns.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import camtrain

TOP, SIZE_HW = 5, (224, 224)


def ours(predictor: camtrain.Predictor, pixels: Tensor) -> int:
    """Number of heatmaps."""
    return sum(len(prediction.heatmaps) for prediction in predictor(pixels, top=TOP))


def ours_in_memory(net: camtrain.CAMNet, images: Tensor) -> int:
    """Without the predictor: one forward pass of prepared images, and their heatmaps."""
    with torch.inference_mode():
        maps = net.class_maps(images, top=TOP).maps
        return len(camtrain.heatmaps(maps, size=SIZE_HW).flatten(0, 1))


def torch_cam(model: nn.Module, images: Tensor) -> int:
    """Its extractor takes one class per image at a time; the maps are upsampled as it shows."""
    from torchcam.methods import CAM

    count = 0
    with CAM(model, "layer4", "fc") as extractor, torch.inference_mode():
        logits = model(images)
        for classes in logits.topk(TOP).indices.T.tolist():
            [maps] = extractor(classes, logits)
            heat = F.interpolate(maps[:, None], size=SIZE_HW, mode="bilinear")
            count += len(heat)
    return count


def grad_cam(model: nn.Module, images: Tensor) -> int:
    """One forward and one backward pass per class."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with torch.inference_mode():
        best = model(images).topk(TOP).indices.T.tolist()
    count = 0
    with GradCAM(model=model, target_layers=[model.layer4]) as cam:
        for classes in best:
            targets = [ClassifierOutputTarget(number) for number in classes]
            count += len(cam(input_tensor=images, targets=targets))
    return count


def main(rounds: int) -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    model = torchvision.models.resnet50().eval()
    last = torchvision.models.resnet50().eval().to(memory_format=torch.channels_last)
    own = camtrain.convert(torchvision.models.resnet50().eval())
    predictor = camtrain.Predictor(own, preprocessing=camtrain.Preprocessing(SIZE_HW))
    pixels = torch.randint(256, (8, 3, *SIZE_HW), dtype=torch.uint8)
    images = torch.randn(8, 3, *SIZE_HW)
    images_last = images.to(memory_format=torch.channels_last)
    ways: dict[str, Callable[[], int]] = {
        "camtrain, predictor": partial(ours, predictor, pixels),
        "camtrain, class_maps and heatmaps": partial(ours_in_memory, own, images_last),
        "torch-cam": partial(torch_cam, model, images),
        "torch-cam, channels last": partial(torch_cam, last, images_last),
        "pytorch-grad-cam": partial(grad_cam, model, images),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way in list(ways)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            found = ways[way]()
            times[way].append(time.perf_counter() - start)
            assert found == 8 * TOP, way
    print(f"resnet50, 8 images, {torch.get_num_threads()} threads, {TOP} heatmaps of {SIZE_HW}")
    first = times["camtrain, predictor"][1:]
    for way, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values[1:], first, strict=True))
        speed = 8 / statistics.median(values[1:])
        print(f"  {way:34} {speed:7.1f} images/s   time {ratio:6.2f} of the predictor's")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 5)
