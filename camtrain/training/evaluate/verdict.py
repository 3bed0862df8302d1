"""What the measured scores say of a network, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from camtrain.header import DEFAULT_THRESHOLD


def verdict(report: Mapping[str, Any], scores: Mapping[str, float]) -> str | None:
    """One sentence on where the network looks; None where nothing was measured that tells it.

    Args:
        report: Of ``BoxScores.report``; empty without boxes.
        scores: By name without the split.

    Example:
        >>> verdict({}, {"mosaic_peak": 0.5, "mosaic_chance": 0.25})
        'On mosaics 50.0 % of the maps peak in a picture of their class, 25.0 % by chance.'
    """
    if report:
        return _verdict_on_boxes(report)
    if "mosaic_peak" in scores:
        peak, chance = 100 * scores["mosaic_peak"], 100 * scores["mosaic_chance"]
        return (
            f"On mosaics {peak:.1f} % of the maps peak in a picture of their class, {chance:.1f} % "
            "by chance."
        )
    return None


def _verdict_on_boxes(report: Mapping[str, Any]) -> str:
    values, calibrated = report["against_centre"], report["thresholds"]["calibrated"]
    boxes, centre, low, high = (100 * values[name] for name in ("boxes", "centre", "low", "high"))
    comparison = "better than" if low > 0 else "worse than" if high < 0 else "no better than"
    threshold = f"{DEFAULT_THRESHOLD}, the default"
    if calibrated is not None:
        threshold = f"{calibrated:.3g}, calibrated on val"
    return (
        f"{boxes:.1f} % against {centre:.1f} % for a fixed box, {report['pictures_with_boxes']} "
        f"pictures: {comparison} the middle of the picture (difference {boxes - centre:+.1f} "
        f"points, 95 % interval {low:+.1f} to {high:+.1f}; threshold {threshold})."
    )
