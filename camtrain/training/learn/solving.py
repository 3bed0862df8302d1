"""Solving the head of a network that is trained: seconds instead of epochs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, get_args

import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.optim import SGD

from camtrain.errors import CamtrainValueError
from camtrain.model.camnet import CAMNet
from camtrain.training.cache import FeatureDataset
from camtrain.training.learn.solvers import HeadSolver, Labelled, solve_head


def check_solver(solver: str, net: CAMNet, is_frozen: bool) -> None:
    """Refuse a solver that cannot solve this network's head.

    Raises:
        CamtrainValueError: An unknown solver, or a network that is more than a linear head on the
            means of frozen features.
    """
    if solver not in get_args(HeadSolver):
        raise CamtrainValueError(
            f"head_solver must be one of {', '.join(get_args(HeadSolver))}, got {solver!r}."
        )
    wanted = [
        (net.pool == "avg", "--model.pool avg"),
        (isinstance(net.neck, nn.Identity), "--model.neck []"),
        (is_frozen, "--model.freeze_backbone true"),
    ]
    missing = [option for is_there, option in wanted if not is_there]
    if solver != "sgd" and missing:
        raise CamtrainValueError(
            f"head_solver {solver} solves a linear head on the means of frozen features; give "
            f"{', '.join(missing)}, or leave head_solver out."
        )


def resting_optimizer(head: nn.Linear) -> SGD:
    """An optimizer that leaves the solved head as it is."""
    return SGD(head.parameters(), lr=0.0)


def solve(
    trainer: Trainer, net: CAMNet, solver: HeadSolver, class_weights: Sequence[float] | None
) -> None:
    """Give a network the head that a solver finds on the kept features of train and val.

    Args:
        trainer: At the start of a training with ``CAMDataModule``.
        net: Its head is replaced in place.
        solver: ``logistic`` or ``svm``.
        class_weights: What a picture of each class counts, K numbers; None means 1.

    Raises:
        CamtrainValueError: There are no such features, or no val split, or train lacks a class.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if getattr(trainer, "fast_dev_run", False):  # keeps no features
        return
    if not hasattr(data, "cached") or "val" not in data.datasets:
        raise CamtrainValueError(
            f"head_solver {solver} chooses the regularization on a val split of CAMDataModule, and "
            "there is none; add val/CLASS, or give --data.val_fraction above 0."
        )
    train, val = data.cached("train"), data.cached("val")
    found = None
    if trainer.is_global_zero:
        start = time.perf_counter()
        solution = solve_head(
            solver,
            _labelled(train, net.head.in_features),
            _labelled(val, net.head.in_features),
            net.head.out_features,
            task=net.task,
            class_weights=class_weights,
        )
        print(
            f"Head: {solver}, C = {solution.regularization:g} with {100 * solution.score:.2f} % on "
            f"val, in {time.perf_counter() - start:.1f} s",
            flush=True,
        )
        found = (solution.weight, solution.bias)
    weight, bias = trainer.strategy.broadcast(found or (net.head.weight, net.head.bias))
    with torch.no_grad():
        net.head.weight.copy_(weight)
        net.head.bias.copy_(bias)


def _labelled(dataset: FeatureDataset, channels: int) -> Labelled:
    vectors, places = dataset.vectors()  # behind the features of val may lie what refines maps
    labels = torch.as_tensor(dataset.labels)
    return Labelled(vectors[:, :channels], labels[places])
