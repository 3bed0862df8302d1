"""What a W&B run holds besides its rows, as far as it can be seen offline."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from camtrain.training import CAMDataModule
from camtrain.training.run import wandb_content
from camtrain.training.run.loggers import (
    describe_data,
    finish_loggers,
    log_settings,
    upload_bundle,
    upload_report,
)
from camtrain.training.run.wandb_run import NeverStoppingWandbLogger, start_wandb
from tests.training.run.wandb_file import records


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NeverStoppingWandbLogger]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = start_wandb(tmp_path / "run", "project")
    assert logger is not None
    yield logger
    wandb.teardown()


def test_an_offline_run_uses_its_data_and_says_how_scores_are_summarized(
    offline: NeverStoppingWandbLogger, photographs: Path, tmp_path: Path
) -> None:
    """So that ``wandb sync`` does it."""
    split = tmp_path / "split.csv"
    split.write_text("path,split\n")
    log_settings([offline], {}, "val/map")
    describe_data([offline], CAMDataModule(root=photographs), split)
    finish_loggers([offline])
    [file] = (Path(str(offline.save_dir)) / "wandb").glob("offline-run-*/*.wandb")
    of_kind = {kind: [getattr(r, kind) for r in records(file)] for kind in ("artifact", "metric")}
    [data] = [artifact for artifact in of_kind["artifact"] if artifact.name]
    assert (data.name, data.type, data.use_after_commit) == ("data-photographs", "dataset", True)
    assert sorted(entry.path for entry in data.manifest.contents) == ["data.json", "split.csv"]
    goals = {metric.name: metric.summary for metric in of_kind["metric"] if metric.name}
    assert goals["val/map"].max
    assert goals["val/loss"].min
    assert goals["train/loss"].min


def test_offline_the_network_is_linked_later(
    offline: NeverStoppingWandbLogger, capsys: pytest.CaptureFixture[str]
) -> None:
    offline.register = "birds"
    upload_bundle([offline], Path(__file__), {})
    finish_loggers([offline])
    said = capsys.readouterr().out
    assert "not yet in W&B's collection wandb-registry-model/birds (the run is offline)" in said
    assert re.search(r"artifact\('ENTITY/project/model-\w+:best'\)\.link\('wandb-reg", said)


def test_a_report_that_is_too_large_stays_here(
    offline: NeverStoppingWandbLogger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(wandb_content, "LARGEST_REPORT", 1_000_000)
    report = tmp_path / "report.html"
    upload_report([offline], report)  # there is none
    report.write_text(2_000_000 * " ")
    upload_report([offline], report)
    said = capsys.readouterr().out
    assert said == (
        f"{report} has 2 MB, more than the 1 MB that a W&B run gets, so it stays on this disk.\n"
    )
    finish_loggers([offline])
    [part] = (Path(str(offline.save_dir)) / "wandb").glob("offline-run-*")
    assert not list(part.rglob("*.html"))


def test_the_same_data_elsewhere_is_the_same_artifact(photographs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(photographs, tmp_path / "other" / "photographs")

    def hash_of(root: Path) -> str:
        source = CAMDataModule(root=root).sources["val"]
        return str(wandb_content.facts_of(source, str(root))["sha256"])

    before = hash_of(photographs)
    assert hash_of(copy) == before
    with next(copy.glob("val/*/*.png")).open("ab") as file:
        file.write(b"more")
    assert hash_of(copy) != before
