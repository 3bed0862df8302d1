"""What a W&B run holds besides its rows: how scores are summarized, data, network and report."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import WandbLogger

from camtrain.data.source import Source
from camtrain.errors import first_line
from camtrain.training.datamodule import CAMDataModule
from camtrain.training.evaluate.scores import is_smaller_better
from camtrain.training.run.worker import enqueue_call

LARGEST_REPORT = 20_000_000  # bytes
_LARGEST_SPLIT = 1_000_000  # bytes; of a longer list of pictures only its hash is sent
_STEP = "trainer/global_step"


def define_scores(logger: WandbLogger, monitor: str) -> None:
    """Let W&B's summary hold the largest monitored score and the smallest losses, not the last."""

    def define() -> None:
        for name in dict.fromkeys((monitor, "val/loss", "train/loss")):
            summary = "min" if is_smaller_better(name) else "max"
            run = logger.experiment
            run.define_metric(name, step_metric=_STEP, step_sync=True, summary=summary)

    enqueue_call(logger, define)


def use_data(logger: WandbLogger, data: CAMDataModule, split_file: Path) -> None:
    """Let the run use the artifact ``data-FOLDER``, which says what the pictures are.

    ``data.json`` holds the number of pictures of each split and a hash of their paths, labels and
    file sizes; ``split.csv`` says the split of each picture, where the run divides them. No picture
    is sent. The same data is the same version, wherever it lies.
    """

    def use() -> None:
        import wandb

        run, root = logger.experiment, data.hparams["root"]
        name = Path(str(root)).absolute().name if root else data.hparams["source"]
        metadata = {"root": str(root), "source": data.hparams["source"]}
        artifact = wandb.Artifact(
            re.sub(r"[^\w.-]", "_", f"data-{name}", flags=re.ASCII), type="dataset"
        )
        splits = {split: facts_of(source, root) for split, source in data.sources.items()}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "data.json"
            file.write_text(json.dumps(splits, indent=1) + "\n")
            artifact.add_file(str(file))  # which copies it
        if split_file.is_file() and split_file.stat().st_size <= _LARGEST_SPLIT:
            artifact.add_file(str(split_file))
        artifact.metadata = {**metadata, **splits}
        # `use_artifact` waits until it is uploaded, and refuses offline what `wandb sync` can do.
        run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    enqueue_call(logger, use)


def facts_of(source: Source, root: str | None) -> dict[str, Any]:
    """The numbers of pictures and classes of a split, and a hash of its pictures."""
    total = hashlib.sha256()
    for path, label in zip(source.paths, source.labels, strict=True):
        size, name = 0, path
        with suppress(OSError):  # it has no file
            size, name = os.stat(path).st_size, os.path.relpath(path, root)
        total.update(f"{name} {size} ".encode(errors="replace") + np.asarray(label).tobytes())
    classes = len(source.class_names)
    return {"pictures": len(source), "classes": classes, "sha256": total.hexdigest()}


def log_network(logger: WandbLogger, bundle: Path, scores: Mapping[str, float]) -> None:
    """Add a version of the artifact ``model-RUN_ID``, and link it if a collection was named."""

    def log() -> None:
        import wandb

        run = logger.experiment
        artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=dict(scores))
        artifact.add_file(str(bundle))
        run.log_artifact(artifact, aliases=["best", "latest"])
        collection = getattr(logger, "register", None)
        if collection is None:
            return
        path = collection if "/" in collection else f"wandb-registry-model/{collection}"
        reason = "the run is offline" if run.offline else ""
        if not reason:
            try:
                run.link_artifact(artifact, path)
            except Exception as error:  # no such registry, no permission, no answer
                reason = f"{type(error).__name__}: {first_line(error)}"
        if reason:
            print(
                f"The network is not yet in W&B's collection {path} ({reason}); once it is "
                f"uploaded, run: wandb.Api().artifact('ENTITY/{run.project}/{artifact.name}:best')"
                f".link('{path}')"
            )

    enqueue_call(logger, log)


def attach_report(logger: WandbLogger, report: Path) -> None:
    """Show ``report.html`` in the run, as ``report``, unless it has more than 20 MB."""
    if not report.is_file():
        return
    if (size := report.stat().st_size) > LARGEST_REPORT:
        print(
            f"{report} has {size / 1e6:.0f} MB, more than the {LARGEST_REPORT / 1e6:.0f} MB that a "
            "W&B run gets, so it stays on this disk."
        )
        return

    def attach() -> None:
        import wandb

        logger.experiment.log({"report": wandb.Html(str(report), inject=False)})

    enqueue_call(logger, attach)
