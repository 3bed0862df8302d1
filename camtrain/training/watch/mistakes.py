"""The pictures that a validation got wrong with the most confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from camtrain.data import Batch
from camtrain.labels import best_classes
from camtrain.model.camnet import CAMNet


@dataclass(frozen=True, eq=False)
class Mistake:
    """A picture whose best class is not one of its own, see ``best_classes``."""

    confidence: float  # in that class, in [0, 1]
    index: int  # of the picture in the data set; in the validation where `image` is given
    label: Tensor  # class number or multi-hot, (K,)
    image: Tensor | None = None  # the network's input, where the picture cannot be read again
    features: Tensor | None = None  # (C, h, w), see `BackboneOutput.packed`, if they are known


class Mistakes:
    """Keeps the ``count`` most confident mistakes of a validation."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._worst: list[Mistake] = []
        self._rank, self._processes, self._pictures_before = 0, 1, 0

    def reset(self, *, rank: int = 0, processes: int = 1) -> None:
        """Begin a validation, of which this process sees a part."""
        self._worst, self._pictures_before = [], 0
        self._rank, self._processes = rank, processes

    def update(
        self,
        net: CAMNet,
        logits: Tensor,
        batch: Sequence[Any],
        *,
        features: Tensor | None = None,
    ) -> None:
        """Add the mistakes of a batch (images, labels, ...) with its logits (B, K).

        A ``Batch`` knows the indices of its pictures. For ``features`` (B, C, h, w) see
        ``BackboneOutput.packed``.
        """
        first, self._pictures_before = self._pictures_before, self._pictures_before + len(logits)
        if not self.count or not len(logits):
            return
        predicted, confidences = best_classes(net.scores(logits.float()))
        labels = batch[1].to(predicted.device)
        if labels.ndim == 1:
            is_right = labels == predicted
        else:
            has_class = labels.gather(1, predicted.clamp_min(0)[:, None])[:, 0] > 0
            is_right = has_class == (predicted >= 0)
        wrong = confidences.masked_fill(is_right, -1.0)
        for row in wrong.sort(descending=True, stable=True).indices[: self.count].tolist():
            if is_right[row]:
                break
            index, image = (first + row) * self._processes + self._rank, None
            if isinstance(batch, Batch):
                index = int(batch.indices[row])
            else:
                image = batch[0][row].detach().float().cpu()
            picture_features = None if features is None else features[row].detach().cpu()
            confidence, label = confidences[row].item(), labels[row].cpu()
            self._worst.append(Mistake(confidence, index, label, image, picture_features))
        self._worst = _sort_mistakes(self._worst)[: self.count]

    def of_all_processes(self, trainer: Trainer) -> list[Mistake]:
        """The mistakes of all processes, worst first; call in every process."""
        gathered = [self._worst]
        if trainer.world_size > 1:
            gathered = [[]] * trainer.world_size
            torch.distributed.all_gather_object(gathered, self._worst)
        return _sort_mistakes([mistake for worst in gathered for mistake in worst])[: self.count]


def _sort_mistakes(mistakes: list[Mistake]) -> list[Mistake]:
    """The mistakes, the most confident first."""
    return sorted(mistakes, key=lambda mistake: (-mistake.confidence, mistake.index))
