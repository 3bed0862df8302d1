"""What a network sees in pictures, now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from camtrain.inference.bundle import DEFAULT_THRESHOLD
from camtrain.localization import box_iou, boxes_from_heatmap
from camtrain.maps import picture_heatmaps
from camtrain.model.camnet import CAMNet
from camtrain.model.probe import evaluating
from camtrain.model.refine import BackboneOutput
from camtrain.training.watch.choice import Watched, read, read_input
from camtrain.training.watch.mistakes import Mistake
from camtrain.visualize import WatchedPicture

_RIGHT_IOU = 0.5


@dataclass(frozen=True, eq=False)
class Seen:
    """A class in a picture, as the network sees it.

    Attributes:
        label: The class.
        score: In [0, 1].
        class_map: (h, w), raw; the refined map where the network refines its maps.
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
        places: In it, of the pictures to watch; those whose files are damaged are passed over.
        count: How many to watch at most.
        net: Whose preprocessing pictures have that come without one.
        keeps_trunk: Whether the backbone stays as it is, so that what it makes of a picture can be
            kept.

    Attributes:
        watched: The watched pictures by place.
    """

    def __init__(
        self,
        dataset: Sequence[Any],
        places: Sequence[int],
        count: int,
        net: CAMNet,
        *,
        keeps_trunk: bool,
    ) -> None:
        self._dataset = dataset
        self.watched = self._read(places, net, count)
        # What follows is by place too; mistakes of which only the input is known have negative
        # ones, since nobody says which pictures they are.
        self._mistakes: dict[int, Watched] = {}
        self._features: dict[int, Tensor] = {}  # of the validation that is going on
        self._trunk: dict[int, Tensor] | None = {} if keeps_trunk else None

    def take(self, places: Tensor, features: Tensor) -> None:
        """Keep what a validation has computed of watched pictures.

        Args:
            places: (B,), of the pictures.
            features: (B, C, h, w), what the maps are made of, see ``BackboneOutput.packed``.
        """
        for row, place in enumerate(places.tolist()):
            if place in self.watched:
                self._features[place] = features[row].clone()

    def look(self, net: CAMNet, mistakes: Sequence[Mistake] = ()) -> Looks:
        """What the network sees now."""
        wrong = self._read_mistakes(mistakes, net)
        seen = self._look({**wrong, **self.watched}, net)
        self._features = {}
        return Looks(
            [seen[place] for place in self.watched],
            [(picture, seen[place]) for place, picture in wrong.items()],
        )

    def _read(self, places: Sequence[int], net: CAMNet, count: int) -> dict[int, Watched]:
        found: dict[int, Watched] = {}
        for place in places:
            picture = read(self._dataset, place, net) if len(found) < count else None
            if picture is not None:
                found[place] = picture
        return found

    def _read_mistakes(self, mistakes: Sequence[Mistake], net: CAMNet) -> dict[int, Watched]:
        """Those that are new; the same pictures tend to stay wrong."""
        known = {**self.watched, **self._mistakes}
        found: dict[int, Watched] = {}
        for number, mistake in enumerate(mistakes, start=1):
            place = mistake.place
            if mistake.image is not None:
                path = f"validation picture {place}"
                place = -number
                found[place] = read_input(mistake.image, mistake.label, net, path=path)
            elif place in known:
                found[place] = known[place]
            else:
                found |= self._read([place], net, 1)
            if mistake.features is not None:
                self._features[place] = mistake.features
        self._mistakes = {place: one for place, one in found.items() if place >= 0}
        return found

    def _look(self, pictures: Mapping[int, Watched], net: CAMNet) -> dict[int, Look]:
        """What the network sees, by place; pictures of one size go through it together."""
        by_size: dict[torch.Size, dict[int, Watched]] = {}
        for place, picture in pictures.items():
            by_size.setdefault(picture.image.shape, {})[place] = picture
        if self._trunk is not None:
            self._trunk = {place: self._trunk[place] for place in pictures if place in self._trunk}
        seen: dict[int, Look] = {}
        for some in by_size.values():
            looks = looks_at(some.values(), self._features_of(some, net), net)
            seen |= dict(zip(some, looks, strict=True))
        return seen

    def _features_of(self, pictures: Mapping[int, Watched], net: CAMNet) -> Tensor:
        """What the maps of pictures of one size are made of, packed, (B, C, h, w)."""

        def trunk(images: Tensor) -> Tensor:
            return net.backbone_output(images).packed()

        def neck(packed: Tensor) -> Tensor:
            backbone_output = BackboneOutput.unpacked(packed, net.vector_channels)
            return net.apply_neck(backbone_output).packed()

        def network(images: Tensor) -> Tensor:
            return neck(trunk(images))

        if self._trunk is not None:
            self._compute_new(pictures, self._trunk, net, trunk)
            return computed(net, neck, [self._trunk[place] for place in pictures])
        self._compute_new(pictures, self._features, net, network)
        device = net.head.weight.device
        return torch.stack([self._features[place].to(device) for place in pictures])

    @staticmethod
    def _compute_new(
        pictures: Mapping[int, Watched],
        known: dict[int, Tensor],
        net: CAMNet,
        part: Callable[[Tensor], Tensor],
    ) -> None:
        """Add what a part of the network makes of the pictures of which it is not known."""
        new = [place for place in pictures if place not in known]
        if new:
            made = computed(net, part, [pictures[place].image for place in new])
            known.update(zip(new, made, strict=True))


def computed(net: CAMNet, part: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """What a part of the network makes of inputs (C, h, w), in evaluation, float32."""
    device = net.head.weight.device
    batch = torch.stack(list(inputs)).to(device).contiguous(memory_format=torch.channels_last)
    with evaluating(net), torch.inference_mode(), torch.autocast(device.type, enabled=False):
        return part(batch)


def looks_at(pictures: Collection[Watched], features: Tensor, net: CAMNet) -> list[Look]:
    """What the network sees in pictures of which it has made packed ``features``, (B, C, h, w)."""
    device = net.head.weight.device
    labels = torch.tensor([one.labels[0] if one.labels else 0 for one in pictures], device=device)
    with evaluating(net), torch.inference_mode():
        backbone_output = BackboneOutput.unpacked(features, net.vector_channels)
        logits = net.classify(backbone_output.features)
        classes = torch.stack([labels, logits.argmax(1)], dim=1)  # (B, 2): true, predicted
        maps = net.display_maps(backbone_output, classes=classes).maps.cpu()
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
