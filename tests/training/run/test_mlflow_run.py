"""MLflow: its real tracking server gets whole runs, and its failures do not stop a training."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from camtrain.training.cli.main import main as run
from camtrain.training.run import mlflow_run
from camtrain.training.run.folder import MLFLOW_RUN_ID, RunFolder
from camtrain.training.run.loggers import make_loggers, place_of, project_or_default
from camtrain.training.run.mlflow_run import NeverStoppingMLFlowLogger, finish, start_mlflow

mlflow = pytest.importorskip("mlflow", reason="the extra mlflow: pip install mlflow")
# MLflow's, about the packages on which it is built.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "ResourceWarning")
]
Arguments = Callable[..., list[str]]
OFTEN = ("--logger", "mlflow", "--trainer.log_every_n_steps", "1")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an empty data base, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("mlflow")
    mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder


@pytest.fixture
def server(store: Path, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of MLflow's tracking server on the loopback, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = ["--backend-store-uri", f"sqlite:///{store / 'mlflow.db'}"]
    places += ["--artifacts-destination", str(tmp_path / "artifacts"), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *places, "--port", str(port)]
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + 120
    while b"startup complete" not in (tmp_path / "server.log").read_bytes():
        assert process.poll() is None, (tmp_path / "server.log").read_text()
        assert time.monotonic() < end
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}", process
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.wait(30)


def table_of(client: mlflow.MlflowClient, run_id: str, name: str) -> list[dict[str, Any]]:
    stored = json.loads(Path(client.download_artifacts(run_id, name)).read_text())
    return [dict(zip(stored["columns"], line, strict=True)) for line in stored["data"]]


@pytest.mark.nightly
def test_a_server_gets_a_whole_run_and_a_continued_run_goes_on(
    server: tuple[str, Any],
    fit_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server[0])
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "birds")
    run(fit_arguments(*OFTEN))
    client = mlflow.MlflowClient(server[0])
    experiment = client.get_experiment_by_name("birds")
    [tracked] = client.search_runs([experiment.experiment_id])
    run_id, metrics = tracked.info.run_id, tracked.data.metrics
    assert (tmp_path / "runs" / "run" / MLFLOW_RUN_ID).read_text() == run_id
    assert f"{server[0]}/#/experiments/{experiment.experiment_id}/runs/{run_id}" in (
        capsys.readouterr().out
    )
    assert (tracked.info.run_name, tracked.info.status) == ("run", "FINISHED")
    scores = {"val/acc1", "val/max_box_acc", "train/loss", "test/acc1", "test/srg", "best/val/acc1"}
    assert scores <= metrics.keys()
    assert [m.step for m in client.get_metric_history(run_id, "val/acc1")] == [1, 3]
    assert tracked.data.params["backbone"] == "camtrain/digits"
    assert {a.path for a in client.list_artifacts(run_id)} >= {"model", "report.html", "val"}
    bundle = client.download_artifacts(run_id, "model/model.safetensors")
    written = (tmp_path / "runs" / "run" / "model.safetensors").read_bytes()
    assert Path(bundle).read_bytes() == written
    images = [a.path for a in client.list_artifacts(run_id, "images") if a.path.endswith("png")]
    steps = re.findall(r"(\w+~[\w ]+)\+step\+(\d+)", " ".join(images))
    assert {step for key, step in steps if key == "val~cams"} == {"0", "1", "3"}
    assert {step for key, step in steps if key.startswith("val~cams 00")} == {"0", "1", "3"}
    assert {"val~confusion", "val~reliability", "test~cams"} <= {key for key, _ in steps}
    for path in images:
        assert Image.open(client.download_artifacts(run_id, path)).width >= 100
    lines = table_of(client, run_id, "val/cams_table.json")
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1, 2, 2]
    assert {line["class"] for line in table_of(client, run_id, "val/classes.json")} == {
        "blue",
        "red",
    }

    run(fit_arguments(*OFTEN, "--trainer.max_epochs", "3", "--ckpt_path", "last"))
    [tracked] = client.search_runs([experiment.experiment_id])
    assert tracked.info.run_id == run_id
    assert [m.step for m in client.get_metric_history(run_id, "val/acc1")] == [1, 3, 5]
    lines = table_of(client, run_id, "val/cams_table.json")
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.nightly
def test_a_server_that_dies_is_told_once_and_the_training_goes_on(
    server: tuple[str, Any],
    fit_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server[0])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    connect = mlflow_run._connect

    def connect_and_die(*arguments: Any) -> NeverStoppingMLFlowLogger:
        logger = connect(*arguments)
        os.killpg(server[1].pid, 9)
        server[1].wait(30)
        return logger

    monkeypatch.setattr(mlflow_run, "_connect", connect_and_die)
    failed = r"MLflow failed \(MlflowException: .*; the training goes on, and MLflow gets no more"
    with pytest.warns(UserWarning, match=failed):
        run(fit_arguments(*OFTEN))
    assert (tmp_path / "runs" / "run" / "model.safetensors").is_file()


def test_without_an_answer_the_run_is_beside_its_folder(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(mlflow_run, "LONGEST_START", 0.5)
    logger = start_mlflow(store / "unreachable", "project")
    assert logger is not None
    printed = capsys.readouterr().out
    assert re.fullmatch(
        r"MLflow cannot be reached at http://127.0.0.1:1, so this run is logged in sqlite:///.*"
        r"/mlflow.db \(no answer within 0.5 seconds\).\n",
        printed,
    )
    assert logger.place == f"see with: mlflow ui --backend-store-uri sqlite:///{store}/mlflow.db"
    finish(logger)


def test_a_run_goes_on_and_an_unknown_one_begins(store: Path) -> None:
    def begin(*, is_new: bool) -> str:
        [logger] = make_loggers("mlflow", store / "run", "project", so_far=None)
        assert isinstance(logger, NeverStoppingMLFlowLogger)
        assert place_of([logger]) == logger.place
        logger.log_metrics({"val/acc1": 0.5}, 1)
        finish(logger)
        second = start_mlflow(store / "run", "project", is_new=is_new)
        assert second is not None
        finish(second)
        assert (store / "run" / MLFLOW_RUN_ID).read_text() == second.run_id
        return "the same" if second.run_id == logger.run_id else "another"

    assert begin(is_new=False) == "the same"
    assert begin(is_new=True) == "another"
    (store / "run" / MLFLOW_RUN_ID).write_text("f" * 32)
    logger = start_mlflow(store / "run", "project", is_new=False)
    assert logger is not None
    assert logger.run_id != "f" * 32
    finish(logger)


def test_a_run_that_was_killed_while_mlflow_started_is_unborn(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / MLFLOW_RUN_ID).write_text("f" * 32)
    (tmp_path / "config.yaml").write_text("")
    assert RunFolder(tmp_path).is_unborn


def test_the_experiment_has_a_variable_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "of wandb")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of mlflow")
    kinds = ("wandb", "mlflow")
    assert [project_or_default(None, kind) for kind in kinds] == ["of wandb", "of mlflow"]
    assert project_or_default("mine", "mlflow") == "mine"
