"""The state of all global random numbers, in plain values."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's random numbers, on the CPU and on all GPUs."""
    version, internal, next_gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), next_gauss],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on where ``random_state`` was asked for."""
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal), next_gauss))
    kind, keys, place, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():  # another machine has other devices
        torch.cuda.set_rng_state_all(state["cuda"])


def of_all_processes(state: dict[str, Any], processes: int) -> list[dict[str, Any]]:
    """What every process has, in order of rank."""
    states = [state] * processes
    if processes > 1:
        torch.distributed.all_gather_object(states, state)
    return states
