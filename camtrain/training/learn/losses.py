"""The loss that is trained on: targets of both tasks, mixing, weights, and a guard against NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchvision.transforms import v2

from camtrain.data import Batch
from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.labels import Task, class_counts, multi_hot

ClassWeights = Literal["balanced"] | list[float]


def loss_of(
    logits: Tensor,
    labels: Tensor,
    task: Task,
    *,
    reduction: Literal["mean", "none"] = "mean",
    are_mixed: bool = False,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy over the classes; for multi-label the mean binary cross-entropy of each class.

    Args:
        logits: (B, K).
        labels: (B,), class numbers; for multi-label also (B, K), multi-hot of any type.
        task: ``multiclass`` or ``multilabel``.
        reduction: ``none`` for one number per picture, (B,), or per picture and class, (B, K).
        are_mixed: The labels are (B, K), shares of the classes in [0, 1].
        label_smoothing: Part s of a target that all classes share, as 1/K each; for multi-label it
            is moved to 1/2.
        class_weights: (K,); for multi-label the weight of the pictures that have the class.

    Raises:
        CamtrainValueError: The labels do not fit the logits or the task.
    """
    if task == "multilabel":
        targets = labels if are_mixed else multi_hot(labels, logits.shape[1])
        targets = targets.lerp(torch.full_like(targets, 0.5), label_smoothing)
        return F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=class_weights, reduction=reduction
        )
    if labels.ndim != 1 and not labels.is_floating_point():
        raise CamtrainValueError(
            f"labels must be one class number per picture, (B,), got {tuple(labels.shape)}; for "
            'several labels per picture give task="multilabel".'
        )
    return F.cross_entropy(
        logits, labels, class_weights, reduction=reduction, label_smoothing=label_smoothing
    )


class TrainingLoss:
    """Mixes the pictures of a batch, and compares logits with smoothed and weighted targets.

    Mixing is torchvision's mixup or cutmix of each picture with the one before it; where both are
    on, each batch takes one of them with equal chances. The random numbers are torch's, so they
    follow from the seed of the step.

    Args:
        num_classes: K.
        task: ``multiclass`` or ``multilabel``.
        label_smoothing: In [0, 1), see ``loss_of``.
        class_weights: K numbers, ``balanced`` or None; see ``set_labels``.
        mixup: alpha of the Beta distribution of the shares; 0 for no mixup.
        cutmix: alpha likewise, for cutmix.

    Raises:
        CamtrainValueError: A number is out of range, or the weights are not K of them.
        CamtrainTypeError: The weights are neither ``balanced`` nor numbers.
    """

    def __init__(
        self,
        num_classes: int,
        task: Task,
        *,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        """Check the settings."""
        self.check_smoothing(label_smoothing)
        _check_class_weights(class_weights, num_classes)
        if mixup < 0 or cutmix < 0:
            raise CamtrainValueError(
                f"mixup and cutmix are shapes of a Beta distribution, at least 0, got {mixup} and "
                f"{cutmix}; 0 switches them off, 0.2 and 1 are usual."
            )
        self.num_classes = num_classes
        self.task: Task = task
        self.label_smoothing = label_smoothing
        self.is_balanced = class_weights == "balanced"
        self.class_weights: Tensor | None = None
        if class_weights is not None and class_weights != "balanced":
            self.class_weights = torch.tensor(class_weights, dtype=torch.float32)
        transforms = [
            kind(alpha=alpha, num_classes=num_classes)
            for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha > 0
        ]
        self._mix = v2.RandomChoice(transforms) if transforms else None

    @staticmethod
    def check_smoothing(label_smoothing: float) -> None:
        """Raise CamtrainValueError unless it lies in [0, 1)."""
        if not 0 <= label_smoothing < 1:
            raise CamtrainValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}.")

    def set_labels(self, labels: Sequence[int] | Tensor | None) -> None:
        """Compute balanced weights from the labels of all training pictures.

        Raises:
            CamtrainValueError: The weights are ``balanced``, and the labels are not known.
        """
        if not self.is_balanced:
            return
        if labels is None:
            raise CamtrainValueError(
                "class_weights=balanced needs the labels of all training pictures, which only a "
                "CAMDataModule tells; give a list with a number for each class."
            )
        labels = torch.as_tensor(labels)
        self.class_weights = balanced_weights(labels, self.num_classes, self.task)

    def mix(self, batch: Sequence[Any]) -> Sequence[Any]:
        """The batch with mixed images (B, C, H, W), its labels being shares (B, K) in [0, 1]."""
        if self._mix is None:
            return batch
        images, labels = batch[0], batch[1]
        if self.task == "multilabel":
            labels = multi_hot(labels, self.num_classes)
        images, labels = self._mix(images, labels)
        if isinstance(batch, Batch):
            return batch._replace(images=images, labels=labels)
        return [images, labels, *batch[2:]]

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss, (), of the logits (B, K) of a batch that ``mix`` returned."""
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(logits.device)
        return loss_of(
            logits,
            labels,
            self.task,
            are_mixed=self._mix is not None,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
        )


def zero_loss(module: nn.Module) -> Tensor:
    """A loss whose gradients are 0, so that processes with more pictures need not wait."""
    return torch.stack([p.sum() * 0.0 for p in module.parameters() if p.requires_grad]).sum()


def _check_class_weights(weights: ClassWeights | None, num_classes: int) -> None:
    if weights is None or weights == "balanced":
        return
    is_list = isinstance(weights, Sequence) and not isinstance(weights, str)
    if not is_list or not all(isinstance(weight, (int, float)) for weight in weights):
        raise CamtrainTypeError(
            f"class_weights must be balanced, a list of numbers, or None, got {weights!r}."
        )
    if len(weights) != num_classes or min(weights) <= 0:
        raise CamtrainValueError(
            f"class_weights must hold one number above 0 for each of the {num_classes} "
            f"classes, got {weights}."
        )


def balanced_weights(labels: Tensor, num_classes: int, task: Task) -> Tensor:
    """Weights (K,) under which every class counts as much.

    n / (K n_k) for a class of n_k of n pictures, as in scikit-learn; for multi-label the weight of
    a picture that has the class, (n - n_k) / n_k. A class without pictures counts as one with one.

    Args:
        labels: (n,), class numbers; for multi-label also (n, K), multi-hot.
        num_classes: K.
        task: ``multiclass`` or ``multilabel``.

    Example:
        >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 2, "multiclass")
        tensor([0.6667, 2.0000])
        >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 2, "multilabel")
        tensor([0.3333, 3.0000])
    """
    counts = class_counts(labels, num_classes).clamp_min(1)
    if task == "multilabel":
        return (len(labels) - counts) / counts
    return len(labels) / (num_classes * counts)


class _RecordedLoss(NamedTuple):
    """The loss of one batch on its way to the CPU."""

    loss: Tensor
    copied: torch.cuda.Event | None
    batch: Sequence[Any]
    batch_idx: int


class NonFiniteLossGuard(Callback):
    """Stops a training whose loss is NaN or infinite, before the optimizer takes the step.

    On a GPU the loss is copied while the backward pass runs, so nothing waits for it: it is checked
    once the backward pass has been queued.
    """

    def __init__(self) -> None:
        self._batch: tuple[Sequence[Any], int] = ((), 0)
        self._records: list[_RecordedLoss] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Sequence[Any], batch_idx: int
    ) -> None:
        """Note which batch the next loss belongs to."""
        self._batch = (batch, batch_idx)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Record the loss of the batch until the next check."""
        # Not in `training_step`: a learning rate finder runs it without callbacks, hence checks.
        loss, event = loss.detach(), None
        if loss.is_cuda:
            copied = torch.empty((), dtype=loss.dtype, pin_memory=True)
            copied.copy_(loss, non_blocking=True)
            event = torch.cuda.current_stream(loss.device).record_event()
            loss = copied
        self._records.append(_RecordedLoss(loss, event, *self._batch))
        self._batch = ((), 0)  # frees the batch after the check

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Check the losses since the last step.

        Raises:
            CamtrainValueError: One of them is not finite; the message names step, rate, pictures.
        """
        records, self._records = self._records, []
        for loss, event, batch, batch_idx in records:
            if event is not None:
                event.synchronize()
            if not torch.isfinite(loss):
                paths = getattr(batch, "paths", None)
                where = f"of these pictures: {', '.join(paths)}" if paths else "in that order"
                lr = max(group["lr"] for group in optimizer.param_groups)
                raise CamtrainValueError(
                    f"The loss is {loss.item()} at step {trainer.global_step} (epoch "
                    f"{trainer.current_epoch}, batch {batch_idx}) "
                    f"with a learning rate of {lr:g}, in the batch {where}; the step was not "
                    "taken. Look at the pictures, lower lr, or give --trainer.gradient_clip_val 1; "
                    "the last checkpoint is good, --ckpt_path last goes on from it."
                )
