"""The settings of a run: stored with it, and the same when it is continued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback

from camtrain.errors import CamtrainValueError
from camtrain.training.files import write_text
from camtrain.training.run.folder import RunFolder
from camtrain.training.run.writer import RunWriter

# What may change when a training is continued: where the pictures lie and how fast they are read;
# weights have been read once and for all.
_MAY_CHANGE = {
    "model": {"weights", "num_classes", "_instantiator"},
    "data": {
        *("root", "workers", "class_names", "split_file", "max_damaged", "allow_damaged"),
        *("metadata", "cache_dir", "shards_cache", "shards_cache_gb"),
        "_instantiator",
    },
}


class SaveConfig(SaveConfigCallback):
    """Writes the run's ``config.yaml``; that of a continued run only once it really goes on."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it at once where there is none."""
        if not _writer_of(trainer).folder.config.exists():
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace it: the checkpoint has been found to fit these settings."""
        _writer_of(trainer).check_same_steps(trainer)
        if trainer.is_global_zero and not self.already_saved:
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it into the folder of the run."""
        folder = _writer_of(trainer).folder
        folder.path.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_none=False)
        write_text(folder.config, text, encoding=None)  # as jsonargparse reads it


def _writer_of(trainer: Trainer) -> RunWriter:
    callbacks: list[Callback] = cast("Any", trainer).callbacks
    return next(c for c in callbacks if isinstance(c, RunWriter))


def check_same_settings(
    checkpoint: Mapping[str, Any],
    folder: RunFolder,
    *,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    monitor: str,
    max_epochs: int | None,
) -> None:
    """Refuse to continue a training with settings that would make it another one.

    Lightning takes the learning rate and all else that the optimizer knows from the checkpoint,
    and would ignore new ones without a word; other data or losses would join two trainings into
    one that no config describes. More epochs are welcome.

    Args:
        checkpoint: To go on from.
        folder: Of its run.
        model: Settings of the network and its training, now.
        data: Settings of the pictures, now.
        monitor: Score of the best epoch, now.
        max_epochs: Of the training; None and -1 mean no limit.

    Raises:
        CamtrainValueError: A setting differs, or the training has had more epochs already.
    """
    found = {"lr"} if model.get("find_lr") else set()
    pairs = (("model", "hyper_parameters", model), ("data", "datamodule_hyper_parameters", data))
    changed = [
        f"--{part}.{name} was {then[name]!r}, got {now[name]!r}"
        for part, key, now in pairs
        for then in [checkpoint.get(key, {})]
        for name in sorted((now.keys() & then.keys()) - _MAY_CHANGE[part] - found)
        if _plain(now[name]) != _plain(then[name])
    ]
    writer = checkpoint["callbacks"].get("RunWriter", {})
    before = writer.get("monitor", monitor)
    if before != monitor:
        changed.append(f"--monitor was {before!r}, got {monitor!r}")
    if changed:
        raise CamtrainValueError(
            f"A training is continued with the settings it began with: {'; '.join(changed)}; give "
            f"the same (they are in {folder.config}), or start a new run from its network with "
            f"--model.weights {folder.bundle}."
        )
    epochs = len(writer.get("rows", ()))
    if max_epochs is not None and 0 <= max_epochs < epochs:
        raise CamtrainValueError(
            f"--trainer.max_epochs must be at least {epochs}, the epochs that the training in "
            f"{folder.path} has had, got {max_epochs}; to go on, give more."
        )


def _plain(value: object) -> object:
    """A setting as YAML and checkpoints hold it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
