"""The figures that the README states, on real photographs; `.ci/run` looks at the quickstart's."""

import re
from pathlib import Path

import pytest

from camtrain.cli import main
from tests.benchmarks.imagenet_val300 import evaluate

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the features of a frozen backbone are kept, for all tests of this file."""
    return tmp_path_factory.mktemp("features")


def fit(
    config: str, runs_dir: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, float]:
    """The test scores that ``fit`` prints, as fractions."""
    arguments = ["--logger", "none", "--trainer.accelerator", "cpu", *more]
    main(["fit", "--config", f"{config}.yaml", "--runs_dir", str(runs_dir), *arguments])
    printed = capsys.readouterr().out
    return {n: float(v) / 100 for n, v in re.findall(r"test/(\w+) .* ([\d.]+) %", printed)}


def test_a_head_on_a_frozen_pretrained_backbone(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    shared: Path,
    features: Path,
) -> None:
    monkeypatch.chdir(ROOT)
    scores = fit("tests/benchmarks/animals3", tmp_path, capsys, "--data.cache_dir", str(features))
    assert scores["acc1"] >= 0.98
    assert scores["max_box_acc"] >= 0.66
    assert scores["centre_box_acc"] == pytest.approx(0.60)


@pytest.mark.parametrize("solver", ["logistic", "svm"])
def test_a_solved_head_on_a_frozen_pretrained_backbone(
    solver: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    shared: Path,
    features: Path,
) -> None:
    monkeypatch.chdir(ROOT)
    more = ("--data.cache_dir", str(features), "--model.head_solver", solver)
    scores = fit("tests/benchmarks/animals3", tmp_path, capsys, *more)
    assert scores["acc1"] >= 0.97
    assert scores["max_box_acc"] >= 0.64


def test_a_converted_classifier_without_any_training(shared: Path) -> None:
    scores = evaluate(shared, stride=16)
    assert scores["acc1"] >= 0.79
    assert scores["max_box_acc"] >= 0.63


def test_refined_maps_without_any_training(shared: Path) -> None:
    scores = evaluate(shared, stride=16, refine="affinity")
    assert scores["acc1"] >= 0.79
    assert scores["max_box_acc"] >= 0.685
    assert scores["max_box_acc_v2"] >= 0.655
    assert scores["pointing"] >= 0.90
    scores = evaluate(shared, stride=16, refine="affinity", side=320)
    assert scores["max_box_acc"] >= 0.72
