"""A real SGLang on this CPU: what its probes make it generate, and how soon after its death it is started again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import free_ports
from benchmarks.managers import Event, private_dir
from benchmarks.processes import Namespace, children_of, command_of, now_s, wait_until
from benchmarks.real_sglang import (
    READY_S,
    SGLANG_MEND,
    RealSglang,
    count_health_batches,
    has_sglang,
    post,
    run_sglang,
    sglang_argv,
    sglang_environ,
)
from benchmarks.tables import Row, Table

ROUNDS = 3
LIMIT_MS = 50.0
BACKOFF_S = 1.0  # the default
# SGLang itself waits a second between two looks at its health check's answer.
PERIOD_S = 2.0
THRESHOLD = 6  # the default of the engine
WINDOW_S = 30.0
TRAFFIC_PERIOD_S = 0.25
_PROBE = f"period_s = {PERIOD_S}\ntimeout_s = {PERIOD_S - 0.1}\nfailure_threshold = {THRESHOLD}"
_RESTART = f"backoff_initial_s = {BACKOFF_S}\nbackoff_max_s = {BACKOFF_S}\nmax_restarts = 0"
_SUPERVISED = """[supervisord]
nodaemon=true
silent=true
logfile={directory}/supervisord.log
pidfile={directory}/supervisord.pid
[program:w0]
command={command}
autorestart=true
redirect_stderr=true
stdout_logfile={directory}/w0.log
"""


def run() -> tuple[Table, ...]:
    """Probe one server idle and under traffic, then kill it again and again; then the same one under supervisord."""
    if not has_sglang():
        missing = (Row(who="infer-dev", remark=SGLANG_MEND),)
        return (Table(name="sglang", title="a real SGLang on this CPU", unit="", rows=missing),)
    with run_sglang(_PROBE, _RESTART) as ours:
        ours.events.wait("fleet.ready", timeout_s=READY_S)
        idle = _count(ours.log_file, lambda: None)
        busy = _count(ours.log_file, lambda: post(ours.port))
        deaths = [_respawn(ours) for _ in range(ROUNDS)]
    with _supervised() as (space, port, log_file):
        wait_until(lambda: _answers(port), READY_S, "SGLang under supervisord to be ready")
        plain = _count(log_file, _PlainProbe(port))
        peers = [_respawn_of_peer_s(space, port) for _ in range(ROUNDS - 1)]
    return (_probe_table(idle, busy, plain), _respawn_table(deaths, peers))


def _probe_table(idle: float, busy: float, plain: float) -> Table:
    return Table(
        name="sglang",
        title=f"generations for probes alone, a real SGLang probed every {PERIOD_S:g} s for {WINDOW_S:g} s",
        unit="generations",
        rows=(
            Row(who="infer-dev, traffic", samples=(busy,), ours=True, limit=WINDOW_S / PERIOD_S / THRESHOLD + 1),
            Row(who="infer-dev, idle", samples=(idle,), ours=True),
            Row(who="a plain GET /health, traffic", samples=(plain,)),
        ),
        notes=(
            "counted in SGLang's log: batches of one new token, which only a health check makes here",
            f"under traffic its counters prove life; every {THRESHOLD}th period is probed anyway",
            "SGLang lets a health check pass without a batch while it works at requests",
        ),
    )


def _respawn_table(deaths: list[_Respawn], peers: list[float]) -> Table:
    return Table(
        name="sglang",
        title="a real SGLang's main process dies by SIGKILL",
        unit="ms",
        rows=(
            Row(
                who=f"infer-dev: dead to the next process, beyond a back-off of {BACKOFF_S:g} s",
                samples=tuple(1000 * item.beyond_s for item in deaths),
                ours=True,
                limit=LIMIT_MS,
            ),
            Row(
                who="infer-dev: dead to nothing left, in the back-off",
                samples=tuple(1000 * item.swept_s for item in deaths),
                ours=True,
            ),
            Row(who="the kernel: SIGKILL to dead", samples=tuple(1000 * item.dying_s for item in deaths)),
            Row(who="supervisord: SIGKILL to its next process", samples=tuple(1000 * item for item in peers)),
        ),
        notes=(
            "dead: its pidfd says so. Loading takes half a minute more",
            "ours is to the event server.started, 1 to 3 ms late; the logged back-off is good to ± 5 ms",
            "supervisord does not look whether the old scheduler has gone",
        ),
    )


# ---------------------------------------------------------------------------------------------------------- probes


def _count(log_file: Path, act: Callable[[], None]) -> float:
    """Return the generations for health checks alone in one window."""
    before, until = count_health_batches(log_file), time.monotonic() + WINDOW_S
    while time.monotonic() < until:
        act()
        time.sleep(TRAFFIC_PERIOD_S)  # the pace of the traffic; not a wait
    return count_health_batches(log_file) - before


class _PlainProbe:
    """The same traffic, and once a period a GET of /health as a probe sends it that knows no counters."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._due = 0.0

    def __call__(self) -> None:
        post(self._port)
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + PERIOD_S
            _get_health(self._port)


# ---------------------------------------------------------------------------------------------------------- deaths


@dataclass(frozen=True, slots=True, kw_only=True)
class _Respawn:
    """From SIGKILL to dead, and from dead to nothing left and to the next process less the back-off; in seconds."""

    dying_s: float
    swept_s: float
    beyond_s: float


def _respawn(ours: RealSglang) -> _Respawn:
    """Kill the main process of a ready server, and wait until its successor is ready."""
    inner_pid = int(_last(ours, "server.started").data["pid"])
    handle = os.pidfd_open(ours.space.pid_of(inner_pid))
    killed_at = ours.space.kill(inner_pid)
    select.select([handle], [], [], 30)
    dead_at = now_s()
    os.close(handle)
    crash = ours.events.wait("server.crashed", after_s=killed_at)
    swept = ours.events.wait("server.leftovers_ended", after_s=killed_at)
    again = ours.events.wait("server.started", after_s=killed_at)
    ours.events.wait("server.ready", after_s=killed_at, timeout_s=READY_S)
    return _Respawn(
        dying_s=dead_at - killed_at,
        swept_s=swept.at_s - dead_at,
        beyond_s=again.at_s - dead_at - float(crash.data["retry_in_s"]),
    )


def _last(ours: RealSglang, event: str) -> Event:
    return next(item for item in reversed(ours.events.seen) if item.data.get("event") == event)


@contextmanager
def _supervised() -> Iterator[tuple[Namespace, int, Path]]:
    """Run the same server under supervisord alone: its namespace, its port, its log."""
    with private_dir() as directory:
        (port,) = free_ports(1)
        conf = directory / "supervisord.conf"
        command = " ".join(sglang_argv(port))
        conf.write_text(_SUPERVISED.format(directory=directory, command=command), encoding="utf-8")
        environ = sglang_environ() | {"TMPDIR": str(directory)}
        argv = (sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(conf))
        with Namespace(argv, environ=environ) as space:
            yield space, port, directory / "w0.log"


def _respawn_of_peer_s(space: Namespace, port: int) -> float:
    wait_until(lambda: _answers(port), READY_S, "SGLang under supervisord to be ready")
    (old,) = children_of(space.init_pid)
    at = now_s()
    os.kill(old, signal.SIGKILL)
    # Its scheduler and detokenizer come to supervisord as orphans, which is PID 1 here.
    orphans = set(children_of(space.init_pid)) | {old}
    wait_until(lambda: bool(_new_mains(space, orphans)), 30, "the next process")
    return now_s() - at


def _new_mains(space: Namespace, known: set[int]) -> list[int]:
    return [
        pid for pid in children_of(space.init_pid) if pid not in known and "sglang.launch_server" in command_of(pid)
    ]


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        _get_health(port)
        return True
    return False


def _get_health(port: int) -> None:
    """GET /health.

    Raises:
        OSError: it answers with an error, such as 503 until its warm-up is done, or not at all.
    """
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
        answer.read()
