"""The training loss: targets of both tasks, mixing, class weights, and a guard against NaN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torchvision.transforms import v2

from camtrain.data import Batch
from camtrain.errors import CamtrainTypeError, CamtrainValueError, join_first
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
        are_mixed: Whether the labels are shares of the classes, (B, K), in [0, 1].
        label_smoothing: The part of each target that all classes share equally; for multi-label
            the part by which each target moves to 1/2.
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


_UNKNOWN_LABELS = (
    "class_weights=balanced needs the labels of all training pictures, which only a CAMDataModule "
    "tells; give a list with a number for each class."
)


def check_balance(hparams: Mapping[str, Any], data: object) -> None:
    """Raise CamtrainValueError where classes shall be balanced and data cannot tell its labels."""
    if hparams["class_weights"] == "balanced" and not hasattr(data, "datasets"):
        raise CamtrainValueError(_UNKNOWN_LABELS)


def check_loss(hparams: Mapping[str, Any]) -> None:
    """Check those settings of ``CAMModule`` for the loss that need no network.

    Raises:
        CamtrainValueError: A number is out of range.
    """
    label_smoothing, mixup, cutmix = (
        hparams[name] for name in ("label_smoothing", "mixup", "cutmix")
    )
    if not 0 <= label_smoothing < 1:
        raise CamtrainValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}.")
    if mixup < 0 or cutmix < 0:
        raise CamtrainValueError(
            f"mixup and cutmix are shapes of a Beta distribution, at least 0, got {mixup} and "
            f"{cutmix}; 0 switches them off, 0.2 and 1 are usual."
        )


class TrainingLoss:
    """Mixes the pictures of a batch, and computes its loss with smoothed and weighted targets.

    Mixing is torchvision's mixup or cutmix of each picture with the previous one; if both are on,
    each batch gets one of them with equal chances. The random numbers are torch's, so they depend
    on the seed of the step.

    Args:
        num_classes: K.
        task: ``multiclass`` or ``multilabel``.
        label_smoothing: In [0, 1), see ``loss_of``.
        class_weights: K numbers, ``balanced`` or None; see ``balance``.
        mixup: alpha of the Beta distribution of the shares; 0 for no mixup.
        cutmix: The same for cutmix.

    Raises:
        CamtrainValueError: The weights are not K numbers above 0, or a softmax has one class only.
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
        if num_classes == 1 and task == "multiclass":
            raise CamtrainValueError(
                "task must be multilabel for one class, which a picture has or has not, got "
                "multiclass, whose only score is always 1; give --model.task multilabel."
            )
        self.num_classes = num_classes
        self.task: Task = task
        self.label_smoothing = label_smoothing
        self.is_balanced = class_weights == "balanced"
        self.class_weights: Tensor | None = None
        if class_weights is not None and class_weights != "balanced":
            _check_class_weights(class_weights, num_classes)
            self.class_weights = torch.tensor(class_weights, dtype=torch.float32)
        transforms = [
            kind(alpha=alpha, num_classes=num_classes)
            for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha > 0
        ]
        self._mix = v2.RandomChoice(transforms) if transforms else None

    def balance(self, data: object) -> None:
        """Compute balanced weights from the labels of a data module's training pictures.

        Raises:
            CamtrainValueError: The weights are ``balanced``, and the labels are unknown.
        """
        if not self.is_balanced:
            return
        labels = getattr(getattr(data, "datasets", {}).get("train"), "labels", None)
        if labels is None:
            raise CamtrainValueError(_UNKNOWN_LABELS)
        labels = torch.as_tensor(labels)
        self.class_weights = balanced_weights(labels, self.num_classes, self.task)

    def mix(self, batch: Sequence[Any]) -> Sequence[Any]:
        """The batch with mixed images (B, C, H, W), and shares (B, K) in [0, 1] as its labels."""
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
        return loss_of(logits, labels, self.task, **self.settings(logits.device))

    def settings(self, device: torch.device) -> dict[str, Any]:
        """The arguments of ``loss_of`` beside logits, labels and task."""
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(device)
        return {
            "are_mixed": self._mix is not None,
            "label_smoothing": self.label_smoothing,
            "class_weights": self.class_weights,
        }


def _check_class_weights(weights: Sequence[Any], num_classes: int) -> None:
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
    """Weights (K,) that give every class the same influence.

    They are n / (K n_k) for a class of n_k of n pictures, as in scikit-learn; for multi-label they
    are (n - n_k) / n_k, for the pictures that have the class. Empty classes count as n_k = 1.

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


class FiniteLossGuard(Callback):
    """Stops a training whose loss is NaN or infinite, before the optimizer takes the step.

    From a GPU the loss is copied during the backward pass, and checked after it has been queued, so
    nothing waits for the copy.
    """

    def __init__(self) -> None:
        self._batch: tuple[Sequence[str] | None, int] = (None, 0)  # paths and number
        self._records: list[tuple[Tensor, torch.cuda.Event | None, Sequence[str] | None, int]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Sequence[Any], batch_idx: int
    ) -> None:
        """Remember which batch the next loss belongs to."""
        self._batch = (getattr(batch, "paths", None), batch_idx)

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
        self._records.append((loss, event, *self._batch))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Check the losses since the last step.

        Raises:
            CamtrainValueError: A loss is not finite; the message names step, rate and pictures.
        """
        records, self._records = self._records, []
        for loss, event, paths, batch_idx in records:
            if event is not None:
                event.synchronize()
            if not torch.isfinite(loss):
                where = f", {join_first(paths, 5)}" if paths else ""
                lr = max(group["lr"] for group in optimizer.param_groups)
                raise CamtrainValueError(
                    f"With a learning rate of {lr:g} the loss is {loss.item()} at step "
                    f"{trainer.global_step} (epoch {trainer.current_epoch}, batch {batch_idx}); "
                    "the step was not taken. Lower lr, give --trainer.gradient_clip_val 1, or look "
                    f"at the pictures of the batch{where}; the last checkpoint is good, "
                    "--ckpt_path last goes on from it."
                )
