"""Training on shards: exact epochs with workers, and with processes."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from camtrain.cli import main
from camtrain.data import Batch
from camtrain.training import CAMDataModule
from tests.by_two import run_by_two
from tests.training.conftest import quiet_trainer, small_module

pytest.importorskip("webdataset", reason="needs the package webdataset")


ASKED: Counter[str] = Counter()  # how often the server was asked for each path


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        """Count and serve."""
        ASKED[self.path] += 1
        super().do_GET()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def shards(photographs: Path, tmp_path: Path) -> Path:
    """The photographs as shards; 15 in train, which two processes cannot share evenly."""
    (photographs / "train/red/0.png").unlink()
    boxes = photographs / "boxes.csv"
    lines = boxes.read_text().splitlines()
    boxes.write_text("\n".join(line for line in lines if "train/red/0.png" not in line))
    folder = tmp_path / "shards"
    assert main(["shards", str(photographs), "--to", str(folder), "--shard_mb", "0.015"]) == 0
    return folder


@pytest.fixture
def url(shards: Path) -> Iterator[str]:
    """The shards behind a URL of this machine."""
    ASKED.clear()
    handler = partial(_Handler, directory=str(shards))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


def epoch(root: str, workers: int, number: int, cache: Path) -> dict[str, torch.Tensor]:
    """The samples of an epoch by path; each must come once."""
    data = CAMDataModule(
        source="shards", root=root, size=32, batch_size=4, workers=workers, shards_cache=cache
    )
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    pairs = [
        (path, image)
        for batch in loader
        for path, image in zip(batch.paths, batch.images, strict=True)
    ]
    assert len(pairs) == len(dict(pairs)) == 15
    return {path.rpartition("train/")[2]: image for path, image in pairs}


@pytest.mark.nightly
def test_samples_are_the_same_with_any_number_of_workers_from_any_place(
    shards: Path, url: str, tmp_path: Path
) -> None:
    alone = epoch(str(shards), 0, 3, tmp_path)
    for name, root in (("a", str(shards)), ("b", url)):
        found = epoch(root, 2, 3, tmp_path / name)
        assert list(found) == list(alone)
        assert all(torch.equal(found[path], image) for path, image in alone.items())
    other = epoch(str(shards), 0, 4, tmp_path)
    assert list(other) != list(alone)
    assert not all(torch.equal(other[path], image) for path, image in alone.items())


class Noting(pl.Callback):
    """Which pictures came in which epoch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[str]]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Note them."""
        self.seen.append((trainer.current_epoch, batch.paths))


def train_on(url: str, folder: Path) -> None:
    noting = Noting()
    data = CAMDataModule("shards", url, size=32, batch_size=4, workers=2, shards_cache=folder)
    trainer = quiet_trainer(devices=2, strategy="ddp", callbacks=[noting])
    trainer.fit(small_module(), data)
    (folder / f"seen{trainer.global_rank}.json").write_text(json.dumps(noting.seen))


@pytest.mark.nightly
def test_two_processes_with_workers_share_an_epoch(url: str, tmp_path: Path) -> None:
    run_by_two(train_on, url, tmp_path)
    seen = [json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(2)]
    for number in range(2):
        shares = [
            [path for epoch, paths in share for path in paths if epoch == number] for share in seen
        ]
        # Of 15 pictures, one comes twice, so that both processes take as many steps.
        assert [len(share) for share in shares] == [8, 8]
        assert len(set(shares[0]) | set(shares[1])) == 15
    assert {count for path, count in ASKED.items() if path.endswith(".tar")} == {1}


def test_a_network_is_trained_and_tested_on_shards(shards: Path, tmp_path: Path) -> None:
    arguments = [
        *("--model.backbone", "camtrain/digits", "--model.backbone_args", '{"width": 4}'),
        *("--model.neck", "[]", "--data.source", "shards", "--data.root", str(shards)),
        *("--data.size", "32", "--data.workers", "0", "--trainer.max_epochs", "1"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--runs_dir", str(tmp_path / "runs"), "--name", "run", "--logger", "none"),
    ]
    assert main(["fit", *arguments]) == 0
    best = tmp_path / "runs/run/checkpoints/best.ckpt"
    assert main(["test", "--ckpt_path", str(best), "--trainer.enable_progress_bar", "false"]) == 0
