"""The phases of a start, told from the server's log, and how long they took before. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A log line → the phase that begins with it, in the order of the phases. The same in SGLang 0.5.7 to 0.5.23.
_MARKERS: Mapping[str, tuple[tuple[bytes, str], ...]] = {
    "sglang": (
        (b"Load weight begin", "weights"),
        (b"Load weight end", "kv-cache"),
        (b" graph begin. ", "graph-capture"),  # "Capture cuda graph begin. ", "Capture decode CUDA graph begin. "
        (b"Uvicorn running on ", "warm-up"),
    )
}
_FIRST = "import"
LONGEST_MARKER_BYTES = max(len(marker) for markers in _MARKERS.values() for marker, _ in markers)

# Starts that are remembered of each server, and servers that are remembered at all.
KEPT_STARTS = 5
KEPT_SERVERS = 256
_LONGEST_S = 86_400.0


def first_phase(engine: str) -> str:
    """Return the phase that a start of this engine begins with; "" when its log tells none."""
    return _FIRST if engine in _MARKERS else ""


def latest_phase(engine: str, phase: str, log: bytes) -> str:
    """Return the phase after this piece of the log. It never goes back: the ranks of a server log side by side."""
    markers = _MARKERS.get(engine, ())
    order = [_FIRST, *(name for _, name in markers)]
    known = order.index(phase) if phase in order else 0
    found = [index for index, (marker, _) in enumerate(markers, start=1) if index > known and marker in log]
    return order[found[-1]] if found else phase


# ------------------------------------------------------------------------------------------------- earlier starts

# Phase → seconds, in their order, of one start that became ready.
Durations = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """The last starts of one server with one command line (`argv_hash`); another command line takes another time."""

    argv_hash: str
    starts: tuple[Durations, ...]


History = Mapping[str, Past]


def estimate_left_s(starts: tuple[Durations, ...], phase: str, in_phase_s: float) -> float | None:
    """Estimate the time until ready from earlier starts, or None where none went through this phase."""
    found = sorted(left for left in (_left_s(start, phase, in_phase_s) for start in starts) if left is not None)
    return found[len(found) // 2] if found else None  # the median: one cold start among warm ones does not count


def _left_s(start: Durations, phase: str, in_phase_s: float) -> float | None:
    names = [name for name, _ in start]
    if phase not in names:
        return None
    here = names.index(phase)
    return max(0.0, start[here][1] - in_phase_s) + sum(seconds for _, seconds in start[here + 1 :])


def starts_of(history: History, name: str, argv_hash: str) -> tuple[Durations, ...]:
    """Return the earlier starts of this server with this command line, the oldest first."""
    past = history.get(name)
    return past.starts if past and past.argv_hash == argv_hash else ()


def with_start(history: History, name: str, argv_hash: str, start: Durations) -> History:
    """Return the history with one start more; the oldest ones are forgotten."""
    starts = (*starts_of(history, name, argv_hash), start)[-KEPT_STARTS:]
    others = [(other, past) for other, past in history.items() if other != name]
    return dict([*others, (name, Past(argv_hash=argv_hash, starts=starts))][-KEPT_SERVERS:])


def render_history(history: History) -> str:
    """Render a history as JSON."""
    return json.dumps({name: {"argv_hash": past.argv_hash, "starts": past.starts} for name, past in history.items()})


def parse_history(text: str) -> History:
    """Parse what `render_history` wrote; of anything else, what can be used."""
    try:
        data = json.loads(text)
        items = list(data.items())[-KEPT_SERVERS:]
    except (ValueError, AttributeError, RecursionError):
        return {}
    return {name: past for name, item in items if (past := _parse_past(item))}


def _parse_past(item: Any) -> Past | None:
    try:
        starts = tuple(_parse_start(start) for start in item["starts"][-KEPT_STARTS:])
        return Past(argv_hash=str(item["argv_hash"])[:64], starts=starts)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _parse_start(start: list[tuple[str, float]]) -> Durations:
    known = (_FIRST, *(name for markers in _MARKERS.values() for _, name in markers))
    return tuple((name, min(_LONGEST_S, max(0.0, float(seconds)))) for name, seconds in start[:16] if name in known)
