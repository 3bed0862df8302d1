"""What a network sees in pictures, now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from camtrain.inference.bundle import DEFAULT_THRESHOLD
from camtrain.inference.heatmap import picture_heatmaps
from camtrain.localization import box_iou, boxes_from_heatmap
from camtrain.model.camnet import CAMNet
from camtrain.model.probe import evaluating
from camtrain.training.watching.choice import Watched, read, read_input
from camtrain.training.watching.mistakes import Mistake
from camtrain.visualize import WatchedPicture

_RIGHT_IOU = 0.5


@dataclass(frozen=True, eq=False)
class Seen:
    """A class in a picture, as the network sees it.

    Attributes:
        label: The class.
        score: In [0, 1].
        class_map: (h, w), raw.
        heatmap: (H, W) in [0, 1], over the picture.
        boxes_xyxy: (n, 4), n <= 1: the largest box at the threshold 0.2, in pixels of the picture.
    """

    label: int
    score: float
    class_map: Tensor
    heatmap: Tensor
    boxes_xyxy: Tensor


@dataclass(frozen=True, eq=False)
class Look:
    """What the network sees in a picture.

    Attributes:
        true: The true class, the first of several; None for a picture of no class.
        predicted: The best class.
        is_right: Whether the prediction is one of the true classes.
        is_located: Whether the box of the true class is right (GT-known: IoU of at least 0.5 with
            any true box); None where the picture has no box.
    """

    true: Seen | None
    predicted: Seen
    is_right: bool
    is_located: bool | None


class Looks(NamedTuple):
    """What the network sees in the watched pictures, and in the mistakes, worst first."""

    watched: list[Look]
    mistakes: list[tuple[Watched, Look]]


class Looker:
    """Looks at the watched pictures, and at mistakes; reads and computes nothing twice.

    Args:
        dataset: Of the validation.
        indices: Of the pictures to watch; those whose files are damaged are left out.
        net: Whose preprocessing pictures have that come without one.
        keeps_trunk: Whether the backbone stays as it is, so that what it makes of a picture can be
            kept.
    """

    def __init__(
        self, dataset: Sequence[Any], indices: Sequence[int], net: CAMNet, *, keeps_trunk: bool
    ) -> None:
        self._dataset = dataset
        self._watched = self._read(indices, net)
        self._mistakes: dict[int, Watched] = {}
        self._features: dict[int, Tensor] = {}  # by place, of the validation that is going on
        self._trunk: dict[int, Tensor] | None = {} if keeps_trunk else None

    @property
    def pictures(self) -> list[Watched]:
        """The watched ones."""
        return list(self._watched.values())

    def take(self, places: Tensor, features: Tensor) -> None:
        """Keep what a validation has computed of watched pictures.

        Args:
            places: (B,), of the pictures.
            features: (B, C, h, w), what the class maps are made of.
        """
        for row, place in enumerate(places.tolist()):
            if place in self._watched:
                self._features[place] = features[row].clone()

    def look(self, net: CAMNet, mistakes: Sequence[Mistake] = ()) -> Looks:
        """What the network sees now."""
        wrong = self._read_mistakes(mistakes, net)
        everything = {**wrong, **self._watched}
        self._features |= {m.place: m.features for m in mistakes if m.features is not None}
        features = self._features_of(everything, net)
        seen = dict(zip(everything, looks_at(everything.values(), features, net), strict=True))
        self._features = {}
        return Looks(
            [seen[place] for place in self._watched],
            [(picture, seen[place]) for place, picture in wrong.items()],
        )

    def _read(self, places: Sequence[int], net: CAMNet) -> dict[int, Watched]:
        found = {place: read(self._dataset, place, net) for place in places}
        return {place: picture for place, picture in found.items() if picture is not None}

    def _read_mistakes(self, mistakes: Sequence[Mistake], net: CAMNet) -> dict[int, Watched]:
        """Those that are new; the same pictures tend to stay wrong."""
        known = {**self._watched, **self._mistakes}
        found = {}
        for mistake in mistakes:
            place = mistake.place
            if mistake.image is not None:
                path = f"picture {place}"
                found[place] = read_input(mistake.image, mistake.label, net, path=path)
            elif place in known:
                found[place] = known[place]
            else:
                found |= self._read([place], net)
        self._mistakes = found
        return found

    def _features_of(self, pictures: Mapping[int, Watched], net: CAMNet) -> Tensor:
        """What the class maps of pictures are made of, (B, C, h, w)."""
        if self._trunk is not None:
            new = [place for place in pictures if place not in self._trunk]
            if new:
                made = computed(net, net.backbone, [pictures[place].image for place in new])
                self._trunk |= dict(zip(new, made, strict=True))
            self._trunk = {place: self._trunk[place] for place in pictures}
            return computed(net, net.neck, list(self._trunk.values()))
        new = [place for place in pictures if place not in self._features]
        if new:
            made = computed(net, net.features, [pictures[place].image for place in new])
            self._features |= dict(zip(new, made, strict=True))
        device = net.head.weight.device
        return torch.stack([self._features[place].to(device) for place in pictures])


def computed(net: CAMNet, part: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """What a part of the network makes of inputs (C, h, w), in evaluation, float32."""
    device = net.head.weight.device
    batch = torch.stack(list(inputs)).to(device).contiguous(memory_format=torch.channels_last)
    with evaluating(net), torch.inference_mode(), torch.autocast(device.type, enabled=False):
        return part(batch)


def looks_at(pictures: Collection[Watched], features: Tensor, net: CAMNet) -> list[Look]:
    """What the network sees in pictures of which it has made ``features``, (B, C, h, w)."""
    device = net.head.weight.device
    labels = torch.tensor([one.labels[0] if one.labels else 0 for one in pictures], device=device)
    with evaluating(net), torch.inference_mode():
        logits = net.classify(features)
        classes = torch.stack([labels, logits.argmax(1)], dim=1)  # (B, 2): true, predicted
        maps = net.maps_of(features, classes=classes).maps.cpu()
        scores = net.scores(logits).gather(1, classes).tolist()
    return [
        _look(one, pair, both, score)
        for one, pair, both, score in zip(pictures, maps, classes.tolist(), scores, strict=True)
    ]


def _look(picture: Watched, maps: Tensor, classes: list[int], scores: list[float]) -> Look:
    heat = picture_heatmaps(maps, picture.preprocessing, picture.size_hw)
    seen = [
        Seen(label, score, class_map, one, boxes_from_heatmap(one, DEFAULT_THRESHOLD)[:1])
        for label, score, class_map, one in zip(classes, scores, maps, heat, strict=True)
    ]
    is_located = None
    if picture.labels and len(picture.boxes_xyxy):
        iou = box_iou(seen[0].boxes_xyxy, picture.boxes_xyxy)
        is_located = bool((iou >= _RIGHT_IOU).any())
    return Look(
        true=seen[0] if picture.labels else None,
        predicted=seen[1],
        is_right=classes[1] in picture.labels,
        is_located=is_located,
    )


def as_row(picture: Watched, look: Look, names: Sequence[str]) -> WatchedPicture:
    """A picture as contact sheets show it."""
    true, predicted = look.true, look.predicted
    return WatchedPicture(
        image=picture.shown,
        true_heatmap=torch.zeros(picture.size_hw) if true is None else true.heatmap,
        predicted_heatmap=predicted.heatmap,
        true_boxes_xyxy=picture.boxes_xyxy,
        predicted_boxes_xyxy=torch.zeros(0, 4) if true is None else true.boxes_xyxy,
        true_name="no class" if true is None else names[true.label],
        predicted_name=names[predicted.label],
        true_score=0.0 if true is None else true.score,
        predicted_score=predicted.score,
        is_right=look.is_right,
    )
