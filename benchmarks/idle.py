"""Nothing happens, with eight servers that answer probes: what do the managers cost in CPU and memory?"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack

from benchmarks.children import free_ports
from benchmarks.managers import Managed, has_s6, run_ours, run_s6, run_supervisord
from benchmarks.processes import command_of, cpu_s, now_s, pss_mb, rss_mb
from benchmarks.tables import PEERS_MEND, Row, Table

SERVERS = 8
WINDOW_S = 30.0
WINDOWS = 3  # each two probe periods long
CPU_LIMIT_PERCENT = 0.3
RSS_LIMIT_MB = 40.0


def run() -> tuple[Table, ...]:
    """Run all managers side by side, so that they share the machine's moods, and read their counters."""
    with ExitStack() as stack:
        ours = stack.enter_context(run_ours("http", SERVERS))
        gated = _run_with_gateway(stack)
        peers: dict[str, Managed] = {"supervisord": stack.enter_context(run_supervisord("http", SERVERS))}
        if has_s6():
            peers["s6"] = stack.enter_context(run_s6("http", SERVERS))
        for fleet in (ours, *gated):
            fleet.events.wait("fleet.ready", timeout_s=60)
        for peer in peers.values():
            peer.arrivals.wait_count(SERVERS, 30)
        time.sleep(3)  # start-up work is not idling; nothing signals its end
        pids = _pids_of_ours(ours) | {name: _manager_pids(peer) for name, peer in peers.items()}
        for fleet in gated:
            pids["infer-dev, with a gateway"] = _pids_of_ours(fleet)["infer-dev, both"]
        cpu = _cpu_percent(pids)
        memory = {name: (sum(map(rss_mb, found)), sum(map(pss_mb, found))) for name, found in pids.items()}
    return (_cpu_table(cpu), _memory_table(memory))


def _run_with_gateway(stack: ExitStack) -> list[Managed]:
    """Run the same servers behind a gateway, where there is nginx."""
    if not shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        return []
    (port,) = free_ports(1)
    return [stack.enter_context(run_ours("http", SERVERS, gateway=f"[gateway]\nport = {port}\n"))]


def _manager_pids(managed: Managed) -> list[int]:
    """Return the processes that manage: all but the servers and what runs below them."""
    servers = {managed.space.pid_of(managed.arrivals.last(port).pid) for port in managed.ports}
    return [pid for pid in managed.space.pids() if pid not in servers]


def _pids_of_ours(managed: Managed) -> dict[str, list[int]]:
    both = _manager_pids(managed)
    daemon = [pid for pid in both if "supervisor.supervisord" in command_of(pid)]
    first = [managed.space.init_pid]
    gateway = [pid for pid in both if "nginx" in command_of(pid)]
    others = sorted(set(both) - set(daemon) - set(first) - set(gateway))
    if others or len(daemon) != 1:
        raise RuntimeError(f"unexpected processes: {[command_of(pid) for pid in both]}")
    return {"infer-dev, both": first + daemon, "of that PID 1": first, "of that supervisord": daemon}


def _cpu_percent(pids: dict[str, list[int]]) -> dict[str, tuple[float, ...]]:
    """Return the share of one core, in several windows one after another."""
    found: dict[str, list[float]] = {name: [] for name in pids}
    length = WINDOW_S / WINDOWS
    for _ in range(WINDOWS):
        before = {name: sum(map(cpu_s, group)) for name, group in pids.items()}
        began = now_s()
        time.sleep(length)  # the window itself
        elapsed = now_s() - began
        for name, group in pids.items():
            found[name].append(100 * (sum(map(cpu_s, group)) - before[name]) / elapsed)
    return {name: tuple(shares) for name, shares in found.items()}


def _cpu_table(cpu: dict[str, tuple[float, ...]]) -> Table:
    rows = [
        Row(
            who=name,
            samples=shares,
            ours=name.startswith(("infer-dev", "of that")),
            limit=CPU_LIMIT_PERCENT if name.startswith("infer-dev") else None,
        )
        for name, shares in cpu.items()
    ]
    return Table(
        name="idle",
        title=f"CPU of the manager, {SERVERS} ready servers, {WINDOW_S:g} s in {WINDOWS} windows",
        unit="% of one core",
        rows=(*rows, *_missing()),
        notes=("infer-dev probes every server's /health every 5 s in this time; the peers know no probes",),
    )


def _memory_table(memory: dict[str, tuple[float, float]]) -> Table:
    ours = ("infer-dev", "of that")
    rows = [
        Row(
            who=f"{name}, {kind}",
            samples=(figures[number],),
            ours=name.startswith(ours),
            limit=RSS_LIMIT_MB if (name, kind) == ("of that PID 1", "RSS") else None,
        )
        for name, figures in memory.items()
        for number, kind in enumerate(("RSS", "PSS"))
    ]
    return Table(
        name="idle",
        title="memory of the manager, in the same run",
        unit="MB",
        rows=(*rows, *_missing()),
        notes=(
            "RSS counts shared pages in every process (s6 has 17 processes that share nearly all); PSS divides them",
        ),
    )


def _missing() -> tuple[Row, ...]:
    return () if has_s6() else (Row(who="s6", remark=PEERS_MEND),)
