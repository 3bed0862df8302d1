"""What a network predicts for the watched pictures and for mistakes, with the class maps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from camtrain.labels import best_classes
from camtrain.localization import box_iou, boxes_from_heatmap
from camtrain.maps import picture_heatmaps
from camtrain.model.camnet import CAMNet
from camtrain.model.images import to_device
from camtrain.model.probe import evaluating
from camtrain.model.refine import BackboneOutput
from camtrain.thresholds import DEFAULT_THRESHOLD
from camtrain.training.watch.mistakes import Mistake
from camtrain.training.watch.pictures import ValidationPicture, load_picture, picture_from_input

_RIGHT_IOU = 0.5
_Output = TypeVar("_Output")


@dataclass(frozen=True, eq=False)
class ClassResult:
    """The score and the map of one class in one picture."""

    label: int
    score: float  # in [0, 1]
    class_map: Tensor  # (h, w), raw; the refined map where the network refines its maps
    heatmap: Tensor  # (H, W) in [0, 1], of the size of the picture
    boxes_xyxy: Tensor  # (n, 4), n <= 1: the largest box at the epoch's threshold, picture pixels


@dataclass(frozen=True, eq=False)
class PictureResult:
    """What the network predicts for one picture."""

    picture: ValidationPicture
    true: ClassResult | None  # of the true class, the first of several; None without a class
    predicted: ClassResult  # of the best class
    is_right: bool  # whether the prediction is one of the true classes, see `best_classes`
    # whether the box of the true class has an IoU of at least 0.5 with any true box;
    # None where the picture has no box
    is_located: bool | None

    @property
    def true_or_predicted(self) -> ClassResult:
        """The result for the true class; for the predicted one in a picture of no class."""
        return self.true or self.predicted


class WatchRunner:
    """Evaluates watched pictures and mistakes. It loads and computes nothing twice.

    Args:
        dataset: The data set of the validation.
        indices: Pictures to watch; those whose files are damaged are skipped.
        count: How many to watch at most.
        net: Its preprocessing is used for pictures that come without one.
        is_backbone_cached: Whether the backbone never changes, so that its output is kept.

    Attributes:
        pictures: The watched pictures by index.
    """

    def __init__(
        self,
        dataset: Sequence[Any],
        indices: Sequence[int],
        count: int,
        net: CAMNet,
        *,
        is_backbone_cached: bool,
    ) -> None:
        self._dataset = dataset
        self.pictures = self._load(indices, net, count)
        # These are by index too. A mistake of which only the input is known has a negative index,
        # since its batch does not tell which picture it is.
        self._mistakes: dict[int, ValidationPicture] = {}
        self._features: dict[int, Tensor] = {}  # of the validation that is going on
        self._backbone: dict[int, Tensor] | None = {} if is_backbone_cached else None

    def keep_features(self, indices: Tensor, features: Tensor) -> None:
        """Keep the features of watched pictures that a validation has computed.

        Args:
            indices: (B,), in the data set.
            features: (B, C, h, w), see ``BackboneOutput.packed``.
        """
        for row, index in enumerate(indices.tolist()):
            if index in self.pictures:
                self._features[index] = features[row].clone()

    def run(
        self,
        net: CAMNet,
        mistakes: Sequence[Mistake] = (),
        *,
        threshold: float = DEFAULT_THRESHOLD,
    ) -> tuple[list[PictureResult], list[PictureResult]]:
        """Results for the watched pictures, and for the mistakes, worst first.

        The boxes lie at ``threshold`` x maximum of the heatmap.
        """
        wrong_pictures = self._load_mistakes(mistakes, net)
        results = self._results({**wrong_pictures, **self.pictures}, net, threshold)
        self._features = {}
        watched = [results[index] for index in self.pictures]
        return watched, [results[index] for index in wrong_pictures]

    def _load(
        self, indices: Sequence[int], net: CAMNet, count: int
    ) -> dict[int, ValidationPicture]:
        """The first ``count`` pictures whose files are not damaged, by index."""
        pictures = ((index, load_picture(self._dataset, index, net)) for index in indices)
        return dict(islice(((i, picture) for i, picture in pictures if picture is not None), count))

    def _load_mistakes(
        self, mistakes: Sequence[Mistake], net: CAMNet
    ) -> dict[int, ValidationPicture]:
        """Pictures of the mistakes; only new ones are loaded: the same tend to stay wrong."""
        known_pictures = {**self.pictures, **self._mistakes}
        pictures: dict[int, ValidationPicture] = {}
        for number, mistake in enumerate(mistakes, start=1):
            index = mistake.index
            if mistake.image is not None:
                path = f"validation picture {index}"
                index = -number
                pictures[index] = picture_from_input(mistake.image, mistake.label, net, path=path)
            elif index in known_pictures:
                pictures[index] = known_pictures[index]
            else:
                pictures |= self._load([index], net, 1)
            if mistake.features is not None:
                self._features[index] = mistake.features
        self._mistakes = {index: picture for index, picture in pictures.items() if index >= 0}
        return pictures

    def _results(
        self, pictures: Mapping[int, ValidationPicture], net: CAMNet, threshold: float
    ) -> dict[int, PictureResult]:
        """Results by index; pictures of one size go through the network together."""
        by_size: dict[torch.Size, dict[int, ValidationPicture]] = {}
        for index, picture in pictures.items():
            by_size.setdefault(picture.image.shape, {})[index] = picture
        if self._backbone is not None:
            self._backbone = {i: out for i, out in self._backbone.items() if i in pictures}
        results: dict[int, PictureResult] = {}
        for group in by_size.values():
            features = self._features_of(group, net)
            group_results = evaluate_pictures(group.values(), features, net, threshold)
            results |= dict(zip(group, group_results, strict=True))
        return results

    def _features_of(self, pictures: Mapping[int, ValidationPicture], net: CAMNet) -> Tensor:
        """The packed features (B, C, h, w) of pictures of one size."""

        def backbone(images: Tensor) -> Tensor:
            return net.backbone_output(images).packed()

        def neck(packed: Tensor) -> Tensor:
            return net.apply_neck(BackboneOutput.unpacked(packed, net.vector_channels)).packed()

        if self._backbone is not None:
            _compute_missing(pictures, self._backbone, net, backbone)
            return compute(net, neck, [self._backbone[index] for index in pictures])
        _compute_missing(pictures, self._features, net, lambda images: neck(backbone(images)))
        device = net.head.weight.device
        return torch.stack([to_device(self._features[index], device) for index in pictures])


def _compute_missing(
    pictures: Mapping[int, ValidationPicture],
    outputs: dict[int, Tensor],
    net: CAMNet,
    part: Callable[[Tensor], Tensor],
) -> None:
    """Add the output of a part of the network for the pictures that lack it."""
    missing = [index for index in pictures if index not in outputs]
    if missing:
        computed = compute(net, part, [pictures[index].image for index in missing])
        outputs.update(zip(missing, computed, strict=True))


def compute(net: CAMNet, part: Callable[[Tensor], _Output], inputs: Sequence[Tensor]) -> _Output:
    """The output of a part of the network for inputs (C, h, w), in evaluation mode and float32."""
    device = net.head.weight.device
    batch = to_device(torch.stack(list(inputs)), device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    with evaluating(net), torch.inference_mode(), torch.autocast(device.type, enabled=False):
        return part(batch)


def evaluate_pictures(
    pictures: Collection[ValidationPicture], features: Tensor, net: CAMNet, threshold: float
) -> list[PictureResult]:
    """Results for pictures whose packed ``features`` (B, C, h, w) the network has computed."""
    device = net.head.weight.device
    labels = [picture.labels[0] if picture.labels else 0 for picture in pictures]
    with evaluating(net), torch.inference_mode():
        backbone_output = BackboneOutput.unpacked(features, net.vector_channels)
        logits = net.classify(backbone_output.features)
        true = to_device(torch.tensor(labels), device)
        classes = torch.stack([true, logits.argmax(1)], dim=1)  # (B, 2): true, predicted
        maps = net.display_maps(backbone_output, classes=classes).maps.cpu()
        all_scores = net.scores(logits)
        guesses = best_classes(all_scores)[0].tolist()
        scores = all_scores.gather(1, classes).tolist()
    return [
        _result(*values, threshold)
        for values in zip(pictures, maps, classes.tolist(), scores, guesses, strict=True)
    ]


def _result(
    picture: ValidationPicture,
    maps: Tensor,
    classes: list[int],
    scores: list[float],
    guess: int,
    threshold: float,
) -> PictureResult:
    """The result of a picture from the maps (2, h, w) of its true and its predicted class.

    ``guess`` is the predicted class, or -1 for none.
    """
    heatmaps = picture_heatmaps(maps, picture.preprocessing, picture.size_hw)
    true, predicted = (
        ClassResult(*values, boxes_from_heatmap(values[-1], threshold)[:1])
        for values in zip(classes, scores, maps, heatmaps, strict=True)
    )
    is_located = None
    if picture.labels and len(picture.boxes_xyxy):
        iou = box_iou(true.boxes_xyxy, picture.boxes_xyxy)
        is_located = bool((iou >= _RIGHT_IOU).any())
    return PictureResult(
        picture=picture,
        true=true if picture.labels else None,
        predicted=predicted,
        is_right=guess in (picture.labels or (-1,)),
        is_located=is_located,
    )


def blank_predictions(net: CAMNet, names: Sequence[str]) -> str | None:
    """The best class and its score for a black, a gray and a white picture, and for noise.

    A network that is as sure of them as of photographs has scores that say little. None where the
    preprocessing is unknown.
    """
    if net.preprocessing is None:
        return None
    mean, std = (
        torch.tensor(v).reshape(-1, 1, 1) for v in (net.preprocessing.mean, net.preprocessing.std)
    )
    shape = (len(mean), *net.preprocessing.size)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    blanks = {
        "a black picture": torch.zeros(shape),
        "a gray one": torch.full(shape, 0.5),
        "a white one": torch.ones(shape),
        "noise": noise,
    }
    pictures = [(pixels - mean) / std for pixels in blanks.values()]
    scores, classes = compute(net, lambda batch: net.scores(net(batch).float()), pictures).max(1)
    predictions = zip(scores.tolist(), classes.tolist(), blanks, strict=True)
    return ", ".join(f"{names[k]} {score:.2f} of {blank}" for score, k, blank in predictions)
