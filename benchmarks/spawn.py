"""Boot with eight servers: how long after supervisord's start does the last of them run?"""

from __future__ import annotations

from benchmarks.managers import Managed, has_s6, run_ours, run_s6, run_supervisord
from benchmarks.processes import command_of, started_at_s
from benchmarks.tables import PEERS_MEND, Row, Table

SERVERS = 8
ROUNDS = 10
LIMIT_MS = 600.0


def run() -> tuple[Table, ...]:
    """Boot each manager in turn, once a round."""
    ours: list[float] = []
    boots: list[float] = []
    peers: dict[str, list[float]] = {name: [] for name in ("supervisord", *(["s6"] if has_s6() else []))}
    for _ in range(ROUNDS):
        with run_ours("quiet", SERVERS) as managed:
            last = _last_start(managed)
            daemon = next(pid for pid in managed.space.pids() if "supervisor.supervisord" in command_of(pid))
            ours.append(1000 * (last - started_at_s(daemon)))
            boots.append(1000 * (last - started_at_s(managed.space.init_pid)))
        with run_supervisord("quiet", SERVERS) as managed:
            peers["supervisord"].append(1000 * (_last_start(managed) - started_at_s(managed.space.init_pid)))
        if has_s6():
            with run_s6("quiet", SERVERS) as managed:
                peers["s6"].append(1000 * (_last_start(managed) - started_at_s(managed.space.init_pid)))
    rows = [
        Row(who="infer-dev, from supervisord's start", samples=tuple(ours), ours=True, limit=LIMIT_MS),
        Row(who="infer-dev, from PID 1's start", samples=tuple(boots), ours=True),
        *(Row(who=f"{name} alone", samples=tuple(found)) for name, found in peers.items()),
    ]
    if not has_s6():
        rows.append(Row(who="s6", remark=PEERS_MEND))
    return (
        Table(
            name="spawn",
            title=f"the manager's start to the last of {SERVERS} servers running",
            unit="ms",
            rows=tuple(rows),
            notes=("a process's start is known in ticks of 10 ms, cut down: all figures are 0 to 10 ms too long",),
        ),
    )


def _last_start(managed: Managed) -> float:
    return max(arrival.at_s for arrival in managed.arrivals.wait_count(SERVERS, 60))
