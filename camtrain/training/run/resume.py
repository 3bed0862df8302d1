"""Continuing a run: whether it may be continued, and the state that it continues with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pytorch_lightning import Trainer
from pytorch_lightning.loops.fit_loop import _FitLoop
from torch.optim.lr_scheduler import LambdaLR

from camtrain.errors import (
    CamtrainError,
    CamtrainFileNotFoundError,
    CamtrainValueError,
    one_line,
)
from camtrain.files import check_writable
from camtrain.header import (
    METADATA_KEY,
    Description,
    checkpoint_description,
    read_checkpoint_content,
)
from camtrain.training.learn.optimizer import count_steps, make_schedule
from camtrain.training.run.folder import SPLIT_NAME, RunFolder

if TYPE_CHECKING:
    from camtrain.training.module import CAMModule

# Settings that may change: where the pictures lie and how fast they are read. Weights were read
# once and for all when the run began.
MAY_CHANGE = frozenset(
    {
        *("model.weights", "model.num_classes", "model._instantiator"),
        *("data.root", "data.workers", "data.class_names", "data.split_file", "data.metadata"),
        *("data.max_damaged", "data.allow_damaged", "data._instantiator"),
        *("data.cache_dir", "data.shards_cache", "data.shards_cache_gb"),
    }
)


def check_start(folder: RunFolder, ckpt_path: str | None, *, overwrite: bool) -> None:
    """Make sure that a run can begin in its folder and loses nothing; nothing is changed.

    Raises:
        CamtrainValueError: The folder is not empty, and the run is neither continued nor replaced.
        CamtrainFileNotFoundError: The checkpoint does not exist.
    """
    if ckpt_path == "last":
        is_left = folder.path.is_dir() and any(folder.path.iterdir()) and folder.is_unborn
        if not folder.last.is_file() and not folder.config.is_file() and not is_left:
            raise CamtrainFileNotFoundError(
                f'ckpt_path="last" continues a run, but {folder.path} holds none (no '
                "checkpoints/last.ckpt); give the folder of the run (on the command line --name "
                "and --runs_dir), or leave ckpt_path out to start anew."
            )
        return
    if ckpt_path is not None:
        path = Path(ckpt_path)
        check_is_file(path)
        if path.suffix == ".safetensors":
            raise CamtrainValueError(
                f"ckpt_path must be a checkpoint (.ckpt), got the bundle {path}, which holds no "
                f"state of a training; start from its network with model.weights={path}."
            )
        if overwrite and folder.path.resolve() in path.resolve().parents:
            raise CamtrainValueError(
                f"overwrite=True would delete {path} before the run starts from it; choose "
                'another name, or continue the run with ckpt_path="last".'
            )
    if folder.is_unborn:
        check_writable(folder.path, "folder (runs_dir)")
        return
    if not folder.path.is_dir():
        raise CamtrainValueError(f"{folder.path} is a file, not a run's folder; choose another.")
    if not overwrite:
        raise CamtrainValueError(
            f'The run folder {folder.path} is not empty; continue it with ckpt_path="last", '
            "replace it with overwrite=True, or choose another name."
        )
    if not folder.config.is_file():
        raise CamtrainValueError(
            f"overwrite=True replaces only an earlier run, and {folder.path} holds none (no "
            "config.yaml); choose another name, or delete the folder yourself."
        )


_STATE = {"optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict}


def read_state(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that a training can go on from.

    Raises:
        CamtrainValueError: It is another file, a damaged one, or holds only a network.
    """
    content = read_checkpoint_content(path, mmap=True)
    with refusing_state(path):
        for name, kind in _STATE.items():
            if not isinstance(content[name], kind):
                raise TypeError(f"{name} is a {type(content[name]).__name__}")
        int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        int(content["global_step"]), int(content[METADATA_KEY]["seed"])
    return content


@contextmanager
def refusing_state(path: str | Path | None, trainer: Trainer | None = None) -> Iterator[None]:
    """Raise one CamtrainValueError for whatever a damaged state raises while it is read.

    With a trainer: while it restores the state, and not for what is raised later.
    """
    connector: Any = trainer and trainer._checkpoint_connector
    try:
        yield
    except Exception as error:  # what damaged values make Lightning raise cannot be known
        is_later = connector is not None and not connector._loaded_checkpoint
        if isinstance(error, CamtrainError) or is_later:
            raise
        raise CamtrainValueError(
            f"{path} holds no state that a training can go on from ({one_line(error)}); give "
            "another last.ckpt or best.ckpt, or start from a network with model.weights="
            "runs/NAME/model.safetensors."
        ) from error


def check_is_file(checkpoint: Path) -> None:
    """Raise ``CamtrainFileNotFoundError`` where a checkpoint does not exist."""
    if not checkpoint.is_file():
        reason = "is a folder" if checkpoint.is_dir() else "does not exist"
        raise CamtrainFileNotFoundError(
            "ckpt_path must be a checkpoint, such as runs/NAME/checkpoints/best.ckpt; "
            f"{checkpoint} {reason}."
        )


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

    Lightning restores the learning rate and the rest of the optimizer from the checkpoint, and
    would silently ignore new ones; with other data or losses no config would describe the run.
    All arguments but the checkpoint are those of the training that is about to start.

    Raises:
        CamtrainValueError: A setting differs, or the training has had more epochs already.
    """
    writer = checkpoint["callbacks"].get("RunWriter", {})
    stored = {
        **_with_prefix("model", checkpoint.get("hyper_parameters", {})),
        **_with_prefix("model", checkpoint[METADATA_KEY].get("given", {})),
        **_with_prefix("data", checkpoint.get("datamodule_hyper_parameters", {})),
        "monitor": writer.get("monitor", monitor),
    }
    current = {**_with_prefix("model", model), **_with_prefix("data", data), "monitor": monitor}
    set_by_training = {"model.lr"} if model.get("find_lr") else set()
    changed = [
        f"{name} was {stored[name]!r}, got {current[name]!r}"
        for name in current
        if name in stored.keys() - MAY_CHANGE - set_by_training
        and as_plain(current[name]) != as_plain(stored[name])
    ]
    if changed:
        raise CamtrainValueError(
            f"A training is continued with the settings it began with: {'; '.join(changed)}; give "
            f"the same (they are in {folder.config}), or start a new run from its network: "
            f"model.weights={folder.bundle}."
        )
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if max_epochs is not None and 0 <= max_epochs < epochs:
        raise CamtrainValueError(
            f"trainer.max_epochs must be at least {epochs}, the epochs that the training in "
            f"{folder.path} has had, got {max_epochs}; to go on, give more."
        )


def _with_prefix(part: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings sorted by name, with ``part.`` before each name."""
    return {f"{part}.{name}": settings[name] for name in sorted(settings)}


def as_plain(value: object) -> object:
    """A setting as YAML and checkpoints hold it."""
    if isinstance(value, Mapping):
        return {str(name): as_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def check_same_network(module: CAMModule, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to continue the training of another network.

    Raises:
        CamtrainValueError: The architecture, classes, refinement or teacher differ.
    """
    teacher = module.teacher.hash if module.teacher else None
    stored_teacher = checkpoint[METADATA_KEY].get("teacher")
    stored = _fixed_parts(checkpoint_description(checkpoint), stored_teacher)
    for name, value in _fixed_parts(module.net.description, teacher).items():
        if value != stored[name]:
            raise CamtrainValueError(
                f"A training is continued with the {name} it began with, {stored[name]}, got "
                f"{value}; give the same settings, or start a new run with model.weights."
            )


def _fixed_parts(description: Description, teacher: str | None) -> dict[str, object]:
    """The values that a continued training must not change, by the names that messages use."""
    return {
        "network": description.architecture,
        "classes": list(description.class_names or ()),
        "refinement": description.refinement,
        "weights of the teacher": teacher,
    }


def check_same_steps(stored: int | None, current: int | None) -> None:
    """Refuse to continue where epochs have more or fewer steps: the schedule counts steps.

    Raises:
        CamtrainValueError: The numbers of steps per epoch differ.
    """
    if stored is not None and stored != current:
        raise CamtrainValueError(
            f"A training is continued with as many steps per epoch as it began with, {stored}, "
            f"got {current}; give the same batch size, number of devices, accumulation and "
            "pictures, or start a new run from its network with model.weights."
        )


def split_beside(checkpoint: Path) -> str | None:
    """The file of splits of the run that a checkpoint or a bundle belongs to, or None."""
    files = (parent / SPLIT_NAME for parent in checkpoint.absolute().parents[:2])
    return next((str(file) for file in files if file.is_file()), None)


def follow_new_schedule(trainer: Trainer, steps_before: float) -> None:
    """Set the learning rates of a schedule whose number of steps has changed, and print them.

    A checkpoint holds the learning rate of the old schedule, which is 0 at its end, and a
    ``LambdaLR`` would follow the new one only after the first step. Call this when the training
    starts; ``steps_before`` is the number of steps of the whole training before.
    """
    steps = trainer.estimated_stepping_batches
    if steps == steps_before:
        return
    for config in trainer.lr_scheduler_configs:
        schedule: Any = config.scheduler
        if isinstance(schedule, LambdaLR):
            for index, group in enumerate(schedule.optimizer.param_groups):
                factor = schedule.lr_lambdas[index](schedule.last_epoch)
                group["lr"] = schedule.base_lrs[index] * factor
        else:  # timm's remembers its old length; its rates follow from the step alone
            optimizer = trainer.optimizers[0]
            for group in optimizer.param_groups:
                group["lr"] = group.get("initial_lr", group["lr"])
            hparams = trainer.lightning_module.hparams
            schedule = make_schedule(optimizer, hparams, **count_steps(trainer))
            schedule.step_update(trainer.global_step)
            config.scheduler = schedule
    if trainer.is_global_zero:
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        print(
            f"The training has {steps:.0f} steps now, {steps_before:.0f} before; the learning rate "
            f"goes on along the new schedule, with {max(rates):.3g}."
        )


class StartedLoop(_FitLoop):
    """Starts also where no step is left: a validation may be, or what callbacks do at the end."""

    @property
    def done(self) -> bool:
        """Never, until ``limit_to_rest`` or ``end_validation_left`` make the loop a usual one."""
        return False


def start_loop_always(trainer: Trainer) -> None:
    """Let a continued training call ``on_train_start`` and ``on_train_end`` in any case."""
    trainer.fit_loop.__class__ = StartedLoop


def limit_to_rest(trainer: Trainer, stored_run: Mapping[str, Any]) -> None:
    """Let a training that has started do no more than what is left of it.

    Args:
        trainer: Of the training.
        stored_run: What its checkpoint says of the run.
    """
    loop: Any = trainer.fit_loop
    loop.__class__ = _FitLoop
    if stored_run.get("is_validating"):
        cast("Any", trainer)._last_val_time = -math.inf
        if loop.done and loop.epoch_loop._should_check_val_epoch():
            loop.__class__ = StartedLoop
            trainer.should_stop, trainer.val_check_batch = False, 1


def end_validation_left(trainer: Trainer) -> None:
    """Let the training end after this validation, if no step was left."""
    if isinstance(trainer.fit_loop, StartedLoop):
        trainer.fit_loop.__class__ = _FitLoop  # type: ignore[assignment]
        trainer.should_stop = True
