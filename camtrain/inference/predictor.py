"""Using a trained network on pictures: classes, scores, heatmaps and boxes over the original."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camtrain.data import prepare, read_image, to_rgb
from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.inference.bundle import (
    DEFAULT_THRESHOLD,
    read_bundle,
    read_checkpoint,
    write_bundle,
)
from camtrain.inference.heatmap import picture_heatmaps
from camtrain.inference.network import Loaded, Network, Precision, TorchNetwork
from camtrain.localization.boxes import boxes_from_heatmap, check_threshold
from camtrain.model.cam import HeatmapMethod
from camtrain.model.camnet import CAMNet
from camtrain.preprocessing import Preprocessing
from camtrain.visualize import overlay

# By suffix, the module whose ``read(path, *, device, precision)`` gives a ``Loaded``.
_EXPORTED = {
    ".onnx": "camtrain.inference.onnx_network",
    ".pt2": "camtrain.inference.pt2_network",
}

Input = str | Path | Image.Image | NDArray[Any] | Tensor


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says about one picture and where it looks; every sequence is best class first.

    Attributes:
        names: Class names.
        scores: In [0, 1]: softmax over all K classes, or a sigmoid of each for multi-label.
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
        >>> import camtrain
        >>> net = camtrain.create_model("camtrain/digits", 10, in_chans=1)
        >>> predictor = camtrain.Predictor(net, threshold=0.3)
        >>> [prediction] = predictor(torch.rand(1, 3, 48, 80), top=2)
        >>> prediction.heatmaps.shape
        torch.Size([2, 48, 80])
    """

    def __init__(
        self,
        net: CAMNet | Network,
        *,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        threshold: float = DEFAULT_THRESHOLD,
        scores: Mapping[str, float] | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        """Take a network as it is, moved to ``device`` and to evaluation mode.

        Args:
            net: The network; names and preprocessing given here become its own. Or one that is
                ready on its device, which takes nothing but a threshold and scores.
            class_names: K names; by default the network's.
            preprocessing: By default the network's.
            threshold: Part of a heatmap's maximum that the pixels of a box exceed, in [0, 1).
            scores: What these weights reached, by logged name; ``save`` writes them along.
            device: Where to compute, see ``TorchNetwork``.
            precision: Of backbone and neck, ``fp32`` or ``bf16``, see ``TorchNetwork``.

        Raises:
            CamtrainValueError: Neither the network nor the caller knows the preprocessing, or the
                threshold lies outside [0, 1), or there is no such device or precision.
        """
        self.threshold = check_threshold(threshold)
        self.scores = dict(scores or {})
        if isinstance(net, CAMNet):
            if class_names is not None:
                net.name_classes(class_names)
            if preprocessing is not None:
                net.preprocessing = preprocessing
            net = TorchNetwork(net, device=device, precision=precision)
        self.network: Network = net
        self.net = net.net if isinstance(net, TorchNetwork) else None
        self.preprocessing = net.preprocessing

    def save(self, path: str | Path) -> None:
        """Write the network as a bundle, see ``camtrain.inference.bundle.write_bundle``."""
        if self.net is None:
            raise CamtrainValueError(
                "An exported network cannot become a bundle; copy its file, or save the checkpoint "
                "that it was exported from."
            )
        write_bundle(path, self.net, threshold=self.threshold, scores=self.scores)

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
        if method not in get_args(HeatmapMethod):
            raise CamtrainValueError(
                f"method must be one of {', '.join(get_args(HeatmapMethod))}, got {method!r}."
            )
        threshold = self.threshold if threshold is None else check_threshold(threshold)
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
        names = self.network.class_names
        while batch := list(islice(pictures, batch_size)):
            images = torch.stack([prepare(image, self.preprocessing) for image, _ in batch])
            logits, maps, classes = self.network.class_maps(images, top=top)
            is_multilabel = self.network.task == "multilabel"
            every = logits.sigmoid() if is_multilabel else logits.softmax(1)
            scores = every.gather(1, classes)
            for row, (image, path) in enumerate(batch):
                size_hw = (image.shape[1], image.shape[2])
                heat = picture_heatmaps(maps[row], self.preprocessing, size_hw, method=method).cpu()
                numbers = tuple(classes[row].tolist())
                yield Prediction(
                    names=tuple(names[number] for number in numbers),
                    scores=tuple(scores[row].tolist()),
                    classes=numbers,
                    heatmaps=heat,
                    boxes=tuple(boxes_from_heatmap(one, threshold) for one in heat),
                    threshold=threshold,
                    size_hw=size_hw,
                    image=image if image.dtype == torch.uint8 else (image * 255).round().byte(),
                    path=path,
                )


def load(
    path: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "fp32"
) -> Predictor:
    """The predictor of a bundle, of a ``.ckpt`` of this project, or of an ``.onnx`` or ``.pt2``.

    Args:
        path: What the file is, its suffix says.
        device: Where to compute, see ``TorchNetwork``.
        precision: Of backbone and neck, see ``TorchNetwork``.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: None of them, a bundle of a newer format version, or no such device or
            precision.
    """
    suffix = Path(path).suffix
    if suffix in _EXPORTED:
        reader = importlib.import_module(_EXPORTED[suffix])
        loaded: Loaded = reader.read(path, device=device, precision=precision)
        return Predictor(loaded.network, threshold=loaded.threshold, scores=loaded.scores)
    bundle = read_checkpoint(path) if suffix == ".ckpt" else read_bundle(path)
    return Predictor(
        bundle.net,
        threshold=bundle.threshold,
        scores=bundle.scores,
        device=device,
        precision=precision,
    )


def _pictures(inputs: Input | Iterable[Input]) -> Iterator[tuple[Tensor, str | None]]:
    """Each picture as (C, H, W), uint8 or float32 in [0, 1], with its path if it has one."""
    if isinstance(inputs, Tensor) and inputs.ndim == 4:
        inputs = list(inputs)
    is_one = isinstance(inputs, (str, Path, Image.Image, np.ndarray, Tensor))
    for item in inputs if isinstance(inputs, Iterable) and not is_one else [inputs]:
        yield _pixels(item), str(item) if isinstance(item, (str, Path)) else None


def _pixels(item: object) -> Tensor:
    if isinstance(item, (str, Path)):
        return read_image(item)
    if isinstance(item, Image.Image):
        item = np.asarray(to_rgb(item))
    if not isinstance(item, (np.ndarray, Tensor)):
        raise CamtrainTypeError(
            "Each input must be a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W), got "
            f"{type(item).__name__}."
        )
    pixels = item.detach().cpu() if isinstance(item, Tensor) else _from_array(item)
    is_float = pixels.is_floating_point()
    is_picture = pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.numel() > 0
    if not is_picture or not (is_float or pixels.dtype == torch.uint8):
        raise _refusal(item)
    if is_float and not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN fails too
        raise CamtrainValueError(
            "Float pixels must lie in [0, 1], raw and never normalized, got "
            f"{pixels.min().item():.3g} to {pixels.max().item():.3g}."
        )
    return pixels.float() if is_float else pixels


def _from_array(array: NDArray[Any]) -> Tensor:
    """(C, H, W) of an array (H, W, C) or (H, W)."""
    if array.ndim not in (2, 3) or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise _refusal(array)
    dtype = np.uint8 if array.dtype == np.uint8 else np.float32
    # A copy, since torch takes neither read-only memory nor the negative strides of BGR[..., ::-1].
    pixels = torch.from_numpy(np.array(array, dtype, order="C"))
    return pixels[None] if array.ndim == 2 else pixels.permute(2, 0, 1)


def _refusal(pixels: NDArray[Any] | Tensor) -> CamtrainValueError:
    return CamtrainValueError(
        "Pixels must be arrays (H, W, 3) or (H, W), or tensors (3, H, W) or (1, H, W), uint8 "
        f"0..255 or float 0..1, got {type(pixels).__name__} of shape {tuple(pixels.shape)} and "
        f"type {pixels.dtype}."
    )
