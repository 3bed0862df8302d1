"""The threshold of a heatmap above which its boxes are drawn: a number, or ``auto``."""

from __future__ import annotations

from typing import Literal, SupportsFloat

from camtrain.errors import CamtrainValueError
from camtrain.files import checked_numbers

Threshold = float | Literal["auto"]

AUTO: Literal["auto"] = "auto"  # each heatmap has its own, see ``auto_threshold``
DEFAULT_THRESHOLD = 0.2


def check_threshold(threshold: float) -> float:
    """The threshold as a float; raise CamtrainValueError unless it lies in [0, 1)."""
    if not (isinstance(threshold, SupportsFloat) and 0 <= float(threshold) < 1):
        raise CamtrainValueError(f"threshold must lie in [0, 1), got {threshold}.")
    return float(threshold)


def check_any_threshold(threshold: Threshold) -> Threshold:
    """The threshold itself; raise CamtrainValueError unless it lies in [0, 1) or is ``auto``."""
    if isinstance(threshold, str):
        if threshold == AUTO:
            return AUTO
        raise CamtrainValueError(f"threshold must lie in [0, 1) or be auto, got {threshold!r}.")
    return check_threshold(threshold)


def stored_threshold(value: object) -> Threshold:
    """The threshold that a file stores; raise CamtrainValueError for anything else."""
    return AUTO if value == AUTO else checked_numbers("map_threshold", {"": value})[""]


def threshold_text(threshold: Threshold) -> str:
    """The threshold as people read it.

    Example:
        >>> threshold_text(0.25), threshold_text("auto")
        ('0.25', 'auto')
    """
    return threshold if isinstance(threshold, str) else f"{threshold:.3g}"
