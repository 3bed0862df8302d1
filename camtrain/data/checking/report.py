"""The report of a check: tables for people, JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from camtrain.data.checking.findings import KINDS, Finding, SplitSummary
from camtrain.data.source import Split

_EXAMPLES = 5  # findings of a kind that are printed
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
_CLASSES = 20  # up to here every class has a row


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        source: Name of the source.
        root: The data folder; "" where there is none.
        splits: The numbers of every split.
        findings: What is wrong, errors first.
        strict: Leakage and contradictory labels count as errors.
        unused: Files in the data folder that are in no split, by suffix.
    """

    source: str
    root: str
    splits: Mapping[Split, SplitSummary]
    findings: Sequence[Finding]
    strict: bool = False
    unused: Mapping[str, int] | None = None

    @property
    def errors(self) -> list[Finding]:
        """The findings that would break a training."""
        weights = self._error_weights
        return [finding for finding in self.findings if KINDS[finding.kind].weight in weights]

    @property
    def _error_weights(self) -> tuple[str, ...]:
        return ("error", "warning") if self.strict else ("error",)

    @property
    def status(self) -> int:
        """The exit status: 1 where something would break a training."""
        return 1 if self.errors else 0

    def excluded(self) -> dict[str, str]:
        """The pictures to leave out so that no error remains, each with its reason.

        Of pictures with the same pixels the last one stays, which is that of test where there is
        one; of those with contradictory labels none, since nothing says which label is right.
        """
        paths: dict[str, str] = {}
        for kind, together, detail, _ in self.errors:
            out = together[:-1] if kind == "leakage" else together
            paths |= {path: f"{kind}: {detail}" for path in out if path not in paths}
        return paths

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "source": self.source,
            "root": self.root,
            "status": self.status,
            "splits": {name: asdict(summary) for name, summary in self.splits.items()},
            "unused": dict(self.unused or {}),
            "counts": dict(Counter(finding.kind for finding in self.findings)),
            "findings": [finding._asdict() for finding in self.findings],
        }

    def show(self, console: Console) -> None:
        """Print the numbers of the splits as a table, then what is wrong."""
        console.print(self._table())
        for kind, count in Counter(finding.kind for finding in self.findings).items():
            weight = "error" if KINDS[kind].weight in self._error_weights else KINDS[kind].weight
            console.print(f"[{_COLOURS[weight]}]{weight:8}[/] {KINDS[kind].text}: {count}")
            for line in _examples([entry for entry in self.findings if entry.kind == kind]):
                console.print(f"         {line}", markup=False, highlight=False, soft_wrap=True)
        if self.unused:
            files = ", ".join(f"{count} {suffix}" for suffix, count in self.unused.items())
            console.print(f"Files in no split: {files}", markup=False)
        pictures = sum(summary.pictures for summary in self.splits.values())
        remarks = len(self.findings) - len(self.errors)
        console.print(f"{pictures} pictures, {len(self.errors)} errors, {remarks} remarks")

    def _table(self) -> Table:
        """A column for every split; of many classes, the largest and the smallest."""
        table = Table("", *self.splits)
        summaries = list(self.splits.values())
        table.add_row("pictures", *(str(summary.pictures) for summary in summaries))
        table.add_row("with boxes", *(str(summary.with_boxes) for summary in summaries))
        table.add_row("boxes", *(str(summary.boxes) for summary in summaries))
        table.add_row("width, px", *(_spread(summary.width) for summary in summaries))
        table.add_row("height, px", *(_spread(summary.height) for summary in summaries))
        table.add_row("width : height", *(_spread(summary.aspect) for summary in summaries))
        table.add_section()
        for name in self._shown_classes():
            counts = (str(summary.classes[name]) if name else "" for summary in summaries)
            table.add_row(escape(name) or "...", *counts)
        table.add_section()
        table.add_row("imbalance", *(f"{entry.imbalance:.1f}" for entry in summaries))
        table.caption = "sizes: min, median, max; imbalance: largest class / smallest"
        return table

    def _shown_classes(self) -> list[str]:
        """The names, "" for those that are not shown."""
        totals: Counter[str] = Counter()
        for summary in self.splits.values():
            totals.update(summary.classes)
        if len(totals) <= _CLASSES:
            return list(totals)
        by_size = [name for name, _ in totals.most_common()]
        return [*by_size[: _CLASSES // 2], "", *by_size[-_CLASSES // 2 :]]


def _examples(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings[:_EXAMPLES]:
        paths = finding.paths
        if len(paths) > 4:  # those of several splits are in their order
            paths = (*paths[:2], f"{len(paths) - 3} more", paths[-1])
        where = " = ".join(paths) or finding.split
        text = ": ".join(filter(None, (where, finding.detail)))
        yield text.encode(errors="replace").decode()  # no terminal shows every file name
    if len(findings) > _EXAMPLES:
        yield f"and {len(findings) - _EXAMPLES} more; --json FILE has them all"


def _spread(values: tuple[float, float, float] | None) -> str:
    return "-" if values is None else " ".join(f"{value:.4g}" for value in values)
