"""Using a trained network on pictures: classes, scores, heatmaps and boxes over the original."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camtrain.data import prepare, read_image, to_rgb
from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.inference.bundle import DEFAULT_THRESHOLD, names_of, read_bundle, write_bundle
from camtrain.inference.heatmap import picture_heatmaps
from camtrain.localization import boxes_from_heatmap
from camtrain.model.cam import HeatmapMethod
from camtrain.model.camnet import CAMNet
from camtrain.preprocessing import Preprocessing
from camtrain.visualize import overlay

Input = str | Path | Image.Image | NDArray[Any] | Tensor


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says about one picture and where it looks; every sequence is best class first.

    Attributes:
        names: Class names.
        scores: In [0, 1], softmax over all K classes.
        classes: Class numbers.
        heatmaps: (k, H, W), float32 in [0, 1], over the original picture.
        boxes: Per class (n, 4), int64, half-open xyxy in pixels of the original picture, largest
            first.
        threshold: Part of a heatmap's maximum that the pixels of a box exceed.
        size_hw: (H, W) of the original picture.
        image: (3, H, W) or (1, H, W), uint8, the original picture.
        path: Where the picture came from, or None.
    """

    names: tuple[str, ...]
    scores: tuple[float, ...]
    classes: tuple[int, ...]
    heatmaps: Tensor
    boxes: tuple[Tensor, ...]
    threshold: float
    size_hw: tuple[int, int]
    image: Tensor
    path: str | None

    def overlay(self, rank: int = 0, *, colormap: str = "viridis") -> Image.Image:
        """The picture under the heatmap of the class at this rank, 0 being the best."""
        return overlay(self.image, self.heatmaps[rank], colormap=colormap)


class Predictor:
    """A network ready to use: pictures in, predictions out, lazily and in order.

    Example:
        >>> net = create_model("camtrain/digits", 10, in_chans=1)
        >>> predictor = Predictor(net, threshold=0.3)
        >>> [prediction] = predictor(torch.rand(1, 3, 48, 80), top=2)
        >>> prediction.heatmaps.shape
        torch.Size([2, 48, 80])
    """

    def __init__(
        self,
        net: CAMNet,
        *,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        threshold: float = DEFAULT_THRESHOLD,
        device: str | torch.device = "cpu",
    ) -> None:
        """Take a network as it is, moved to ``device`` and to evaluation mode.

        Args:
            net: The network; names and preprocessing given here become its own.
            class_names: K names; by default the network's.
            preprocessing: By default the network's.
            threshold: Part of a heatmap's maximum that the pixels of a box exceed, in [0, 1).
            device: Where to compute.

        Raises:
            CamtrainValueError: Neither the network nor the caller knows the preprocessing.
        """
        if class_names is not None:
            net.name_classes(class_names)
        if preprocessing is not None:
            net.preprocessing = preprocessing
        if net.preprocessing is None:
            raise CamtrainValueError(
                "preprocessing must be given, since this network does not know its own; pass "
                "camtrain.Preprocessing(size=(H, W), mean=..., std=...)."
            )
        self.device = torch.device(device)
        self.net = net.to(self.device).to(memory_format=torch.channels_last).eval()
        self.threshold = threshold
        self.preprocessing = net.preprocessing

    def save(self, path: str | Path) -> None:
        """Write the network as a bundle, see ``camtrain.inference.bundle.write_bundle``."""
        write_bundle(path, self.net, threshold=self.threshold)

    def __call__(
        self,
        inputs: Input | Iterable[Input],
        *,
        top: int = 5,
        threshold: float | None = None,
        method: HeatmapMethod = "minmax",
        batch_size: int = 8,
    ) -> Iterator[Prediction]:
        """Predictions, one per picture, computed as they are asked for.

        Args:
            inputs: One or many: paths, PIL images, arrays (H, W, 3) or (H, W), tensors (3, H, W) or
                (B, 3, H, W); raw pixels, uint8 0..255 or float 0..1, of any sizes.
            top: Classes per picture, best first; min(top, K).
            threshold: Instead of the predictor's own, in [0, 1).
            method: Normalization of the heatmaps, see ``camtrain.heatmaps``.
            batch_size: Pictures per forward pass.

        Raises:
            CamtrainTypeError: An input of another type.
            CamtrainValueError: A picture that cannot be read, or an option that cannot work.
            CamtrainFileNotFoundError: A path that does not exist.
        """
        if top < 1 or batch_size < 1:
            raise CamtrainValueError(
                f"top and batch_size must be at least 1, got top={top}, batch_size={batch_size}."
            )
        threshold = self.threshold if threshold is None else threshold
        # A call checks its options at once; the pictures are read one batch at a time.
        return self._predict(_pictures(inputs), top, threshold, method, batch_size)

    def _predict(
        self,
        pictures: Iterator[tuple[Tensor, str | None]],
        top: int,
        threshold: float,
        method: HeatmapMethod,
        batch_size: int,
    ) -> Iterator[Prediction]:
        names = names_of(self.net)
        while batch := list(islice(pictures, batch_size)):
            images = torch.stack([prepare(image, self.preprocessing) for image, _ in batch])
            with torch.inference_mode():
                images = images.to(self.device, memory_format=torch.channels_last)
                logits, maps, classes = self.net.class_maps(images, top=top)
            scores = logits.softmax(1).gather(1, classes)
            for row, (image, path) in enumerate(batch):
                size_hw = (image.shape[1], image.shape[2])
                heat = picture_heatmaps(maps[row], self.preprocessing, size_hw, method=method).cpu()
                numbers = tuple(classes[row].tolist())
                yield Prediction(
                    names=tuple(names[number] for number in numbers),
                    scores=tuple(scores[row].tolist()),
                    classes=numbers,
                    heatmaps=heat.clone(),  # an ordinary tensor, not one of inference mode
                    boxes=tuple(boxes_from_heatmap(one, threshold) for one in heat),
                    threshold=threshold,
                    size_hw=size_hw,
                    image=image if image.dtype == torch.uint8 else (image * 255).round().byte(),
                    path=path,
                )


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Predictor:
    """The predictor of a bundle.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: Not a bundle, or one of a newer format version.
    """
    bundle = read_bundle(path)
    return Predictor(bundle.net, threshold=bundle.threshold, device=device)


def _pictures(inputs: Input | Iterable[Input]) -> Iterator[tuple[Tensor, str | None]]:
    """Each picture as (C, H, W), uint8 or float in [0, 1], with its path if it has one."""
    if isinstance(inputs, Tensor) and inputs.ndim == 4:
        inputs = list(inputs)
    if isinstance(inputs, (str, Path, Image.Image, np.ndarray, Tensor)):
        inputs = [inputs]
    for item in inputs:
        if isinstance(item, (str, Path)):
            yield read_image(item), str(item)
        elif isinstance(item, Image.Image):
            yield torch.from_numpy(np.array(to_rgb(item))).permute(2, 0, 1), None
        elif isinstance(item, np.ndarray) and item.ndim in (2, 3):
            pixels = torch.from_numpy(item)
            yield _checked(pixels[None] if item.ndim == 2 else pixels.permute(2, 0, 1)), None
        elif isinstance(item, Tensor) and item.ndim == 3:
            yield _checked(item), None
        else:
            raise CamtrainTypeError(
                "Each input must be a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W), "
                "got "
                f"{type(item).__name__}{getattr(item, 'shape', '')}."
            )


def _checked(pixels: Tensor) -> Tensor:
    if pixels.shape[0] not in (1, 3) or not (
        pixels.dtype == torch.uint8 or pixels.is_floating_point()
    ):
        raise CamtrainValueError(
            "Pixels must have 1 or 3 channels, uint8 0..255 or float 0..1, arrays (H, W, C) and "
            "tensors "
            f"(C, H, W); got (C, H, W) = {tuple(pixels.shape)}, {pixels.dtype}."
        )
    if pixels.is_floating_point() and (pixels.numel() and (pixels.min() < 0 or pixels.max() > 1)):
        raise CamtrainValueError(
            "Float pixels must lie in [0, 1], raw and never normalized, got "
            f"{float(pixels.min()):.3g} to "
            f"{float(pixels.max()):.3g}."
        )
    return pixels
