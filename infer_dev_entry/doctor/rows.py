"""One row a check: the verdict, what was seen, the mend; and how rows are shown. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from infer_dev_entry.foreign_text import one_line

GIB = 1024**3
MIB = 1024**2


class Verdict(StrEnum):
    """`warn` may serve all the same, `fail` will not; `skip` was not looked at, and says why."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The outcome of one check. `check` says what was looked at, such as `model of glm`; `mend` may be empty."""

    check: str
    verdict: Verdict
    seen: str
    mend: str = ""


def ok(check: str, seen: str) -> Row:
    """Return a row for what is as it should be."""
    return Row(check=check, verdict=Verdict.OK, seen=seen)


def warn(check: str, seen: str, mend: str = "") -> Row:
    """Return a row for what may hurt."""
    return Row(check=check, verdict=Verdict.WARN, seen=seen, mend=mend)


def fail(check: str, seen: str, mend: str = "") -> Row:
    """Return a row for what keeps a server from serving."""
    return Row(check=check, verdict=Verdict.FAIL, seen=seen, mend=mend)


def skip(check: str, why: str) -> Row:
    """Return a row for what was not looked at."""
    return Row(check=check, verdict=Verdict.SKIP, seen=why)


def is_healthy(rows: Sequence[Row]) -> bool:
    """Say whether no check failed; warnings are allowed."""
    return all(row.verdict is not Verdict.FAIL for row in rows)


def render_json(rows: Sequence[Row]) -> str:
    """Render rows for scripts."""
    return json.dumps({"ok": is_healthy(rows), "rows": [asdict(row) for row in rows]}, indent=1)


def render_table(rows: Sequence[Row]) -> str:
    """Render rows as aligned text. A mend has a line of its own, as it is long."""
    width = max([5, *(len(one_line(row.check)) for row in rows)])
    lines = [f"{'CHECK'.ljust(width)}  VERDICT  SEEN"]
    for row in rows:
        lines.append(f"{one_line(row.check).ljust(width)}  {row.verdict.ljust(7)}  {one_line(row.seen)}")
        if row.mend:
            lines.append(f"{' ' * width}           → {one_line(row.mend)}")
    counts = Counter(row.verdict for row in rows)
    return "\n".join([*lines, ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)])


def size(size_bytes: float) -> str:
    """Render bytes for people, in binary units as nvidia-smi and df -h do."""
    if abs(size_bytes) >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{size_bytes / MIB:.0f} MiB" if abs(size_bytes) >= MIB else f"{size_bytes:.0f} bytes"
