"""Solvers for a linear head: scikit-learn on pooled features, folded into ordinary weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from camtrain.errors import CamtrainValueError
from camtrain.labels import Task
from camtrain.training.learn.multilabel import MeanAveragePrecision, multi_hot

HeadSolver = Literal["sgd", "logistic", "svm"]
# Inverse strengths of the regularization (scikit-learn's C), the strongest first.
REGULARIZATION = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

_Array = npt.NDArray[np.float64]
_ClassWeights = Sequence[float] | Literal["balanced"] | None


class Labelled(NamedTuple):
    """Pooled features and what they are of.

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
    train: Labelled,
    val: Labelled,
    num_classes: int,
    *,
    task: Task = "multiclass",
    class_weights: _ClassWeights = None,
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
        class_weights: What a picture of each class counts, K numbers; ``balanced``: every class
            counts as much; None: every picture.

    Raises:
        CamtrainValueError: A class has no picture in train, or all of them.
    """
    targets = multi_hot(train.labels, num_classes)  # (N, K)
    lone = [k for k in range(num_classes) if bool((targets[:, k] == targets[0, k]).all())]
    if lone:
        raise CamtrainValueError(
            "head_solver needs in train pictures of each class and pictures without it, but class "
            f"{', '.join(map(str, lone))} is in none or in all; add pictures, or leave it out."
        )
    mean, std = train.features.double().mean(0), train.features.double().std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    standard = ((train.features - mean) / std).numpy()
    best: Solution | None = None
    for strength in REGULARIZATION:
        fit = _fitter(solver, strength)
        if task == "multilabel":
            head = _one_by_one(fit, standard, targets.numpy(), class_weights)
        else:
            head = _at_once(fit, standard, train.labels.numpy(), class_weights, solver)
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


_Counts = dict[int, float] | Literal["balanced"] | None  # what a picture of each class counts
_Fit = Callable[[_Array, npt.NDArray[Any], _Counts], _Head]  # of features (N, C), labels (N,)


def _fitter(solver: HeadSolver, strength: float) -> _Fit:
    """A function that fits scikit-learn's model."""
    from sklearn.exceptions import ConvergenceWarning  # costs a second, so only who solves pays
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    def fit(features: _Array, labels: npt.NDArray[Any], counts: _Counts) -> _Head:
        model = (
            LogisticRegression(C=strength, class_weight=counts, max_iter=1000)
            if solver == "logistic"
            else LinearSVC(C=strength, class_weight=counts, max_iter=10_000, random_state=0)
        )
        with warnings.catch_warnings():
            # One that has not converged is measured on val as the others are.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, labels)
        return _Head(model.coef_, model.intercept_)

    return fit


def _at_once(
    fit: _Fit,
    features: _Array,
    labels: npt.NDArray[Any],
    class_weights: _ClassWeights,
    solver: HeadSolver,
) -> _Head:
    """A row for each class; of two classes scikit-learn gives one, for the second."""
    head = fit(features, labels, _counts(class_weights))
    if len(head.bias) > 1:
        return head
    # The logits of a softmax over two differ by the one logit of the sigmoid.
    factor = 0.5 if solver == "logistic" else 1.0
    weight, bias = factor * head.weight, factor * head.bias
    return _Head(np.concatenate([-weight, weight]), np.concatenate([-bias, bias]))


def _one_by_one(
    fit: _Fit, features: _Array, targets: npt.NDArray[Any], class_weights: _ClassWeights
) -> _Head:
    """A row for each class, against the pictures without it."""
    classes = range(targets.shape[1])
    heads = [fit(features, targets[:, k], _counts(class_weights, k)) for k in classes]
    weight, bias = zip(*heads, strict=True)
    return _Head(np.concatenate(weight), np.concatenate(bias))


def _counts(class_weights: _ClassWeights, k: int | None = None) -> _Counts:
    """In scikit-learn's form: of every class, or of class k against the rest."""
    if class_weights is None:
        return None
    if isinstance(class_weights, str):
        return "balanced"
    if k is not None:
        return {0: 1.0, 1: float(class_weights[k])}
    return dict(enumerate(map(float, class_weights)))


def _score(logits: Tensor, labels: Tensor, task: Task) -> float:
    """Accuracy; mean average precision of a multi-label network."""
    if task == "multiclass":
        return (logits.argmax(1) == labels).float().mean().item()
    metric = MeanAveragePrecision(logits.shape[1])
    metric.update(logits, multi_hot(labels, logits.shape[1]))
    return float(metric.compute())
