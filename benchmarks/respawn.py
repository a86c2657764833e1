"""A server dies by SIGKILL: how long until the next process of it runs?"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack

from benchmarks.managers import Managed, has_s6, run_ours, run_s6, run_supervisord
from benchmarks.processes import now_s
from benchmarks.tables import PEERS_MEND, Row, Table

ROUNDS = 8
LIMIT_MS = 50.0
# supervisord and s6 restart at once only what has been up for a second.
UP_S = 1.2
BACKOFF_S = 0.2
_NO_BACKOFF_S = 0.001
_TABLES = (
    "[instance.{{name}}.restart]\nbackoff_initial_s = {seconds}\nbackoff_max_s = {seconds}\nmax_restarts = 0\n"
    "[instance.{{name}}.probe]\nstartup_deadline_s = 3600\n"
)


def run() -> tuple[Table, ...]:
    """Kill one server of each manager in turn, again and again."""
    peers: dict[str, Managed] = {}
    times: dict[str, list[float]] = {"beyond": [], "all": []}
    with ExitStack() as stack:
        quick = stack.enter_context(run_ours("quiet", 1, _TABLES.format(seconds=_NO_BACKOFF_S)))
        usual = stack.enter_context(run_ours("quiet", 1, _TABLES.format(seconds=BACKOFF_S)))
        peers["supervisord, autorestart=true"] = stack.enter_context(run_supervisord("quiet", 1))
        if has_s6():
            peers["s6"] = stack.enter_context(run_s6("quiet", 1))
            peers["s6, notification-fd"] = stack.enter_context(run_s6("quiet", 1, notify=True))
        for managed in (quick, usual, *peers.values()):
            managed.arrivals.wait_count(1, 30)
        for _ in range(ROUNDS):
            times["all"].append(_respawn_s(quick)[1])
            killed_at, took = _respawn_s(usual)
            crash = usual.events.wait("server.crashed", after_s=killed_at)
            times["beyond"].append(took - float(crash.data["retry_in_s"]))
            for name, managed in peers.items():
                times.setdefault(name, []).append(_respawn_s(managed)[1])
    milliseconds = {name: tuple(1000 * item for item in found) for name, found in times.items()}
    rows = [
        Row(who="infer-dev, back-off of 1 ms", samples=milliseconds["all"], ours=True, limit=LIMIT_MS + 1),
        Row(who="infer-dev, beyond a back-off of 0.2 s", samples=milliseconds["beyond"], ours=True, limit=LIMIT_MS),
        *(Row(who=name, samples=milliseconds[name]) for name in peers),
    ]
    if not has_s6():
        rows.append(Row(who="s6", remark=PEERS_MEND))
    return (
        Table(
            name="respawn",
            title="SIGKILL of a server to its next process",
            unit="ms",
            rows=tuple(rows),
            notes=(
                f"every server had been up for {UP_S:g} s to {UP_S + 1:g} s; our back-off's default is 1 s, doubling",
                "supervisord starts a program on the poll after the one that reaped it, a second later",
                "s6 waits a second before it starts again what never said that it was ready",
                "with 1 ms the sweep for leftovers is in the figure, with 0.2 s it is done during the back-off",
                "the logged delay is rounded to 10 ms, so a single figure beyond it is good to ± 5 ms",
            ),
        ),
    )


def _respawn_s(managed: Managed) -> tuple[float, float]:
    port = managed.ports[0]
    old = managed.arrivals.last(port)
    # The server's age, not a wait for something; random, so that no manager is met at the same phase of its clock.
    time.sleep(max(0.0, old.at_s + UP_S + random.random() - now_s()))
    killed_at = managed.space.kill(old.pid)
    return killed_at, managed.arrivals.wait_new(port, killed_at, 15).at_s - killed_at
