"""The one door to /proc: who descends from whom, who carries a server's mark, and how a whole tree is ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from infer_dev_entry.procaccess import read_mark

_PROC = Path("/proc")
# Looks in a row that found nothing while processes were forked go on for so long, and for so many: on a busy machine
# each takes long, and who is held up while it reads misses more. Others that fork must not delay a start for long.
_DOUBT_S = 0.25
_MIN_DOUBTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcInfo:
    """One process. `start_ticks` (clock ticks since boot) with the pid names it for good: pids are used again."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    start_ticks: int
    state: str
    comm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """Who a sweep ended, as `pid (comm)`, and who would not go."""

    killed: tuple[str, ...]
    survivors: tuple[str, ...]


def read_process(pid: int) -> ProcInfo | None:
    """Read one process, or None when it is gone. Source of the fields: proc_pid_stat(5)."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    head, _, tail = text.rpartition(")")  # comm may hold spaces and parentheses
    fields = tail.split()
    return ProcInfo(
        pid=pid,
        comm=head.partition("(")[2],
        state=fields[0],
        ppid=int(fields[1]),
        pgid=int(fields[2]),
        sid=int(fields[3]),
        start_ticks=int(fields[19]),
    )


def read_last_pid() -> str:
    """Return the pid that was given last in this PID namespace; the same twice: nothing was forked in between."""
    try:
        return (_PROC / "loadavg").read_text().split()[4]
    except (OSError, IndexError):
        return ""


def read_processes() -> dict[int, ProcInfo]:
    """Read every process of this PID namespace."""
    pids = (int(name) for name in os.listdir(_PROC) if name.isdigit())
    return {info.pid: info for pid in pids if (info := read_process(pid))}


def find_descendants(processes: Mapping[int, ProcInfo], roots: Iterable[int]) -> set[int]:
    """Return the pids below `roots`, without the roots themselves."""
    children: dict[int, list[int]] = {}
    for info in processes.values():
        children.setdefault(info.ppid, []).append(info.pid)
    found: set[int] = set()
    queue = list(roots)
    while queue:
        for child in children.get(queue.pop(), ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


def _is_marked(pid: int, prefix: str) -> bool:
    """True when its environment carries a mark that equals `prefix`, or starts with it where it ends in `/`."""
    mark = read_mark(_PROC / str(pid))
    return mark == prefix or (prefix.endswith("/") and mark.startswith(prefix))


def read_marked_processes(prefix: str) -> tuple[dict[int, ProcInfo], set[int]]:
    """Read every process and find the marked ones on the way: who forks and exits all the time is seen whole or not.

    The newest come first, as they may be gone first.
    """
    processes: dict[int, ProcInfo] = {}
    marked: set[int] = set()
    for pid in sorted((int(name) for name in os.listdir(_PROC) if name.isdigit()), reverse=True):
        if info := read_process(pid):
            processes[pid] = info
            if _is_marked(pid, prefix):
                marked.add(pid)
    return processes, marked


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """What is remembered of a live server, so that its processes are found when it is dead and they are orphans.

    `members` holds (pid, start_ticks) of the main process and of every descendant seen so far.
    """

    mark: str
    main_pid: int
    sid: int
    members: frozenset[tuple[int, int]]

    def with_descendants(self, processes: Mapping[int, ProcInfo]) -> Tracked:
        """Return this with the descendants of every living member added and the dead ones forgotten."""
        living = self.living(processes)
        found = living | find_descendants(processes, living)
        members = frozenset((pid, processes[pid].start_ticks) for pid in found)
        return Tracked(mark=self.mark, main_pid=self.main_pid, sid=self.sid, members=members)

    def living(self, processes: Mapping[int, ProcInfo]) -> set[int]:
        """Return the members that still run; a pid that was given to a new process is not one."""
        return {pid for pid, ticks in self.members if (info := processes.get(pid)) and info.start_ticks == ticks}


def track(mark: str, pid: int) -> Tracked:
    """Start to remember the server whose main process is `pid` (0: none yet)."""
    info = read_process(pid) if pid else None
    members = frozenset({(info.pid, info.start_ticks)}) if info else frozenset()
    return Tracked(mark=mark, main_pid=pid, sid=info.sid if info else 0, members=members)


def find_leftovers(tracked: Tracked, processes: Mapping[int, ProcInfo], marked: Set[int]) -> set[int]:
    """Return every process of a server: its group, its known tree, and all that carry its mark, with descendants."""
    group = {
        info.pid
        for info in processes.values()
        if tracked.main_pid and info.pgid == tracked.main_pid and info.sid == tracked.sid
    }
    found = group | tracked.living(processes) | marked
    found |= find_descendants(processes, found)
    found.discard(os.getpid())
    return {pid for pid in found if processes[pid].state not in "ZX"}


def find_spared(tracked: Tracked, processes: Mapping[int, ProcInfo], spare_below: int, spare_main: bool) -> set[int]:
    """Return the live programs of supervisord (`spare_below`) with all their descendants.

    They are no leftovers, even when they carry the mark: `supervisorctl restart` may have started the server anew while
    its predecessor is swept. Only the main process that is to be killed is not spared.
    """
    if not spare_below:
        return set()
    programs = {info.pid for info in processes.values() if info.ppid == spare_below}
    if not spare_main:
        programs.discard(tracked.main_pid)
    return programs | find_descendants(processes, programs) | {spare_below}


async def end_leftovers(
    tracked: Tracked, *, spare_below: int = 0, spare_main: bool = True, limit_s: float = 5.0
) -> SweepResult:
    """SIGKILL every process of a server and wait until all are gone, again while new ones turn up.

    Takes little more than `limit_s`. See `find_spared` for who is left alone.
    """
    killed: list[str] = []
    survivors: tuple[str, ...] = ()
    doubts, doubted_at = 0, 0.0
    now = asyncio.get_running_loop().time
    deadline = now() + limit_s
    while now() < deadline:
        last_pid = read_last_pid()
        processes, marked = read_marked_processes(tracked.mark)
        leftovers = find_leftovers(tracked, processes, marked)
        leftovers -= find_spared(tracked, processes, spare_below, spare_main)
        if not leftovers:
            # Who forks and exits while /proc is read is in no list; then nothing found proves nothing.
            doubted_at = doubted_at if doubts else now()
            doubts += 1
            is_enough = doubts >= _MIN_DOUBTS and now() - doubted_at >= _DOUBT_S
            if is_enough or read_last_pid() == last_pid:
                return SweepResult(killed=tuple(killed), survivors=())
            await asyncio.sleep(0.001)
            continue
        doubts = 0
        alive = await _kill_and_wait([processes[pid] for pid in leftovers], timeout_s=1.0)
        named = {f"{pid} ({processes[pid].comm})" for pid in leftovers}
        killed.extend(sorted(named - set(killed)))
        survivors = tuple(f"{pid} ({processes[pid].comm})" for pid in sorted(alive))
    gone = tuple(name for name in killed if name not in survivors)
    return SweepResult(killed=gone, survivors=survivors)


async def _kill_and_wait(victims: list[ProcInfo], timeout_s: float) -> set[int]:
    """Kill through pidfds, which cannot hit a successor of the pid; return who still lives after `timeout_s`."""
    handles: dict[int, int] = {}
    poller = select.poll()
    try:
        for victim in victims:
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(victim.pid)
                handles[handle] = victim.pid
                poller.register(handle, select.POLLIN)
                now = read_process(victim.pid)
                if now and now.start_ticks == victim.start_ticks:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
        waiting = set(handles)
        deadline = asyncio.get_running_loop().time() + timeout_s
        while waiting and asyncio.get_running_loop().time() < deadline:
            waiting -= {handle for handle, _ in poller.poll(0)}
            if waiting:
                await asyncio.sleep(0.002)
        return {handles[handle] for handle in waiting}
    finally:
        for handle in handles:
            os.close(handle)
