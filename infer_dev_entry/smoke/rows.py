"""One row a check: what was looked at, the verdict, the time, what was seen, the mend; and how rows show. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from infer_dev_entry.foreign_text import one_line


class Verdict(StrEnum):
    """`skip` was not looked at, or cannot be: `seen` says why."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a check found. `measures` are numbers for scripts, by name with their unit."""

    verdict: Verdict
    seen: str
    mend: str = ""
    measures: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One check of one server; `server` is its name, or its URL, or "" for what is of the container."""

    server: str
    check: str
    verdict: Verdict
    seconds: float
    seen: str
    mend: str = ""
    measures: tuple[tuple[str, float], ...] = ()


def passed(seen: str, **measures: float) -> Outcome:
    """Return that it is as it should be."""
    return Outcome(verdict=Verdict.PASS, seen=seen, measures=tuple(measures.items()))


def failed(seen: str, mend: str = "") -> Outcome:
    """Return that users will be let down."""
    return Outcome(verdict=Verdict.FAIL, seen=seen, mend=mend)


def skipped(why: str, mend: str = "") -> Outcome:
    """Return that there was nothing to look at."""
    return Outcome(verdict=Verdict.SKIP, seen=why, mend=mend)


def is_good(rows: Sequence[Row]) -> bool:
    """Say whether no check failed."""
    return all(row.verdict is not Verdict.FAIL for row in rows)


def render_json(rows: Sequence[Row]) -> str:
    """Render rows for scripts."""
    shown = [asdict(row) | {"seconds": round(row.seconds, 3), "measures": dict(row.measures)} for row in rows]
    return json.dumps({"ok": is_good(rows), "rows": shown}, indent=1)


def render_head(width: int) -> str:
    """Render the head of the table; `width` is that of the check names."""
    return f"{'CHECK'.ljust(width)}  VERDICT  SECONDS  SEEN"


def render_row(row: Row, width: int) -> str:
    """Render a row of the table. A mend has a line of its own, as it is long."""
    line = f"{row.check.ljust(width)}  {row.verdict.ljust(7)}  {row.seconds:7.2f}  {one_line(row.seen)}"
    return f"{line}\n{' ' * (width + 20)}→ {one_line(row.mend)}" if row.mend else line


def render_counts(rows: Sequence[Row]) -> str:
    """Render the last line of the table."""
    counts = Counter(row.verdict for row in rows)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)
