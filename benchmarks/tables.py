"""What a benchmark returns, and how it is printed: samples become medians with p10 and p90, a ratio and a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

PEERS_MEND = "skipped: install with apt-get install tini dumb-init s6"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table. `limit` is judged by the median, or by the worst sample where `bound` says so.

    A row without samples only has its `remark`: what was skipped, or what never happened.
    """

    who: str
    samples: tuple[float, ...] = ()
    limit: float | None = None
    bound: bool = False
    ours: bool = False
    remark: str = ""

    @property
    def verdict(self) -> str:
        """PASS, MISS, or nothing where there is no limit."""
        if self.limit is None or not self.samples:
            return ""
        judged = max(self.samples) if self.bound else median(self.samples)
        return "PASS" if judged <= self.limit else "MISS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The outcome of one benchmark, or a part of it. Ratios are between the first row that is ours and the others."""

    name: str
    title: str
    unit: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def percentile(samples: tuple[float, ...], share: float) -> float:
    """Return the value below which `share` of the samples lie, linear between neighbours."""
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def find_ratio(table: Table, row: Row) -> float | None:
    """Return how many times a peer's median ours is, or None where that says nothing."""
    ours = next((other for other in table.rows if other.ours and other.samples), None)
    if ours is None or row.ours or not row.samples or median(row.samples) <= 0:
        return None
    return median(ours.samples) / median(row.samples)


def render_table(table: Table) -> str:
    """Render an aligned table with its notes."""
    head = ("", "median", "p10", "p90", "n", "ours/it", "limit", "")
    body = [_cells(table, row) for row in table.rows]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    lines = [f"{table.name}: {table.title} [{table.unit}]"]
    for line in (head, *body):
        name, *numbers, verdict = (
            cell.ljust(width) if column in (0, len(head) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("  ".join(("", name, *numbers, verdict)).rstrip())
    lines += [f"  * {note}" for note in table.notes]
    return "\n".join(lines)


def _cells(table: Table, row: Row) -> tuple[str, ...]:
    if not row.samples:
        return (row.who, "-", "", "", "", "", _number(row.limit), row.remark)
    figures = (median(row.samples), percentile(row.samples, 0.1), percentile(row.samples, 0.9))
    judged = "≤ " + _number(row.limit) + (" max" if row.bound else "") if row.limit is not None else ""
    verdict = f"{row.verdict} {row.remark}".strip()
    return (row.who, *map(_number, figures), str(len(row.samples)), _number(find_ratio(table, row)), judged, verdict)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:#.2g}" if abs(value) < 1 else f"{value:#.3g}"


def table_data(table: Table) -> dict[str, Any]:
    """Return a table as JSON data."""
    rows = []
    for row in table.rows:
        data: dict[str, Any] = {"who": row.who, "ours": row.ours, "remark": row.remark, "n": len(row.samples)}
        if row.samples:
            data |= {
                "median": median(row.samples),
                "p10": percentile(row.samples, 0.1),
                "p90": percentile(row.samples, 0.9),
                "max": max(row.samples),
                "limit": row.limit,
                "judged_by": "max" if row.bound else "median",
                "verdict": row.verdict or None,
                "ours_over_it": find_ratio(table, row),
            }
        rows.append(data)
    return {"name": table.name, "title": table.title, "unit": table.unit, "rows": rows, "notes": list(table.notes)}
