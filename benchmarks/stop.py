"""Eight servers that ignore SIGTERM: how long does SIGTERM to PID 1 take to end them all?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from benchmarks.managers import Managed, ManagedByUs, has_s6, run_ours, run_s6, run_supervisord
from benchmarks.tables import PEERS_MEND, Row, Table

SERVERS = 8
DRAIN_S = 2
LIMIT_S = DRAIN_S + 1.0
ROUNDS = 3
_TABLES = f"[instance.{{name}}.control]\ndrain_timeout_s = {DRAIN_S}\n"

Start = Callable[[], AbstractContextManager[Managed]]


def run() -> tuple[Table, ...]:
    """Stop each manager in turn; the slow one, of which one run tells enough, once."""
    ours = "infer-dev"
    starts: dict[str, tuple[Start, int]] = {
        ours: (lambda: run_ours("stubborn", SERVERS, _TABLES), ROUNDS),
        "supervisord, one group": (
            lambda: run_supervisord("stubborn", SERVERS, stop_wait_s=DRAIN_S, one_group=True),
            ROUNDS,
        ),
        "supervisord, as documented": (lambda: run_supervisord("stubborn", SERVERS, stop_wait_s=DRAIN_S), 1),
    }
    if has_s6():
        starts["s6, timeout-kill"] = (lambda: run_s6("stubborn", SERVERS, stop_wait_s=DRAIN_S), ROUNDS)
    times: dict[str, list[float]] = {name: [] for name in starts}
    for number in range(ROUNDS):
        for name, (start, rounds) in starts.items():
            if number < rounds:
                times[name].append(_stop_s(start))
    rows = [
        Row(
            who=name,
            samples=tuple(found),
            ours=name == ours,
            limit=LIMIT_S if name == ours else None,
            bound=name == ours,
        )
        for name, found in times.items()
    ]
    if not has_s6():
        rows.append(Row(who="s6", remark=PEERS_MEND))
    return (
        Table(
            name="stop",
            title=f"SIGTERM to the end of PID 1, {SERVERS} servers that ignore SIGTERM, drain deadline {DRAIN_S} s",
            unit="s",
            rows=tuple(rows),
            notes=("tini and dumb-init never escalate: with such a command they wait for the runtime's SIGKILL",),
        ),
    )


def _stop_s(start: Start) -> float:
    with start() as managed:
        managed.arrivals.wait_count(SERVERS, 30)
        if isinstance(managed, ManagedByUs):
            for index in range(SERVERS):
                managed.events.wait("server.started", server=f"w{index}")
        return managed.space.stop(60)
