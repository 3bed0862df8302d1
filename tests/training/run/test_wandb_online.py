"""A W&B run that is sent to a server, and what the server holds of it afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

import camtrain
from camtrain.training.cli.main import main as run
from tests.by_two import run_by_two
from tests.conftest import fit_of
from tests.training.run.wandb_server import Run, WandbServer

Arguments = Callable[..., list[str]]
ROOT = Path(__file__).parents[3]
WANDB = ("--logger", "wandb", "--trainer.log_every_n_steps", "1")


@contextlib.contextmanager
def online(server: WandbServer, folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        wandb.teardown()  # W&B reads the environment once
        patch.setenv("WANDB_BASE_URL", server.address)
        patch.setenv("WANDB_API_KEY", "0" * 40)
        patch.setenv("WANDB_MODE", "online")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
        yield
        wandb.teardown()


@pytest.fixture(scope="session")
def trained(photographs_once: Path, tmp_path_factory: pytest.TempPathFactory) -> WandbServer:
    """A server that has received a run of two epochs; only to be read."""
    folder, server = tmp_path_factory.mktemp("online"), WandbServer()
    more = ("--cams.num_images", "8", "--cams.log_mistakes", "true", "--model.lr", "1e-6")
    more += ("--wandb.group", "g", "--wandb.tags", "a, b", "--wandb.notes", "two words")
    more += ("--wandb.job_type", "train", "--wandb.register", "shelf/nets")
    with online(server, folder):
        run(fit_of(photographs_once, folder, *WANDB, *more))
    assert server.unknown == []
    return server


@pytest.fixture
def sent(trained: WandbServer) -> Run:
    """The only run of that server."""
    [only] = trained.runs.values()
    return only


def with_pictures(sent: Run) -> list[dict[str, Any]]:
    return [row for row in sent.rows if "val/cams" in row]


def test_a_validation_is_a_row_with_all_of_it(sent: Run) -> None:
    before, *validations = with_pictures(sent)
    assert before["trainer/global_step"] == before["epoch"] == 0
    assert [(row["epoch"], row["trainer/global_step"]) for row in validations] == [(1, 1), (2, 3)]
    for row in validations:
        assert {"val/loss", "val/acc1", "val/loc_gt_known", "val/cams_table"} <= set(row)
        assert {"val/confusion_table", "val/classes", "val/cam_entropy_histogram"} <= set(row)
        Image.open(io.BytesIO(sent.files[row["val/reliability"]["path"]])).load()
    assert [row["_step"] for row in sent.rows] == list(range(len(sent.rows)))
    for name in ("epoch", "trainer/global_step"):
        values = [row[name] for row in sent.rows if not {"test/acc1", "report"} & row.keys()]
        assert values == sorted(values)
    steps = [row["trainer/global_step"] for row in sent.rows if "train/loss_step" in row]
    assert steps == [0, 1, 2, 3]
    assert [row["epoch"] for row in sent.rows if "train/loss" in row] == [1, 2]


def test_every_picture_and_box_has_arrived(sent: Run) -> None:
    rows = [row[name] for row in sent.rows for name in row if name.endswith(("cams", "mistakes"))]
    assert len(rows) == 3 + 2 + 1  # before the first epoch, after each, their mistakes, and test
    for cams in rows:
        assert cams["count"] == len(cams["filenames"]) == len(cams["captions"])
        for name in cams["filenames"]:
            with Image.open(io.BytesIO(sent.files[name])) as picture:
                picture.load()
                assert picture.size == (cams["width"], cams["height"])
        for caption, kinds in zip(cams["captions"], cams["all_boxes"], strict=True):
            truth = json.loads(sent.files[kinds["truth"]["path"]])
            [box] = truth["box_data"]
            name = caption.split()[1]
            assert truth["class_labels"][str(box["class_id"])] == box["box_caption"] == name
            assert "box_data" in json.loads(sent.files[kinds["prediction"]["path"]])
    names = sent.config["_wandb"]["value"]["bounding_box/class_labels"]
    assert names["val/cams_wandb_delimeter_truth"]["value"] == {"0": "blue", "1": "red"}


def test_every_table_and_histogram_has_arrived(trained: WandbServer, sent: Run) -> None:
    for row in with_pictures(sent)[1:]:
        assert sum(row["val/cam_entropy_histogram"]["values"]) == 8
        for name, count in (("val/classes", 2), ("val/confusion_table", 4)):
            assert len(json.loads(sent.files[row[name]["path"]])["data"]) == count
    parts = [a for a in trained.artifacts.values() if a.kind == "wandb-run-incremental-table"]
    assert [part.is_committed for part in parts] == [True] * 3
    for epoch, part in enumerate(parts):
        [table] = [json.loads(data) for n, data in part.files.items() if n.endswith(".table.json")]
        lines = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
        assert [line["epoch"] for line in lines] == [epoch] * 8
        for line in lines:
            for column in ("image", "overlay"):
                path = line[column]["path"]
                Image.open(io.BytesIO(part.files[path])).load()


def test_the_run_ends_with_its_settings_its_summary_and_its_network(
    trained: WandbServer, sent: Run, tmp_path: Path
) -> None:
    assert (sent.exit_code, sent.starts) == (0, 1)
    assert sent.settings["displayName"] == "run"
    assert sent.config["max_epochs"]["value"] == 2
    assert sent.config["pictures"]["value"] == {"train": 16, "val": 8, "test": 8}
    assert sent.summary["best/epoch"] in (1, 2)
    [best] = [row for row in with_pictures(sent) if row["epoch"] == sent.summary["best/epoch"]]
    assert sent.summary["best/val/acc1"] == pytest.approx(best["val/acc1"])
    [model] = [a for a in trained.artifacts.values() if a.kind == "model"]
    assert model.collection == f"model-{sent.name}"
    assert model.is_committed
    assert sorted(model.aliases) == ["best", "latest"]
    assert model.metadata["test/acc1"] == pytest.approx(sent.summary["test/acc1"])
    (tmp_path / "sent.safetensors").write_bytes(model.files["model.safetensors"])
    assert camtrain.load(tmp_path / "sent.safetensors").description.class_names == ("blue", "red")


def test_the_run_is_named_as_asked(sent: Run) -> None:
    said = {name: sent.settings[name] for name in ("groupName", "jobType", "notes", "tags")}
    assert said == {"groupName": "g", "jobType": "train", "notes": "two words", "tags": ["a", "b"]}


def test_the_summary_has_the_best_scores_and_the_smallest_losses(sent: Run) -> None:
    rows = with_pictures(sent)[1:]
    assert sent.summary["val/acc1"] == {"max": max(row["val/acc1"] for row in rows)}
    for name in ("val/loss", "train/loss"):
        losses = [row[name] for row in sent.rows if name in row]
        assert sent.summary[name] == {"min": min(losses)}
    assert sent.summary["val/loc_gt_known"] == rows[-1]["val/loc_gt_known"]  # others: the last


def test_the_run_uses_its_data(trained: WandbServer, sent: Run) -> None:
    [data] = [a for a in trained.artifacts.values() if a.kind == "dataset"]
    assert (data.collection, data.is_committed) == ("data-photographs", True)
    assert sent.used == [data.id]
    [(name, content)] = data.files.items()
    facts = json.loads(content)
    assert name == "data.json"
    assert {split: fact["pictures"] for split, fact in facts.items()} == {
        "train": 16,
        "val": 8,
        "test": 8,
    }
    assert data.metadata["val"] == facts["val"]


def test_the_network_is_linked_to_the_collection_of_the_registry(trained: WandbServer) -> None:
    [model] = [a for a in trained.artifacts.values() if a.kind == "model"]
    assert model.links == ["shelf/nets"]


def test_the_report_is_attached(sent: Run, trained: WandbServer) -> None:
    [report] = [row["report"] for row in sent.rows if "report" in row]
    assert b"<html" in sent.files[report["path"]].lower()[:200]


def cut(_: str) -> int:
    raise ConnectionError


# What the server does to each request once it has received a picture.
FAULTS: dict[str, Callable[[str], int | None]] = {
    "refuses": cut,  # its socket is closed, too
    "cuts the connection": cut,
    "hangs": lambda _: time.sleep(30),
    "fails": lambda _: 500,
    "knows the key no longer": lambda _: 401,
}


SOON = """
import sys
from camtrain.training.run import wandb_run
wandb_run.LONGEST_FINISH = 5
from camtrain.cli import main
sys.exit(main(sys.argv[1:]))
"""


def train_online(
    script: str, server: WandbServer, folder: Path, fit: list[str], within: Sequence[str] = ()
) -> str:
    """Train in a process of its own, online; returns what it said to standard error."""
    with online(server, folder):
        command = [*within, sys.executable, "-c", script, *fit, *WANDB]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


def assert_untouched(runs: Path, fit: list[str]) -> None:
    """The scores are as without W&B."""
    run([*fit, "--name", "without"])
    one, other = (runs / name / "metrics.csv" for name in ("without", "run"))
    assert one.read_text() == other.read_text()


def advice_of(stderr: str) -> str:
    """The command of the only line that says that W&B failed."""
    [advice] = re.findall(r"W&B failed \(\w+: .*\); the training goes on, .*: (.*)", stderr)
    return str(advice)


def uploaded_by(command: str, folder: Path) -> Run:
    """What a healthy server has after a command of the advice."""
    healthy = WandbServer()
    with online(healthy, folder):
        words = [sys.executable, "-m", *command.split()]
        subprocess.run(words, check=True, capture_output=True)
    [sent] = healthy.runs.values()
    return sent


@pytest.mark.nightly
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_in_the_middle_changes_nothing(
    fault: str, fit_arguments: Arguments, tmp_path: Path
) -> None:
    """The training is as without W&B; one line says how to send what has reached its files."""
    server = WandbServer()
    uploads: list[str] = []

    def after_a_picture(path: str) -> int | None:
        uploads.extend([path] * path.startswith("/storage"))
        if len(uploads) < 2:
            return None
        if fault == "refuses":
            server.socket.close()
        return FAULTS[fault](path)

    server.disturb = after_a_picture
    began = time.monotonic()
    said = train_online(SOON, server, tmp_path, fit_arguments())
    assert time.monotonic() - began < 150
    assert_untouched(tmp_path / "runs", fit_arguments())
    [part] = (tmp_path / "runs" / "run" / "wandb").glob("run-*-*")
    assert advice_of(said) == f"wandb sync --include-online {part}"
    sent = uploaded_by(advice_of(said), tmp_path)
    assert sent.rows[0]["epoch"] == 0
    assert len(with_pictures(sent)) >= 1


# In the second epoch, when the service has written and sent the first.
KILLED = """
import os, signal, time
import wandb
from camtrain.training.module import CAMModule
step, calls = CAMModule.training_step, iter(range(9))

def training_step(module, *args):
    if next(calls) == 3:
        while not module.logger.worker.calls.empty():
            time.sleep(0.1)
        time.sleep(20)
        service = wandb.sdk.wandb_setup.singleton()._connection._proc._process
        os.kill(VICTIM, signal.SIGKILL)
    return step(module, *args)

CAMModule.training_step = training_step
"""


@pytest.mark.nightly
def test_a_service_that_is_killed_in_the_middle_changes_nothing(
    fit_arguments: Arguments, tmp_path: Path
) -> None:
    script = KILLED.replace("VICTIM", "service.pid") + SOON
    said = train_online(script, WandbServer(), tmp_path, fit_arguments())
    assert_untouched(tmp_path / "runs", fit_arguments())
    [part] = (tmp_path / "runs" / "run" / "wandb").glob("run-*-*")
    assert advice_of(said) == f"wandb sync --include-online {part}"
    sent = uploaded_by(advice_of(said), tmp_path)
    assert [row["epoch"] for row in with_pictures(sent)] == [0, 1]


DISK_FILLS = """
import contextlib, os
from pathlib import Path
from camtrain.training.run import loggers
start = loggers.start_wandb

def start_on_a_small_disk(folder, *args, **options):
    place = Path(folder) / "wandb"
    place.mkdir(parents=True)
    assert os.system(f"mount -t tmpfs -o size=2m tmpfs {place}") == 0
    logger = start(folder, *args, **options)
    with contextlib.suppress(OSError), open(place / "full", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return logger

loggers.start_wandb = start_on_a_small_disk
"""


@pytest.mark.nightly
def test_a_full_disk_of_its_files_changes_nothing(fit_arguments: Arguments, tmp_path: Path) -> None:
    """Pictures pass through its files, and end with them; the scores reach the server."""
    alone = ["unshare", "--mount", "--map-root-user"]
    mount = [*alone, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("this user may mount nothing")
    server = WandbServer()
    said = train_online(DISK_FILLS + SOON, server, tmp_path, fit_arguments(), alone)
    assert_untouched(tmp_path / "runs", fit_arguments())
    assert "W&B failed (OSError: [Errno 28] No space left on device: " in said
    assert advice_of(said).startswith("wandb sync --include-online ")
    [sent] = server.runs.values()
    assert [row["epoch"] for row in sent.rows if "val/acc1" in row] == [1, 2]
    assert sent.exit_code == 0


@pytest.mark.nightly
def test_two_processes_are_one_run(fit_arguments: Arguments, tmp_path: Path) -> None:
    server = WandbServer()
    two = ("--trainer.strategy", "ddp", "--trainer.devices", "2")
    with online(server, tmp_path):
        run_by_two(run, fit_arguments(*two, *WANDB))
    run_by_two(run, fit_arguments(*two, "--name", "without"))
    one, other = (tmp_path / "runs" / name / "metrics.csv" for name in ("without", "run"))
    assert one.read_text() == other.read_text()
    [sent] = server.runs.values()
    assert (sent.starts, sent.exit_code, server.unknown) == (1, 0, [])
    assert [row["_step"] for row in sent.rows] == list(range(len(sent.rows)))
    assert [row["epoch"] for row in with_pictures(sent)] == [0, 1, 2]
    assert [row["epoch"] for row in sent.rows if "val/acc1" in row] == [1, 2]
    assert len([row for row in sent.rows if "test/acc1" in row]) == 1


@pytest.mark.nightly
def test_each_trial_of_a_sweep_is_a_run_of_it(fit_arguments: Arguments, tmp_path: Path) -> None:
    """W&B's own agent is told two trials by the server, and starts them one after another."""
    server, fit = WandbServer(), fit_arguments(*WANDB)
    name = fit.index("--name")
    command = ["${env}", sys.executable, "${program}", *fit[:name], *fit[name + 2 :], "${args}"]
    server.sweep = json.dumps({"command": command})  # which is YAML, too
    rates = {"first": 0.01, "second": 0.001}
    for trial, rate in rates.items():
        values = {"model.lr": {"value": rate}, "model.ema_decay": {"value": "null"}}
        order = {"type": "run", "run_id": trial, "program": str(ROOT / "train.py"), "args": values}
        server.trials.append(order)
    with online(server, tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DIR", str(tmp_path))  # of the agent's own files
        agent = [sys.executable, "-m", "wandb", "agent", "ours/birds/sweep1"]
        subprocess.run(agent, capture_output=True, check=True, cwd=ROOT)
    assert list(server.runs) == list(rates)
    for trial, sent in server.runs.items():
        assert (sent.project, sent.settings["sweep"], sent.exit_code) == ("birds", "sweep1", 0)
        assert sent.settings["displayName"] == f"digits-{trial}"
        assert (tmp_path / "runs" / f"digits-{trial}" / "model.safetensors").is_file()
        assert sent.config["lr"]["value"] == rates[trial]
        assert [row["epoch"] for row in sent.rows if "val/acc1" in row] == [1, 2]


@pytest.mark.nightly
def test_a_continued_training_is_the_same_run(fit_arguments: Arguments, tmp_path: Path) -> None:
    server = WandbServer()
    with online(server, tmp_path):
        run(fit_arguments(*WANDB, "--trainer.max_epochs", "1"))
        [sent] = server.runs.values()
        assert sent.exit_code == 0
        rows = list(sent.rows)
        run(fit_arguments(*WANDB, "--ckpt_path", "last"))
    assert list(server.runs.values()) == [sent]
    assert (sent.starts, server.unknown) == (2, [])
    assert sent.rows[: len(rows)] == rows
    assert [row["_step"] for row in sent.rows] == list(range(len(sent.rows)))
    assert [row["epoch"] for row in with_pictures(sent)] == [0, 1, 2]
    assert [row["val/cams_table"]["increment_num"] for row in with_pictures(sent)] == [0, 1, 2]
    tables = [a for a in server.artifacts.values() if a.kind == "wandb-run-incremental-table"]
    assert [table.collection for table in tables] == [tables[0].collection] * 3


@pytest.mark.nightly
def test_a_killed_training_goes_on_in_its_run(fit_arguments: Arguments, tmp_path: Path) -> None:
    """What it had logged since its checkpoint is logged again, in rows of its own."""
    server, fit = WandbServer(), fit_arguments()
    with pytest.raises(subprocess.CalledProcessError) as killed:
        train_online(KILLED.replace("VICTIM", "os.getpid()") + SOON, server, tmp_path, fit)
    assert killed.value.returncode == -signal.SIGKILL
    [sent] = server.runs.values()
    with online(server, tmp_path):
        run([*fit, *WANDB, "--ckpt_path", "last"])
    assert list(server.runs.values()) == [sent]
    assert (sent.exit_code, sent.starts) == (0, 2)
    assert [row["_step"] for row in sent.rows] == list(range(len(sent.rows)))
    assert [row["epoch"] for row in with_pictures(sent)] == [0, 1, 2]
    steps = [row["trainer/global_step"] for row in sent.rows if "train/loss_step" in row]
    assert steps == [0, 1, 2, 2, 3]
