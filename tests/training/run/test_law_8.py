"""Law 8 for every kind of training, killed by event and by time: the whole folder is the same."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from camtrain.data import SourceOptions, make_sources
from camtrain.data.shards.write import write_shards
from tests.conftest import fit_of
from tests.training.run.killing import run_in_child
from tests.training.run.test_resume import assert_same

FROZEN = ("--model.freeze_backbone", "true", "--data.augment", "flip")
KINDS = {
    "plain": ("--data.augment", "imagenet", "--model.dropout", "0.5", "--data.workers", "2"),
    "cached": FROZEN,
    "solver": (*FROZEN, "--data.augment", "none", "--model.head_solver", "logistic"),
    "unfreezing": (*FROZEN, "--model.unfreeze_at_epoch", "1"),
    "steps": ("--trainer.max_epochs", "-1", "--trainer.max_steps", "9"),
    "multi-label": (
        *("--data.source", "csv", "--data.root", "{lists}/labels.csv"),
        *("--model.task", "multilabel"),
    ),
    "shards": ("--data.source", "shards", "--data.root", "{lists}/shards"),
    "refined": ("--model.refine", "affinity", "--model.refine_layers", '["trunk.relu3"]'),
    "W&B offline": ("--logger", "wandb"),
}
EVENTS = [
    ("in a step", 7),
    ("in a validation", 2),
    ("in the last validation", 1),
    ("before metrics.csv", 2),
    ("before best.ckpt", 1),
    ("before the page of the end", 1),
    ("in the test", 1),
]
TIMES = [0.2 + 0.05 * number for number in range(16)]  # parts of the time of the whole
# Another event and another time for each kind every day, in turn.
DAY = int(os.environ.get("LAW_8_DAY", date.today().toordinal()))
CASES: list[tuple[str, str | float, int]] = [
    *((kind, *EVENTS[(DAY + n) % len(EVENTS)]) for n, kind in enumerate(KINDS)),
    *((kind, TIMES[(DAY + 7 * n) % len(TIMES)], 1) for n, kind in enumerate(KINDS)),
]


@pytest.fixture(scope="session")
def lists(photographs_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs as shards, and a list of them with several labels."""
    folder = tmp_path_factory.mktemp("lists")
    lines = ["path,label,split"]
    for path in sorted(photographs_once.rglob("*.png")):
        split, name = path.parts[-3:-1]
        more = ";square" if int(path.stem) % 2 else ""
        lines.append(f"{path},{name}{more},{split}")
    (folder / "labels.csv").write_text("\n".join(lines))
    sources = make_sources("folder", SourceOptions(root=photographs_once))
    assert list(write_shards(sources, folder / "shards", root=str(photographs_once)))
    return folder


@pytest.fixture(scope="session")
def whole(
    photographs_once: Path, lists: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, float]]:
    """The runs folder of a training that nobody killed, and its seconds."""
    runs: dict[str, tuple[Path, float]] = {}

    def run(kind: str) -> tuple[Path, float]:
        if kind not in runs:
            folder, began = tmp_path_factory.mktemp("whole"), time.monotonic()
            assert run_in_child(arguments(kind, photographs_once, lists, folder)) == 0
            runs[kind] = folder, time.monotonic() - began
        return runs[kind]

    return run


def arguments(kind: str, photographs: Path, lists: Path, runs_dir: Path) -> list[str]:
    more = [word.format(lists=lists) if "{lists}" in word else word for word in KINDS[kind]]
    batches = ("--data.batch_size", "4", "--save_every_minutes", "0")
    return fit_of(photographs, runs_dir, *batches, "--cams.faithfulness", "0", *more)


def content(runs_dir: Path) -> dict[str, Any]:
    """What each file of the run holds, without times and places."""
    folder = runs_dir / "run"
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path: str(path.relative_to(folder)) for path in files}
    return {
        name: _content(path, str(runs_dir))
        for path, name in names.items()
        if not name.startswith("wandb/")
    }


def _content(path: Path, runs_dir: str) -> object:
    if path.suffix == ".ckpt":
        checkpoint = torch.load(path, weights_only=True)
        for name in ("loops", "CAMDataModule"):  # how far Lightning has come, in its own words
            checkpoint.pop(name, None)
        checkpoint["run"].pop("wandb_step")
        return checkpoint
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {"tensors": load_file(path), "metadata": file.metadata()}
    if path.suffix in (".html", ".yaml", ".json"):
        text = path.read_text().replace(runs_dir, "RUNS")
        return re.sub(r"written \d{4}-[-\d]+ [:\d]+", "written then", text)
    return path.read_bytes()


@pytest.mark.nightly
@pytest.mark.parametrize(("kind", "place", "count"), CASES)
def test_killed_and_continued_the_folder_is_that_of_a_run_never_killed(
    kind: str,
    place: str | float,
    count: int,
    photographs_once: Path,
    lists: Path,
    whole: Callable[[str], tuple[Path, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    expected, seconds = whole(kind)
    args = arguments(kind, photographs_once, lists, tmp_path)
    kill = (place * seconds if isinstance(place, float) else place, count)
    run_in_child(args, kill=kill)
    exists = (tmp_path / "run").exists()
    assert run_in_child([*args, *(["--ckpt_path", "last"] if exists else [])]) == 0
    assert_same(content(tmp_path), content(expected), f"{kind}, {place}")
