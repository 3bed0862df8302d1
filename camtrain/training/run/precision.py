"""Which precision the machine is good at."""

from __future__ import annotations

from typing import Any, Literal

import torch

Precision = Literal["bf16-mixed", "32-true"]

# Units that multiply bfloat16; without them it is emulated, slower than float32.
_CPU_UNITS = ("avx512_bf16", "amx_bf16", "arm_bf16", "sve_bf16")


def best_precision() -> Precision:
    """``bf16-mixed`` where the GPU, or else the CPU, has bfloat16 units; ``32-true`` otherwise."""
    if torch.cuda.is_available():
        return (
            "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
        )
    ask = getattr(torch.cpu, "get_capabilities", None)
    found: dict[str, Any] = ask() if ask else {}
    return "bf16-mixed" if any(found.get(unit) for unit in _CPU_UNITS) else "32-true"
