"""A server has died and left processes behind: how long until none of them is left?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import time
from pathlib import Path

from benchmarks.processes import command_of, wait_until
from benchmarks.tables import Row, Table
from infer_dev_entry.proctree import Tracked, end_leftovers, read_marked_processes, read_processes, track
from infer_dev_entry.settings import MARK_VARIABLE

ROUNDS = 15
LEFT = 8
LIMIT_MS = 50.0
# Half of them in the main process's group, half in sessions of their own: what a group's kill does not reach.
_SERVER = """i=0
while [ $i -lt COUNT ]; do sleep 1000000 & setsid sleep 1000000 & i=$((i + 1)); done
exec sleep 1000000
"""


def run() -> tuple[Table, ...]:
    """Sweep after a server that left nothing, and after one that left eight; then kill eight whose pids are known."""
    none: list[float] = []
    left: list[float] = []
    known: list[float] = []
    for number in range(ROUNDS):
        none.append(_time_sweep(f"benchmark/none{number}", 0))
        left.append(_time_sweep(f"benchmark/left{number}", LEFT))
        known.append(_time_known(f"benchmark/known{number}"))
    others = len(read_processes())
    return (
        Table(
            name="sweep",
            title=f"the death of a server to the proof that nothing of it is left, {others} processes on the machine",
            unit="ms",
            rows=(
                Row(who="infer-dev, nothing left", samples=tuple(none), ours=True, limit=LIMIT_MS),
                Row(who=f"infer-dev, {LEFT} left", samples=tuple(left), ours=True, limit=LIMIT_MS),
                Row(who=f"kill and wait for {LEFT} known pids", samples=tuple(known)),
            ),
            notes=(
                "infer-dev has to find them: by group, by descent and by the mark in their environment",
                "supervisord, s6 and runit leave them; half are out of reach of a group's kill as well",
            ),
        ),
    )


def _spawn(mark: str, children: int) -> tuple[subprocess.Popen[bytes], Tracked]:
    """Start a server with so many children, and wait until all are there."""
    environ = {**os.environ, MARK_VARIABLE: mark}
    script = _SERVER.replace("COUNT", str(children // 2))
    main = subprocess.Popen(["sh", "-c", script], env=environ, start_new_session=True)

    def are_there() -> bool:
        marked = read_marked_processes(mark)[1]
        return len(marked) == children + 1 and all(command_of(pid).startswith("sleep") for pid in marked)

    wait_until(are_there, 10, f"{children} children")
    return main, track(mark, main.pid).with_descendants(read_processes())


def _time_sweep(mark: str, children: int) -> float:
    main, tracked = _spawn(mark, children)
    main.kill()
    main.wait(10)
    began = time.perf_counter()
    result = asyncio.run(end_leftovers(tracked))
    took = 1000 * (time.perf_counter() - began)
    if result.survivors or read_marked_processes(mark)[1]:
        raise RuntimeError(f"the sweep left {result.survivors or 'something'}")
    return took


def _time_known(mark: str) -> float:
    """As somebody could who knows whom to kill."""
    main, tracked = _spawn(mark, LEFT)
    main.kill()
    main.wait(10)
    pids = [pid for pid, _ in tracked.members if pid != main.pid and Path(f"/proc/{pid}").exists()]
    began = time.perf_counter()
    handles = [os.pidfd_open(pid) for pid in pids]
    poller = select.poll()
    for handle in handles:
        poller.register(handle, select.POLLIN)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    gone: set[int] = set()
    while len(gone) < len(handles):
        for handle, _ in poller.poll(1000):
            poller.unregister(handle)
            gone.add(handle)
    took = 1000 * (time.perf_counter() - began)
    for handle in handles:
        os.close(handle)
    return took
