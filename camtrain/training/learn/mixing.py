"""Mixup and cutmix: pictures mixed within a batch, and their labels with them."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms import v2

from camtrain.errors import CamtrainValueError
from camtrain.labels import Task
from camtrain.training.learn.multilabel import multi_hot


class Mixing:
    """Mixes each picture of a batch with the one before it, by torchvision's mixup or cutmix.

    The random numbers are torch's, so that they follow from the seed of the step. Of several ways
    each batch takes one, with equal chances.

    Args:
        num_classes: K.
        task: ``multiclass`` or ``multilabel``.
        mixup: alpha of the Beta distribution of the shares; 0 for no mixup.
        cutmix: Likewise.

    Raises:
        CamtrainValueError: An alpha is negative.
    """

    def __init__(self, num_classes: int, task: Task, *, mixup: float, cutmix: float) -> None:
        """Choose the ways."""
        if mixup < 0 or cutmix < 0:
            raise CamtrainValueError(
                f"mixup and cutmix are shapes of a Beta distribution, at least 0, got {mixup} and "
                f"{cutmix}; 0 switches them off, 0.2 and 1 are usual."
            )
        self.num_classes = num_classes
        self.task = task
        ways = [
            kind(alpha=alpha, num_classes=num_classes)
            for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha > 0
        ]
        self._mix = v2.RandomChoice(ways) if ways else None

    def __bool__(self) -> bool:
        """Whether anything is mixed."""
        return self._mix is not None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed pictures, and the shares of their classes.

        Args:
            images: (B, C, H, W).
            labels: (B,), or for multi-label (B, K).

        Returns:
            images (B, C, H, W) and targets (B, K), float32 in [0, 1].
        """
        assert self._mix is not None
        if self.task == "multilabel":
            labels = multi_hot(labels, self.num_classes)
        mixed, targets = self._mix(images, labels)
        return mixed, targets
