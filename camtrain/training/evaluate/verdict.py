"""What the measured scores say of a network, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from camtrain.thresholds import DEFAULT_THRESHOLD


def verdict(report: Mapping[str, Any], scores: Mapping[str, float]) -> str | None:
    """One sentence on where the network looks; None where nothing was measured that tells it.

    Args:
        report: Of ``BoxScores.report``, empty without boxes; with ``faithfulness`` the report of
            ``Faithfulness``.
        scores: By name without the split.

    Example:
        >>> verdict({}, {"mosaic_peak": 0.5, "mosaic_chance": 0.25})
        'On mosaics 50.0 % of the maps peak in a picture of their class, 25.0 % by chance.'
    """
    if "against_centre" in report:
        return _verdict_on_boxes(report)
    sentences = []
    if "mosaic_peak" in scores:
        peak, chance = 100 * scores["mosaic_peak"], 100 * scores["mosaic_chance"]
        sentences.append(
            f"On mosaics {peak:.1f} % of the maps peak in a picture of their class, {chance:.1f} % "
            "by chance."
        )
    if report.get("faithfulness", {}).get("pictures", 0) > 1:  # of one, nothing is known
        sentences.append(_verdict_on_faithfulness(report["faithfulness"]))
    return " ".join(sentences) or None


def _verdict_on_boxes(report: Mapping[str, Any]) -> str:
    values, calibrated = report["against_centre"], report["thresholds"]["calibrated"]
    boxes, centre, low, high = (100 * values[name] for name in ("boxes", "centre", "low", "high"))
    comparison = _comparison(low, high)
    threshold = f"{DEFAULT_THRESHOLD}, the default"
    if calibrated is not None:
        threshold = f"{calibrated:.3g}, calibrated on val"
    return (
        f"{boxes:.1f} % against {centre:.1f} % for a fixed box, {report['pictures_with_boxes']} "
        f"pictures: {comparison} the middle of the picture (difference {boxes - centre:+.1f} "
        f"points, 95 % interval {low:+.1f} to {high:+.1f}; threshold {threshold})."
        f"{_where_fixed_box_wins(report)}"
    )


def _where_fixed_box_wins(report: Mapping[str, Any]) -> str:
    """A sentence on the groups of pictures in which the fixed box is better, beyond chance."""
    groups = {f"things fill {name}": row for name, row in report.get("by_size", {}).items()}
    groups |= {f"there is {name}": row for name, row in report.get("by_number", {}).items()}
    where = [
        f"{name} ({100 * row['centre']:.1f} % against {100 * row['boxes']:.1f} % of "
        f"{row['pictures']} pictures)"
        for name, row in groups.items()
        if row["high"] < 0
    ]
    return f" The fixed box is the better one where {', and where '.join(where)}." if where else ""


def _verdict_on_faithfulness(report: Mapping[str, Any]) -> str:
    shown, centre = (100 * report["srg"][kind] for kind in ("shown", "centre"))
    difference, low, high = (100 * value for value in report["against"]["centre"].values())
    return (
        f"Faithfulness (SRG) {shown:.1f} against {centre:.1f} for the middle, "
        f"{report['pictures']} pictures: the maps tell {_comparison(low, high)} the middle of the "
        f"picture what the network uses (difference {difference:+.1f} points, 95 % interval "
        f"{low:+.1f} to {high:+.1f})."
    )


def _comparison(low: float, high: float) -> str:
    """What the ends of the interval of a difference allow to say."""
    return "better than" if low > 0 else "worse than" if high < 0 else "no better than"
