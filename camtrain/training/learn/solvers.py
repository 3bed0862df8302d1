"""The option head_solver: scikit-learn solves the linear head on cached features, in seconds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from camtrain.errors import CamtrainValueError, check_choice
from camtrain.labels import Task, multi_hot
from camtrain.model.camnet import CAMNet
from camtrain.training.cache import FeatureDataset
from camtrain.training.evaluate.scores import MeanAveragePrecision

HeadSolver = Literal["sgd", "logistic", "svm"]
# Inverse strengths of the regularization (scikit-learn's C), the strongest first.
REGULARIZATION = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

_Array = npt.NDArray[np.float64]


class LabeledFeatures(NamedTuple):
    """Pooled features of pictures, (N, C) float32, and labels, (N,) or multi-hot (N, K)."""

    features: Tensor
    labels: Tensor


class Solution(NamedTuple):
    """A linear head.

    Attributes:
        weight: (K, C), float32.
        bias: (K,), float32.
        regularization: The C that was chosen.
        score: Accuracy on the val pictures; mean average precision for multi-label.
    """

    weight: Tensor
    bias: Tensor
    regularization: float
    score: float


def solve_head(
    solver: HeadSolver,
    train: LabeledFeatures,
    val: LabeledFeatures,
    num_classes: int,
    *,
    task: Task = "multiclass",
    class_weights: Sequence[float] | None = None,
) -> Solution:
    """The head with the best score on val; of equal ones the most regularized.

    ``logistic`` minimizes the cross-entropy of all classes (multi-label: of each class against the
    rest), plus ``|w|^2 / 2C``; its scores are probabilities as those of ordinary training are.
    ``svm``, which Zhou et al. used on such features (section 4), separates each class from the
    rest with a squared hinge; its logits are margins, so their softmax ranks the classes but is no
    probability. The solver gets standardized features; the head is for features as they are.

    Args:
        solver: ``logistic`` or ``svm``.
        train: Features to solve for.
        val: Features to choose among ``REGULARIZATION`` with.
        num_classes: K.
        task: ``multilabel`` separates each class from the rest by itself.
        class_weights: The weight of a picture of each class, K numbers; None: all weigh 1.

    Raises:
        CamtrainValueError: A class has no picture in train, or all of them.
    """
    targets = multi_hot(train.labels, num_classes)  # (N, K)
    constant = [k for k in range(num_classes) if bool((targets[:, k] == targets[0, k]).all())]
    if constant:
        raise CamtrainValueError(
            "head_solver needs in train pictures of each class and pictures without it, but class "
            f"{', '.join(map(str, constant))} is in none or in all; add pictures, or leave it out."
        )
    mean, std = train.features.double().mean(0), train.features.double().std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    standard = ((train.features - mean) / std).numpy()
    weights = [1.0] * num_classes if class_weights is None else list(map(float, class_weights))

    def solution(strength: float) -> Solution:
        """The head of one regularization strength."""
        if task == "multilabel":
            heads = [
                _fit(solver, strength, standard, targets[:, k].numpy(), {0: 1.0, 1: weights[k]})
                for k in range(num_classes)
            ]
            rows, bias = (np.concatenate(parts) for parts in zip(*heads, strict=True))
        else:
            labels = train.labels.numpy()
            rows, bias = _fit(solver, strength, standard, labels, dict(enumerate(weights)))
            if num_classes == 2:  # scikit-learn's one row belongs to the second class
                # The logits of a softmax over two differ by the one logit of the sigmoid.
                factor = 0.5 if solver == "logistic" else 1.0
                rows, bias = (factor * np.concatenate([-part, part]) for part in (rows, bias))
        weight = torch.from_numpy(rows) / std
        head = weight.float(), (torch.from_numpy(bias) - weight @ mean).float()
        return Solution(*head, strength, _score(F.linear(val.features, *head), val.labels, task))

    return max(map(solution, REGULARIZATION), key=lambda candidate: candidate.score)


def _fit(
    solver: HeadSolver,
    strength: float,
    features: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    class_weights: dict[int, float],
) -> tuple[_Array, _Array]:
    """Scikit-learn's weight (K, C) and bias (K,); for two classes one row, (1, C) and (1,)."""
    from sklearn.exceptions import ConvergenceWarning  # only users of a solver pay this second
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    model = (
        LogisticRegression(C=strength, class_weight=class_weights, max_iter=1000)
        if solver == "logistic"
        else LinearSVC(C=strength, class_weight=class_weights, max_iter=10_000, random_state=0)
    )
    with warnings.catch_warnings():
        # A head that has not converged is measured on val like all others.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)
    return model.coef_, model.intercept_


def _score(logits: Tensor, labels: Tensor, task: Task) -> float:
    """Accuracy; mean average precision of a multi-label network."""
    if task == "multiclass":
        return (logits.argmax(1) == labels).float().mean().item()
    metric = MeanAveragePrecision(logits.shape[1])
    metric.update(logits, multi_hot(labels, logits.shape[1]))
    return float(metric.compute())


def check_solver(net: CAMNet, hparams: Mapping[str, Any]) -> None:
    """Check that the option head_solver fits the network and the other settings of ``CAMModule``.

    Raises:
        CamtrainValueError: The solver is unknown, the network is more than a linear head on the
            means of frozen features, or find_lr asks for the rate of steps that are not taken.
    """
    solver = hparams["head_solver"]
    if hparams["find_lr"] and solver != "sgd":
        raise CamtrainValueError(
            f"head_solver {solver} takes no steps and has no rate to find; leave find_lr out."
        )
    check_choice("head_solver", solver, get_args(HeadSolver))
    is_frozen = hparams["freeze_backbone"] and hparams["unfreeze_at_epoch"] is None
    required = {
        "--model.pool avg": net.pool == "avg",
        "--model.neck []": isinstance(net.neck, nn.Identity),
        "--model.freeze_backbone true": is_frozen,
    }
    missing = [option for option, is_given in required.items() if not is_given]
    if solver != "sgd" and missing:
        raise CamtrainValueError(
            f"head_solver {solver} solves a linear head on the means of frozen features; give "
            f"{', '.join(missing)}, or leave head_solver out."
        )


def solve(trainer: Trainer, net: CAMNet, solver: HeadSolver, class_weights: Tensor | None) -> None:
    """Replace a network's head by the one that a solver finds on the cached train and val features.

    Args:
        trainer: At the start of a training with ``CAMDataModule``.
        net: Its head is changed in place.
        solver: ``logistic`` or ``svm``.
        class_weights: (K,), see ``solve_head``.

    Raises:
        CamtrainValueError: Features are not cached, there is no val split, or train lacks a class.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if getattr(trainer, "fast_dev_run", False):  # no features are cached
        return
    if not hasattr(data, "cached") or "val" not in data.datasets:
        raise CamtrainValueError(
            f"head_solver {solver} chooses the regularization on a val split of CAMDataModule, and "
            "there is none; add val/CLASS, or give --data.val_fraction above 0."
        )
    train, val = data.cached("train"), data.cached("val")
    weight, bias = net.head.weight.detach(), net.head.bias.detach()
    if trainer.is_global_zero:
        start = time.perf_counter()
        weight, bias, regularization, score = solve_head(
            solver,
            _labeled_features(train, net.head.in_features),
            _labeled_features(val, net.head.in_features),
            net.head.out_features,
            task=net.task,
            class_weights=None if class_weights is None else class_weights.tolist(),
        )
        print(
            f"Head: {solver}, C = {regularization:g} with {100 * score:.2f} % on val, in "
            f"{time.perf_counter() - start:.1f} s",
            flush=True,
        )
    weight, bias = trainer.strategy.broadcast((weight, bias))
    with torch.no_grad():
        net.head.weight.copy_(weight)
        net.head.bias.copy_(bias)


def _labeled_features(dataset: FeatureDataset, channels: int) -> LabeledFeatures:
    vectors, places = dataset.vectors()  # in val, the vectors that refine maps follow the features
    return LabeledFeatures(vectors[:, :channels], torch.as_tensor(dataset.labels)[places])
