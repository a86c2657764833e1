"""What probes make a server generate, idle and under traffic, against a probe that a container runs by `exec`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable

from benchmarks.managers import run_ours
from benchmarks.processes import cpu_s
from benchmarks.tables import Row, Table

PERIOD_S = 1.0
THRESHOLD = 6  # the default of the engine
WINDOW_S = 24.0
TRAFFIC_PERIOD_S = 0.25
_TABLES = f"[instance.{{name}}.probe]\nperiod_s = {PERIOD_S}\ntimeout_s = 0.9\nfailure_threshold = {THRESHOLD}\n"
# What a Kubernetes exec probe starts in every period.
_EXEC = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/health', timeout=5).read()"


def run() -> tuple[Table, ...]:
    """Count the generations of one server in two windows; then do as an exec probe does, on the same server."""
    with run_ours("loads", 1, _TABLES, engine="sglang") as ours:
        ours.events.wait("fleet.ready", timeout_s=60)
        port, pid = ours.ports[0], ours.space.init_pid
        idle, idle_cpu = _count(port, pid, lambda: None)
        busy, busy_cpu = _count(port, pid, lambda: _post(port))
    with run_ours("loads", 1, _TABLES.replace(f"period_s = {PERIOD_S}", "period_s = 3600"), engine="sglang") as ours:
        ours.events.wait("fleet.ready", timeout_s=60)
        port = ours.ports[0]
        peer, peer_cpu = _count_exec(port)
    per_hour = 3600 / WINDOW_S / (20.0 / PERIOD_S)  # at the default period of 20 s
    rows = (
        Row(who="infer-dev, traffic", samples=(busy,), ours=True, limit=WINDOW_S / PERIOD_S / THRESHOLD + 1),
        Row(who="infer-dev, idle", samples=(idle,), ours=True),
        Row(who="exec probe, traffic or idle", samples=(peer,)),
    )
    cpu = (
        Row(who="infer-dev, traffic", samples=(busy_cpu,), ours=True),
        Row(who="infer-dev, idle", samples=(idle_cpu,), ours=True),
        Row(who="exec probe", samples=(peer_cpu,)),
    )
    title = f"one server probed every {PERIOD_S:g} s for {WINDOW_S:g} s"
    return (
        Table(
            name="probe",
            title=f"generations for probes alone, {title}",
            unit="generations",
            rows=rows,
            notes=(
                f"× {per_hour:g} = an hour at the default period of 20 s; every {THRESHOLD}th period is probed anyway",
            ),
        ),
        Table(name="probe", title=f"CPU time of the prober (of PID 1 as a whole), {title}", unit="s", rows=cpu),
    )


def _count(port: int, pid: int, act: Callable[[], None]) -> tuple[float, float]:
    """Return the generations for probes and the CPU time of a process in one window."""
    before, cpu, until = _probed(port), cpu_s(pid), time.monotonic() + WINDOW_S
    while time.monotonic() < until:
        act()
        time.sleep(TRAFFIC_PERIOD_S)  # the pace of the traffic; not a wait
    return _probed(port) - before, cpu_s(pid) - cpu


def _count_exec(port: int) -> tuple[float, float]:
    before, until, spent = _probed(port), time.monotonic() + WINDOW_S, 0.0
    while (began := time.monotonic()) < until:
        spent += _run_exec(port)
        time.sleep(max(0.0, PERIOD_S - (time.monotonic() - began)))  # the probe's period; not a wait
    return _probed(port) - before, spent


def _run_exec(port: int) -> float:
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", _EXEC.format(port=port)], check=True, timeout=30)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _probed(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/count", timeout=10) as answer:
        return int(json.loads(answer.read()))


def _post(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/chat/completions", b"{}", timeout=10) as answer:
        answer.read()
