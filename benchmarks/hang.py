"""A server is stopped with SIGSTOP, so that it lives but never answers: how long until that is found and mended?"""

from __future__ import annotations

import signal
import time

from benchmarks.managers import ManagedByUs, run_ours, run_supervisord
from benchmarks.processes import read_status
from benchmarks.tables import Row, Table

SERVERS = 8
ROUNDS = 2
PERIOD_S = 1.0
TIMEOUT_S = 0.5
THRESHOLD = 3
BOUND_S = THRESHOLD * PERIOD_S + TIMEOUT_S
_TABLES = (
    f"[instance.{{name}}.probe]\nperiod_s = {PERIOD_S}\ntimeout_s = {TIMEOUT_S}\nfailure_threshold = {THRESHOLD}\n"
    "[instance.{name}.restart]\nbackoff_initial_s = 0.2\nbackoff_max_s = 0.2\nmax_restarts = 0\n"
)


def run() -> tuple[Table, ...]:
    """Hang every server of a fleet, each at another moment of its probe period; supervisord's one beside it."""
    found: list[float] = []
    mended: list[float] = []
    with run_ours("http", SERVERS, _TABLES) as ours, run_supervisord("http", 1) as peer:
        peer_pid = peer.space.pid_of(peer.arrivals.wait_count(1, 30)[0].pid)
        peer.space.kill(peer.arrivals.last(peer.ports[0]).pid, signal.SIGSTOP)
        after_s = 0.0
        for _ in range(ROUNDS):
            after_s = ours.events.wait("fleet.ready", after_s=after_s, timeout_s=60).at_s
            _hang_all(ours, found, mended)
        is_peer_hung = read_status(peer_pid).get("State", "").startswith("T")
    remark = "never: the same stopped process to the end" if is_peer_hung else "ended"
    return (
        Table(
            name="hang",
            title=f"SIGSTOP of a server, probed every {PERIOD_S:g} s, timeout {TIMEOUT_S:g} s, threshold {THRESHOLD}",
            unit="s",
            rows=(
                Row(who="infer-dev, to server.hung", samples=tuple(found), ours=True, limit=BOUND_S, bound=True),
                Row(who="infer-dev, to the next process", samples=tuple(mended), ours=True),
                Row(who="supervisord", remark=remark),
            ),
            notes=(f"the limit is failure_threshold × period + timeout = {BOUND_S:g} s, held by the worst",),
        ),
    )


def _hang_all(ours: ManagedByUs, found: list[float], mended: list[float]) -> None:
    stopped = []
    for port in ours.ports:
        stopped.append(ours.space.kill(ours.arrivals.last(port).pid, signal.SIGSTOP))
        time.sleep(PERIOD_S / SERVERS)  # spreads the moments over the probe period; not a wait
    for index, (port, at_s) in enumerate(zip(ours.ports, stopped, strict=True)):
        event = ours.events.wait("server.hung", after_s=at_s, server=f"w{index}", timeout_s=BOUND_S + 20)
        found.append(event.at_s - at_s)
        mended.append(ours.arrivals.wait_new(port, at_s, 30).at_s - at_s)
