"""Lightning's ``Trainer``: our defaults, the precision of this machine, and errors of one line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ProgressBar, RichProgressBar

from camtrain.errors import CamtrainValueError, one_line

TRAINER_DEFAULTS = {
    "max_epochs": 20,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 10,  # a step's loss makes the GPU wait
}
# Units that multiply bfloat16; a CPU without them emulates it, slower than float32.
_BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "arm_bf16", "sve_bf16")


class ProgressBarFromOne(RichProgressBar):
    """Lightning's progress bar, with epochs that count from 1 as everywhere else."""

    def _get_train_description(self, current_epoch: int) -> str:
        total = self.trainer.max_epochs
        text = f"Epoch {current_epoch + 1}{f'/{total}' if total and total > 0 else ''}"
        return text.ljust(len(self.validation_description))


def count_from_one(callbacks: Sequence[Callback]) -> None:
    """Let Lightning's usual progress bar count epochs from 1; other bars are left as they are."""
    for bar in callbacks:
        if type(bar) is RichProgressBar:
            bar.__class__ = ProgressBarFromOne  # keeps its settings


def build_trainer(options: Mapping[str, Any]) -> Trainer:
    """Lightning's ``Trainer``.

    Raises:
        CamtrainValueError: Lightning refuses an option.
    """
    epochs = options.get("max_epochs")
    if epochs is not None and epochs < -1:
        raise CamtrainValueError(
            f"trainer.max_epochs must be at least 0, or -1 for no limit, got {epochs}."
        )
    # Scores are logged by epoch, and by step as often as there are steps.
    warnings.filterwarnings("ignore", message="The number of training batches")
    callbacks = as_list(options.get("callbacks"))
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    if options.get("enable_progress_bar") is not False and not has_bar:
        callbacks = [*callbacks, ProgressBarFromOne()]
    if isinstance(options.get("val_check_interval"), int):  # Lightning takes 1 for a whole epoch
        for stopper in (c for c in callbacks if isinstance(c, EarlyStopping)):
            stopper._check_on_train_epoch_end = bool(stopper._check_on_train_epoch_end)
    try:
        return Trainer(**{**options, "callbacks": callbacks})
    except (MisconfigurationException, TypeError, ValueError) as error:
        text = one_line(error, with_type=False)
        words = set(re.findall(r"[\w-]+", text))
        given = [f"trainer.{n}={v}" for n, v in options.items() if {n, str(v)} & words]
        raise CamtrainValueError(
            f"Lightning's Trainer refuses {', '.join(given) or 'its options'} ({text}); "
            "trainer.accelerator=auto and trainer.devices=auto use what this machine has."
        ) from error


def check_precision(trainer: Trainer) -> None:
    """Raise CamtrainValueError where the trainer casts the whole network to 16 bits."""
    if trainer.precision in ("16-true", "bf16-true"):
        raise CamtrainValueError(
            f"trainer.precision={trainer.precision} would compute maps and logits in 16 bits, and "
            "they need float32; choose bf16-mixed or 16-mixed."
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
