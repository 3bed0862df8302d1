"""Decode and augment: camtrain against torchvision's ImageFolder with the PIL transforms.

Random resized crop to 224, mirror, normalize; one process, one thread, item by item, the two in
turns. Pictures of 500 and of 4,000 pixels are generated; a folder of photographs can be given for
the first, enlarged for the second.

Run: python tests/benchmarks/decoding.py [FOLDER]
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torchvision import transforms
from torchvision.datasets import ImageFolder as TorchvisionFolder

from camtrain.data import ImageFolder, PreparedDataset
from camtrain.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

QUALITY = 90


def generated(count: int) -> list[np.ndarray]:
    """Pictures, (375, 500, 3), with the 1/f spectrum of photographs."""
    rng = np.random.default_rng(0)
    ys, xs = (np.fft.fftfreq(side)[:, None] for side in (375, 500))
    amplitude = 1 / np.maximum(np.hypot(ys, xs.T), 1 / 500)[..., None]
    pictures = []
    for _ in range(count):
        phases = np.fft.fft2(rng.normal(size=(375, 500, 3)), axes=(0, 1))
        field = np.fft.ifft2(phases * amplitude, axes=(0, 1)).real
        field = field @ [[1, 0.9, 0.8], [0.2, 0, -0.2], [0.1, -0.2, 0.1]]  # mostly gray
        field = (field - field.mean()) / field.std()
        pictures.append((128 + 50 * field).clip(0, 255).astype(np.uint8))
    return pictures


def photographs(folder: Path, count: int) -> list[np.ndarray]:
    """Photographs of about 500 pixels, evenly spaced over those of a folder."""
    files = sorted(folder.rglob("*.jpg"))
    read = [cv2.imread(str(file)) for file in files[:: max(1, len(files) // (4 * count))]]
    return [picture for picture in read if 480 <= max(picture.shape) <= 500][:count]


def write(root: Path, pictures: list[np.ndarray], side: int) -> None:
    """JPEGs whose longer side is ``side``, in two class folders."""
    rng = np.random.default_rng(0)
    for number, picture in enumerate(pictures):
        scale = side / max(picture.shape)
        if scale > 1.5:
            size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
            large = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
            noisy = large + rng.normal(0, 4, large.shape).astype(np.float32)  # as a sensor's
            picture = noisy.clip(0, 255).astype(np.uint8)
        path = root / "train" / "ab"[number % 2] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def compare(root: Path, rounds: int) -> None:
    """Print images per second of both, and the median of the rounds' ratios."""
    pil = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    theirs = TorchvisionFolder(root / "train", pil)
    source = ImageFolder(root, "train", val_fraction=0.0, test_fraction=0.0)
    ours = PreparedDataset(source, Preprocessing(), augment="imagenet", reduced=True)
    whole = PreparedDataset(source, Preprocessing(), augment="imagenet")

    def seconds(read: Callable[[int], object]) -> float:
        for index in range(0, len(source), 4):  # the memory of the other has to be given back first
            read(index)
        start = time.process_time()  # of this process alone, whatever else the machine does
        for index in range(len(source)):
            read(index)
        return time.process_time() - start

    taken = []
    for epoch in range(rounds + 1):
        readers = (
            theirs.__getitem__,
            lambda index, epoch=epoch: ours[epoch, index],
            lambda index, epoch=epoch: whole[epoch, index],
        )
        taken.append([seconds(read) for read in readers])
    per_second = [
        len(source) / statistics.median(column) for column in zip(*taken[1:], strict=True)
    ]
    ratio, whole_ratio = (
        statistics.median(row[0] / row[column] for row in taken[1:]) for column in (1, 2)
    )
    size = sum(path.stat().st_size for path in root.rglob("*.jpg")) / len(source) / 1000
    print(
        f"{root.name:>5} px, {size:4.0f} kB: torchvision {per_second[0]:6.1f}/s, "
        f"camtrain {per_second[1]:6.1f}/s, ratio {ratio:.2f}; "
        f"decoded whole {per_second[2]:6.1f}/s, ratio {whole_ratio:.2f}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    pictures = photographs(folder, 24) if folder else generated(24)
    with tempfile.TemporaryDirectory() as temporary:
        for side, count, rounds in ((500, 24, 20), (4000, 4, 5)):
            write(Path(temporary) / str(side), pictures[:count], side)
            compare(Path(temporary) / str(side), rounds)
