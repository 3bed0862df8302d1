"""The pictures that a validation got wrong with the most confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from camtrain.data import Batch
from camtrain.model.camnet import CAMNet


class Mistake(NamedTuple):
    """A picture whose best class is none of its own.

    Attributes:
        confidence: Score of that class, in [0, 1].
        place: Of the picture in the data set, or where only its input is known, in the validation.
        label: Class number or multi-hot, (K,).
        image: The network's input, (C, h, w), where the picture cannot be read again.
        features: What the maps are made of, packed, (C, h, w), if that is known.
    """

    confidence: float
    place: int
    label: Tensor
    image: Tensor | None = None
    features: Tensor | None = None


class Mistakes:
    """Keeps the most confident mistakes of a validation; neither batches nor processes matter.

    Args:
        count: How many to keep.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept: list[Mistake] = []
        self._rank, self._processes, self._met = 0, 1, 0

    def begin(self, *, rank: int = 0, processes: int = 1) -> None:
        """Begin a validation, which this process shares with others."""
        self._kept, self._met = [], 0
        self._rank, self._processes = rank, processes

    def update(
        self,
        net: CAMNet,
        logits: Tensor,
        batch: Sequence[Any],
        *,
        features: Tensor | None = None,
    ) -> None:
        """Look through a batch.

        Args:
            net: Whose logits they are.
            logits: (B, K).
            batch: Images, labels, ...; a ``Batch`` knows the places of its pictures.
            features: (B, C, h, w), what the maps are made of, see ``BackboneOutput.packed``.
        """
        first, self._met = self._met, self._met + len(logits)
        if not self.count or not len(logits):
            return
        confidences, predicted = net.scores(logits.float()).max(1)
        labels = batch[1].to(predicted.device)
        if labels.ndim == 1:
            is_right = labels == predicted
        else:
            is_right = labels.gather(1, predicted[:, None])[:, 0] > 0
        wrong = confidences.masked_fill(is_right, -1.0)
        for row in wrong.sort(descending=True, stable=True).indices[: self.count].tolist():
            if is_right[row]:
                break
            place, image = (first + row) * self._processes + self._rank, None
            if isinstance(batch, Batch):
                place = int(batch.indices[row])
            else:
                image = batch[0][row].detach().float().cpu()
            mistake = Mistake(
                confidence=confidences[row].item(),
                place=place,
                label=labels[row].cpu(),
                image=image,
                features=None if features is None else features[row].detach().cpu(),
            )
            self._kept.append(mistake)
        self._kept = _worst(self._kept, self.count)

    def of_all_processes(self, trainer: Trainer) -> list[Mistake]:
        """The worst first; every process must ask."""
        kept = [self._kept]
        if trainer.world_size > 1:
            kept = [[]] * trainer.world_size
            torch.distributed.all_gather_object(kept, self._kept)
        return _worst([one for some in kept for one in some], self.count)


def _worst(mistakes: list[Mistake], count: int) -> list[Mistake]:
    return sorted(mistakes, key=lambda one: (-one.confidence, one.place))[:count]
