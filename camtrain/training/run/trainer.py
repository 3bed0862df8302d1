"""Lightning's ``Trainer``: our defaults, the precision of this machine, and errors of one line."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EarlyStopping, ProgressBar

from camtrain.errors import CamtrainValueError, one_line
from camtrain.training.run.progress import ProgressBarFromOne

TRAINER_DEFAULTS = {
    "max_epochs": 20,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 10,  # a step's loss makes the GPU wait
}
_REFUSALS = (ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
# Units that multiply bfloat16; a CPU without them emulates it, slower than float32.
_BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "arm_bf16", "sve_bf16")


def build_trainer(options: Mapping[str, Any]) -> Trainer:
    """Lightning's ``Trainer``.

    Raises:
        CamtrainValueError: Lightning refuses an option.
    """
    _check_options(options)
    # Scores are logged by epoch, and by step as often as there are steps.
    warnings.filterwarnings("ignore", message="The number of training batches")
    callbacks = as_list(options.get("callbacks"))
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    if options.get("enable_progress_bar") is not False and not has_bar:
        callbacks = [ProgressBarFromOne(), *callbacks]  # first: it names what the others do
    if isinstance(options.get("val_check_interval"), int):  # Lightning takes 1 for a whole epoch
        for stopper in (c for c in callbacks if isinstance(c, EarlyStopping)):
            stopper._check_on_train_epoch_end = bool(stopper._check_on_train_epoch_end)
    try:
        trainer = Trainer(**{**options, "callbacks": callbacks})
        if environment := getattr(trainer.strategy, "cluster_environment", None):
            environment.validate_settings(trainer.num_devices, trainer.num_nodes)
        return trainer
    except (MisconfigurationException, *_REFUSALS) as error:
        is_name = isinstance(error, LookupError)  # of a variable of a batch system
        raise _refusal_of_options(options, one_line(error, with_type=is_name)) from error


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise CamtrainValueError for values that Lightning takes and cannot train with."""
    epochs = options.get("max_epochs")
    if epochs is not None and epochs < -1:
        raise CamtrainValueError(
            f"trainer.max_epochs must be at least 0, or -1 for no limit, got {epochs}."
        )
    if options.get("barebones"):
        raise CamtrainValueError(
            "trainer.barebones must be False, got True, which leaves out what a run consists of: "
            "checkpoints, scores and heatmaps."
        )
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if (value := options.get(name)) is not None and value < 1:
            raise CamtrainValueError(f"trainer.{name} must be at least 1, got {value}.")


def _refusal_of_options(options: Mapping[str, Any], text: str) -> CamtrainValueError:
    """The error of options that Lightning's ``Trainer`` refuses, by the text of its own."""
    words, defaults = set(re.findall(r"[\w-]+", text)), inspect.signature(Trainer).parameters
    changed = {
        name: value
        for name, value in options.items()
        if name != "callbacks" and value not in (defaults[name].default, TRAINER_DEFAULTS.get(name))
    }
    named = [name for name in changed if name in words]
    named = named or [name for name, value in changed.items() if str(value) in words]
    given = [f"trainer.{name}={changed[name]}" for name in named]
    of_machine = {"accelerator", "devices", "num_nodes", "strategy"} & {*words, *named}
    step = "trainer.accelerator=auto and trainer.devices=auto use what this machine has."
    return CamtrainValueError(
        f"Lightning's Trainer refuses {', '.join(given) or 'its options'} ({text}); "
        f"{step if of_machine or not given else 'leave it out, or give another value.'}"
    )


def lightnings_refusal(error: BaseException) -> CamtrainValueError | None:
    """The sentence for an error by which Lightning refuses settings in a training; else None."""
    text = one_line(error, with_type=False)
    if not isinstance(error, MisconfigurationException) and "conditioned on metric" not in text:
        return None
    return CamtrainValueError(
        f"Lightning refuses the settings of this training ({text}); change the option or callback "
        "that it names, or leave it out."
    )


def check_precision(trainer: Trainer) -> None:
    """Raise CamtrainValueError where the trainer casts the whole network to another type."""
    precision = str(trainer.precision)
    if precision.endswith("-true") and precision != "32-true":
        bits = precision.removeprefix("bf").partition("-")[0]
        raise CamtrainValueError(
            f"trainer.precision={precision} would compute maps and logits in {bits} bits, and they "
            "need float32; choose 32-true, bf16-mixed or 16-mixed."
        )


def ends_epoch(trainer: Trainer) -> bool:
    """Whether the epoch ends with the present batch, or the training does, as far as is known."""
    loop = trainer.fit_loop
    return loop.epoch_loop._is_training_done or (trainer.should_stop and loop._can_stop_early)


def as_list(value: object) -> list[Any]:
    """Callbacks or plugins as a list; Lightning's ``Trainer`` also takes one or None."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def best_precision() -> Literal["bf16-mixed", "32-true"]:
    """``bf16-mixed`` where the GPU, or else the CPU, has bfloat16 units; ``32-true`` otherwise."""
    if torch.cuda.is_available():
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        get_capabilities = getattr(torch.cpu, "get_capabilities", dict)
        capabilities: dict[str, Any] = get_capabilities()
        has_units = any(capabilities.get(unit) for unit in _BFLOAT16_UNITS)
    return "bf16-mixed" if has_units else "32-true"
