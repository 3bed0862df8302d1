"""Seeds of random numbers that depend on nothing but a few numbers."""

from __future__ import annotations

import numpy as np


def seed_of(*numbers: int) -> int:
    """A well mixed 64-bit seed from a few numbers, the same everywhere."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
