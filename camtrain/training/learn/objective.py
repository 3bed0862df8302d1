"""What a training step minimizes: the loss of the labels, and those of a teacher or a foreground.

The loss of the foreground is that of the labels over all places and over the foreground m, and
-log(1 - p) of the labelled classes over the rest, 1 - m, whose gradient does not reach the
classifier's weights; and the foreground's share of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from camtrain.data import Batch
from camtrain.errors import CamtrainValueError
from camtrain.labels import Task, multi_hot
from camtrain.model.camnet import CAMNet
from camtrain.model.foreground import check_pool, part_logits
from camtrain.model.refine import BackboneOutput
from camtrain.training.learn.losses import TrainingLoss, loss_of
from camtrain.training.learn.teacher import Teacher

AREA = 1.0  # weight of the foreground's share; with 0 or 3 maps are alike


def loss_of_batch(
    net: CAMNet,
    images: Tensor,
    batch: Sequence[Any],
    loss: TrainingLoss,
    teacher: Teacher | None,
    teacher_weight: float,
) -> Tensor:
    """The loss of a batch, ().

    Args:
        net: The network that is trained.
        images: Those of the batch, as they lie in memory for the network.
        batch: As ``TrainingLoss.mix`` returned it.
        loss: That of the labels.
        teacher: Where the maps are learned from, or None.
        teacher_weight: Weight of the loss of the maps.
    """
    labels, is_cached = batch[1], isinstance(batch, Batch) and batch.is_cached
    if teacher is not None:
        logits, disagreement = teacher.compare(net, images, labels, is_cached=is_cached)
        return loss(logits, labels) + teacher_weight * disagreement
    if net.foreground is not None:
        output = (
            BackboneOutput.unpacked(images.float(), net.vector_channels)
            if is_cached
            else net.backbone_output(images)
        )
        settings = loss.settings(labels.device)
        return foreground_loss(net, net.apply_neck(output), labels, **settings)
    logits = net.classify(net.neck(images.float())) if is_cached else net(images)
    return loss(logits, labels)


def foreground_loss(
    net: CAMNet,
    neck_output: BackboneOutput,
    labels: Tensor,
    *,
    reduction: Literal["mean", "none"] = "mean",
    class_weights: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """The loss of a network with a foreground head.

    Args:
        net: The network.
        neck_output: Of ``CAMNet.apply_neck``.
        labels: See ``loss_of``; not mixed.
        reduction: ``none`` for one number per picture, (B,).
        class_weights: (K,), see ``loss_of``.
        settings: Further arguments of ``loss_of``.
    """
    settings |= {"reduction": reduction, "class_weights": class_weights}
    with torch.autocast(labels.device.type, enabled=False):
        # The layers that the head reads are not trained by it: they say which places look alike.
        vectors = neck_output.vectors.detach()
        foreground = net.foreground_maps(neck_output._replace(vectors=vectors))
        parts = part_logits(net, neck_output.features, foreground)
        losses = (
            loss_of(parts.whole, labels, net.task, **settings)
            + loss_of(parts.foreground, labels, net.task, **settings)
            + absence_loss(parts.background, labels, net.task, reduction, class_weights)
        )
        area = foreground.mean((1, 2, 3))
        if reduction == "mean":
            return losses + AREA * area.mean()
        return losses.reshape(len(area), -1).mean(1) + AREA * area


def absence_loss(
    logits: Tensor,
    labels: Tensor,
    task: Task,
    reduction: Literal["mean", "none"] = "mean",
    class_weights: Tensor | None = None,
) -> Tensor:
    """-log(1 - p) of the labelled classes: the smaller their scores p are, the better.

    Arguments and result are as those of ``loss_of``, without smoothing and mixing.

    Example:
        >>> logits = torch.log(torch.tensor([[0.25, 0.5, 0.25]]))
        >>> round(absence_loss(logits, torch.tensor([1]), "multiclass").exp().item(), 4)
        2.0
    """
    if task == "multilabel":
        targets = multi_hot(labels, logits.shape[1])
        losses = F.softplus(logits) * targets
        if class_weights is not None:
            losses = losses * class_weights
        return losses.mean() if reduction == "mean" else losses
    other_logits = logits.scatter(1, labels[:, None], -torch.inf)
    losses = torch.logsumexp(logits, 1) - torch.logsumexp(other_logits, 1)
    weights = torch.ones_like(losses) if class_weights is None else class_weights[labels]
    losses = losses * weights
    return losses.sum() / weights.sum() if reduction == "mean" else losses


def check_objective(net: CAMNet, hparams: Mapping[str, Any], *, is_built: bool) -> None:
    """Check that the settings of ``CAMModule`` suit the foreground head of its network.

    Raises:
        CamtrainValueError: A setting excludes it; or it shall be trained alone, and there is none,
            or the rest is not trained yet (a network that the user has built is taken to be).
    """
    if hparams["freeze_head"]:
        if net.foreground is None or not hparams["freeze_backbone"]:
            raise CamtrainValueError(
                "freeze_head leaves only the foreground head to be trained; give "
                "--model.foreground true and --model.freeze_backbone true, or leave it out."
            )
        weights, recipe = str(hparams["weights"]), net.recipe or {}
        is_trained = is_built or recipe.get("own_head") or weights.endswith(".safetensors")
        if hparams["weights"] is not None and not is_trained:
            raise CamtrainValueError(
                f"freeze_head keeps a trained head, and weights={weights} bring none; give "
                "--model.weights runs/NAME/model.safetensors, or leave freeze_head out."
            )
    if net.foreground is None:
        return
    check_pool(net.pool)
    required = {"mixup": 0, "cutmix": 0, "head_solver": "sgd", "teacher": None, "compile": False}
    for name, value in required.items():
        if hparams[name] != value:
            raise CamtrainValueError(
                "foreground is learned step by step from the labels of whole pictures, got "
                f"{name} {hparams[name]}; leave one of them out."
            )
