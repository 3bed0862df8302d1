"""Solved heads: ordinary weights, the very ones that scikit-learn found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import camtrain
from camtrain.cli import main
from camtrain.errors import CamtrainError
from camtrain.training import CAMDataModule
from camtrain.training.learn.losses import balanced_weights
from camtrain.training.learn.solvers import REGULARIZATION, HeadSolver, LabeledFeatures, solve_head
from tests.conftest import everyday
from tests.training.conftest import quiet_trainer, small_module

Arguments = Callable[..., list[str]]
SOLVERS: list[HeadSolver] = ["logistic", "svm"]


def clouds(num_classes: int, count: int, seed: int, spread: float = 3.0) -> LabeledFeatures:
    """Features of very different scale, one of them constant, around a centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, 6, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % num_classes
    features = centres[labels] + spread * torch.randn(count, 6, generator=generator)
    features = features * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0, 0.0]) + 5
    return LabeledFeatures(features, labels)


def scikit_learn(solver: str, strength: float, **settings: Any) -> Pipeline:
    made = (
        LogisticRegression(C=strength, max_iter=1000, **settings)
        if solver == "logistic"
        else LinearSVC(C=strength, max_iter=10_000, random_state=0, **settings)
    )
    return make_pipeline(StandardScaler(), made)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_head_says_what_scikit_learn_says(solver: HeadSolver, num_classes: int) -> None:
    train, val = clouds(num_classes, 80, 0), clouds(num_classes, 40, 1)
    found = solve_head(solver, train, val, num_classes)
    assert found.weight.shape == (num_classes, 6)
    assert found.weight.dtype == found.bias.dtype == torch.float32
    logits = val.features @ found.weight.T + found.bias
    model = scikit_learn(solver, found.regularization).fit(train.features, train.labels)
    if solver == "logistic":
        expected = model.predict_proba(val.features.double())
        np.testing.assert_allclose(logits.softmax(1), expected, atol=1e-4)
    else:
        expected = model.decision_function(val.features.double())
        margins = logits[:, 1] if num_classes == 2 else logits
        np.testing.assert_allclose(margins, expected, atol=1e-4)
    assert (logits.argmax(1).numpy() == model.predict(val.features)).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_best_on_val_is_chosen_and_of_equals_the_most_regular(solver: HeadSolver) -> None:
    train, val = clouds(3, 60, 0, spread=2.0), clouds(3, 60, 1, spread=2.0)
    found = solve_head(solver, train, val, 3)
    scores = [
        scikit_learn(solver, strength).fit(train.features, train.labels).score(*val)
        for strength in REGULARIZATION
    ]
    assert found.score == pytest.approx(max(scores))
    assert found.regularization == REGULARIZATION[scores.index(max(scores))]
    easy = [clouds(3, 60, seed, spread=1e-3) for seed in (0, 1)]
    assert solve_head(solver, *easy, 3).regularization == REGULARIZATION[0]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("weights", [(1.0, 1.0, 9.0), "balanced"])
def test_class_weights_are_honoured(solver: HeadSolver, weights: str | tuple[float, ...]) -> None:
    train, val = clouds(3, 90, 0), clouds(3, 30, 1)
    few = (train.labels != 2) | (torch.arange(90) < 15)
    train = LabeledFeatures(train.features[few], train.labels[few])
    numbers = weights
    if weights == "balanced":
        numbers = balanced_weights(train.labels, 3, "multiclass").tolist()
    found = solve_head(solver, train, val, 3, class_weights=numbers)
    counts = weights if weights == "balanced" else dict(enumerate(weights))
    model = scikit_learn(solver, found.regularization, class_weight=counts)
    expected = model.fit(train.features, train.labels).decision_function(val.features)
    logits = (val.features @ found.weight.T + found.bias).double()
    if solver == "logistic":
        logits, expected = logits.softmax(1), torch.from_numpy(expected).softmax(1).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_several_labels_are_separated_one_by_one(solver: HeadSolver) -> None:
    train, val = clouds(4, 80, 0), clouds(4, 40, 1)
    both = [torch.stack([s.labels % 2, (s.labels > 1).long()], 1) for s in (train, val)]
    found = solve_head(
        solver,
        LabeledFeatures(train.features, both[0]),
        LabeledFeatures(val.features, both[1]),
        2,
        task="multilabel",
    )
    logits = val.features @ found.weight.T + found.bias
    for k in range(2):
        model = scikit_learn(solver, found.regularization).fit(train.features, both[0][:, k])
        expected = model.decision_function(val.features)
        np.testing.assert_allclose(logits[:, k], expected, atol=1e-4)


def test_a_class_without_pictures_is_named() -> None:
    train, val = clouds(3, 30, 0), clouds(3, 30, 1)
    with pytest.raises(CamtrainError, match="but class 3 is in none"):
        solve_head("svm", train, val, 4)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"head_solver": "lda"}, "head_solver must be one of sgd, logistic, svm, got 'lda'"),
    ({"freeze_backbone": False}, "give --model.freeze_backbone true, or leave head_solver out"),
    ({"neck": (4,), "pool": "lse"}, r"give --model.pool avg, --model.neck \[\]"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_a_network_that_cannot_be_solved_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainError, match=message):
        small_module(**{"head_solver": "svm", "freeze_backbone": True, **settings})


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"augment": "light"}, "augment light makes other pictures"),
    ({"cache_features": False}, "but cache_features is false; leave it out"),
]


@pytest.mark.parametrize(("settings", "message"), UNFIT)
def test_data_that_cannot_be_kept_is_refused(
    settings: dict[str, Any], message: str, photographs: Path
) -> None:
    module = small_module(freeze_backbone=True, head_solver="logistic")
    data = CAMDataModule(root=photographs, size=32, **{"augment": "none", **settings})
    with pytest.raises(CamtrainError, match=message):
        quiet_trainer().fit(module, data)


@pytest.mark.parametrize("solver", everyday(SOLVERS, "logistic"))
def test_a_solved_run_has_everything(
    solver: str,
    fit_arguments: Arguments,
    tmp_path: Path,
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ("--model.head_solver", solver, "--model.freeze_backbone", "true")
    arguments = fit_arguments(*more, "--data.augment", "flip", "--trainer.max_epochs", "7")
    assert main(arguments) == 0
    assert f"Head: {solver}, C = " in capsys.readouterr().out
    folder = tmp_path / "runs" / "run"
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len(rows) == 2
    assert {"train/loss", "val/acc1", "val/max_box_acc"} < set(rows[0].split(","))
    assert len(list((folder / "cams").iterdir())) == 3  # before, after and test
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    predictor = camtrain.load(folder / "model.safetensors")
    assert torch.equal(predictor.net.head.weight, best["state_dict"]["net.head.weight"])
    output = predictor.net.class_maps(torch.rand(2, 3, 32, 40))  # law 1
    means = output.maps.mean((-2, -1)) + predictor.net.head.bias
    torch.testing.assert_close(means, output.logits, rtol=1e-4, atol=1e-4)
    before = {path: path.read_bytes() for path in folder.rglob("*.c*")}
    assert main([*arguments, "--ckpt_path", "last"]) == 0  # nothing is left to do
    after = {path: path.read_bytes() for path in folder.rglob("*.c*")}
    assert before[folder / "metrics.csv"] == after[folder / "metrics.csv"]


def test_solving_is_not_a_matter_of_the_seed(photographs: Path) -> None:
    heads = []
    for seed in (0, 1):
        torch.manual_seed(0)
        module = small_module(weights=None, freeze_backbone=True, head_solver="svm")
        torch.manual_seed(seed)
        torch.nn.init.normal_(module.net.head.weight)
        data = CAMDataModule(root=photographs, size=32, workers=0, augment="none", seed=seed)
        quiet_trainer(max_epochs=9).fit(module, data)
        heads.append(module.net.head.weight.clone())
    assert torch.equal(*heads)


def test_a_trial_run_keeps_nothing(photographs: Path, features_folder: Path) -> None:
    module = small_module(freeze_backbone=True, head_solver="logistic")
    data = CAMDataModule(root=photographs, size=32, workers=0, augment="none")
    quiet_trainer(fast_dev_run=True).fit(module, data)
    assert not features_folder.exists()
