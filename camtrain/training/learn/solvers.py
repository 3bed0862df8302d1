"""The option head_solver: scikit-learn solves the linear head on cached features, in seconds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from camtrain.errors import CamtrainValueError, check_choice
from camtrain.labels import Task, multi_hot
from camtrain.model.camnet import CAMNet
from camtrain.training.cache import FeatureDataset
from camtrain.training.evaluate.average_precision import MeanAveragePrecision

HeadSolver = Literal["sgd", "logistic", "svm"]
# Inverse strengths of the regularization (scikit-learn's C), the strongest first.
REGULARIZATION = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

_Array = npt.NDArray[np.float64]


class LabeledFeatures(NamedTuple):
    """Pooled features of pictures with their labels.

    Attributes:
        features: (N, C), float32.
        labels: (N,), class numbers, or (N, K), multi-hot.
    """

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Solution:
    """A linear head.

    Attributes:
        weight: (K, C), float32.
        bias: (K,), float32.
        regularization: The C that was chosen.
        score: Accuracy on the validation pictures; mean average precision for multi-label.
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
    """The head of the regularization that is best on the validation pictures; a tie: the stronger.

    ``logistic`` minimizes the cross-entropy of all classes (multi-label: of each class against the
    rest), plus ``|w|^2 / 2C``; its scores are probabilities as those of ordinary training are.
    ``svm``, which Zhou et al. used on such features (section 4), separates each class from the
    rest with a squared hinge; its logits are margins, so the softmax of them ranks the classes but
    is no probability. Features are standardized for the solver, and the head is folded back onto
    the features as they are.

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
    best: Solution | None = None
    for strength in REGULARIZATION:
        if task == "multilabel":
            head = _multilabel_head(solver, strength, standard, targets.numpy(), class_weights)
        else:
            labels = train.labels.numpy()
            head = _multiclass_head(solver, strength, standard, labels, class_weights)
        weight = torch.from_numpy(head.weight) / std
        bias = torch.from_numpy(head.bias) - weight @ mean
        weight, bias = weight.float(), bias.float()
        score = _score(F.linear(val.features, weight, bias), val.labels, task)
        if best is None or score > best.score:
            best = Solution(weight, bias, strength, score)
    assert best is not None
    return best


class _Head(NamedTuple):
    weight: _Array  # (K, C)
    bias: _Array  # (K,)


_ClassWeights = dict[int, float] | None  # in scikit-learn's form


def _fit(
    solver: HeadSolver,
    strength: float,
    features: _Array,
    labels: npt.NDArray[Any],
    weights: _ClassWeights,
) -> _Head:
    """Scikit-learn's head for features (N, C) with labels (N,); one row where there are two."""
    from sklearn.exceptions import ConvergenceWarning  # costs a second, so only who solves pays
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    model = (
        LogisticRegression(C=strength, class_weight=weights, max_iter=1000)
        if solver == "logistic"
        else LinearSVC(C=strength, class_weight=weights, max_iter=10_000, random_state=0)
    )
    with warnings.catch_warnings():
        # A head that has not converged is measured on val like the others.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)
    return _Head(model.coef_, model.intercept_)


def _multiclass_head(
    solver: HeadSolver,
    strength: float,
    features: _Array,
    labels: npt.NDArray[Any],
    class_weights: Sequence[float] | None,
) -> _Head:
    weights = None if class_weights is None else dict(enumerate(map(float, class_weights)))
    head = _fit(solver, strength, features, labels, weights)
    if len(head.bias) > 1:
        return head
    # Of two classes scikit-learn gives a row for the second only. The logits of a softmax over two
    # differ by the one logit of the sigmoid.
    factor = 0.5 if solver == "logistic" else 1.0
    weight, bias = factor * head.weight, factor * head.bias
    return _Head(np.concatenate([-weight, weight]), np.concatenate([-bias, bias]))


def _multilabel_head(
    solver: HeadSolver,
    strength: float,
    features: _Array,
    targets: npt.NDArray[Any],
    class_weights: Sequence[float] | None,
) -> _Head:
    """A row for each class, fitted against the pictures without it."""
    heads = [
        _fit(
            solver,
            strength,
            features,
            targets[:, k],
            None if class_weights is None else {0: 1.0, 1: float(class_weights[k])},
        )
        for k in range(targets.shape[1])
    ]
    weight, bias = zip(*heads, strict=True)
    return _Head(np.concatenate(weight), np.concatenate(bias))


def _score(logits: Tensor, labels: Tensor, task: Task) -> float:
    """Accuracy; mean average precision of a multi-label network."""
    if task == "multiclass":
        return (logits.argmax(1) == labels).float().mean().item()
    metric = MeanAveragePrecision(logits.shape[1])
    metric.update(logits, multi_hot(labels, logits.shape[1]))
    return float(metric.compute())


def check_solver(net: CAMNet, hparams: Mapping[str, Any], *, is_frozen: bool) -> None:
    """Refuse a solver that cannot solve this network's head.

    Raises:
        CamtrainValueError: An unknown solver, a network that is more than a linear head on the
            means of frozen features, or a search for the rate of steps that are not taken.
    """
    solver = hparams["head_solver"]
    if hparams["find_lr"] and solver != "sgd":
        raise CamtrainValueError(
            f"head_solver {solver} takes no steps and has no rate to find; leave find_lr out."
        )
    check_choice("head_solver", solver, get_args(HeadSolver))
    required = [
        (net.pool == "avg", "--model.pool avg"),
        (isinstance(net.neck, nn.Identity), "--model.neck []"),
        (is_frozen, "--model.freeze_backbone true"),
    ]
    missing = [option for is_given, option in required if not is_given]
    if solver != "sgd" and missing:
        raise CamtrainValueError(
            f"head_solver {solver} solves a linear head on the means of frozen features; give "
            f"{', '.join(missing)}, or leave head_solver out."
        )


def no_op_optimizer(head: nn.Linear) -> SGD:
    """An optimizer that leaves the solved head as it is."""
    return SGD(head.parameters(), lr=0.0)


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
    if getattr(trainer, "fast_dev_run", False):  # which caches no features
        return
    if not hasattr(data, "cached") or "val" not in data.datasets:
        raise CamtrainValueError(
            f"head_solver {solver} chooses the regularization on a val split of CAMDataModule, and "
            "there is none; add val/CLASS, or give --data.val_fraction above 0."
        )
    train, val = data.cached("train"), data.cached("val")
    head: tuple[Tensor, Tensor] = (net.head.weight, net.head.bias)
    if trainer.is_global_zero:
        start = time.perf_counter()
        solution = solve_head(
            solver,
            _labeled_features(train, net.head.in_features),
            _labeled_features(val, net.head.in_features),
            net.head.out_features,
            task=net.task,
            class_weights=None if class_weights is None else class_weights.tolist(),
        )
        print(
            f"Head: {solver}, C = {solution.regularization:g} with {100 * solution.score:.2f} % on "
            f"val, in {time.perf_counter() - start:.1f} s",
            flush=True,
        )
        head = (solution.weight, solution.bias)
    weight, bias = trainer.strategy.broadcast(head)
    with torch.no_grad():
        net.head.weight.copy_(weight)
        net.head.bias.copy_(bias)


def _labeled_features(dataset: FeatureDataset, channels: int) -> LabeledFeatures:
    vectors, indices = dataset.vectors()  # those of val may go on with what refines the maps
    labels = torch.as_tensor(dataset.labels)
    return LabeledFeatures(vectors[:, :channels], labels[indices])
