"""A W&B run that is sent to a server, and what the server holds of it afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

import camtrain
from camtrain.training.cli.main import main as run
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
wandb_run.LONGEST_FINISH = 3
from camtrain.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.nightly
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_in_the_middle_changes_nothing(
    fault: str, fit_arguments: Arguments, tmp_path: Path
) -> None:
    """The training is as without W&B; one line says how to send what has reached its files."""
    run(fit_arguments("--name", "without"))
    server, healthy = WandbServer(), WandbServer()

    uploads: list[str] = []

    def after_a_picture(path: str) -> int | None:
        uploads.extend([path] * path.startswith("/storage"))
        if len(uploads) < 2:
            return None
        if fault == "refuses":
            server.socket.close()
        return FAULTS[fault](path)

    server.disturb = after_a_picture
    with online(server, tmp_path):
        command = [sys.executable, "-c", SOON, *fit_arguments(*WANDB)]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        assert time.monotonic() - began < 150
    one, other = (tmp_path / "runs" / name for name in ("without", "run"))
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    [part] = (other / "wandb").glob("run-*-*")
    said = re.findall(r"W&B failed \(\w+: .*\); the training goes on, .*: (.*)", done.stderr)
    assert said == [f"wandb sync --include-online {part}"]
    assert "Traceback" not in done.stdout + done.stderr
    with online(healthy, tmp_path):
        subprocess.run(
            [sys.executable, "-m", "wandb", *said[0].split()[1:]], check=True, capture_output=True
        )
    [sent] = healthy.runs.values()
    assert sent.rows[0]["epoch"] == 0
    assert len(with_pictures(sent)) >= 1


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
