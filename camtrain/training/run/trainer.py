"""Lightning's ``Trainer``: our defaults, the precision of this machine, and errors of one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer

from camtrain.errors import CamtrainValueError, one_line

TRAINER_DEFAULTS = {
    "max_epochs": 20,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 1,  # scores are logged by epoch; Lightning warns about short epochs
}
# Units that multiply bfloat16; a CPU without them emulates it, slower than float32.
_BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "arm_bf16", "sve_bf16")


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
    try:
        return Trainer(**options)
    except (MisconfigurationException, TypeError, ValueError) as error:
        text = one_line(error, with_type=False)
        words = set(re.findall(r"[\w-]+", text))
        given = [f"trainer.{n}={v}" for n, v in options.items() if {n, str(v)} & words]
        raise CamtrainValueError(
            f"Lightning's Trainer refuses {', '.join(given) or 'its options'} ({text}); "
            "trainer.accelerator=auto and trainer.devices=auto use what this machine has."
        ) from error


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
