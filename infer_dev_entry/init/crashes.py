"""What PID 1 does about a death beside starting anew: diagnose it, and keep a dossier of it.

The diagnosis is part of the restart, so what it reads is bounded and a slow disk is not waited for. The dossier is
written beside the restart, from what was seen at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shlex
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from infer_dev_entry.cgroup import find_memory_cgroup
from infer_dev_entry.diagnosis.model import Diagnosis
from infer_dev_entry.dossier import Dossier, crash_dir, write_dossier
from infer_dev_entry.errors import RunDirError
from infer_dev_entry.fleet.actions import Record
from infer_dev_entry.init.death import diagnose_death, exit_status
from infer_dev_entry.init.owner import Owner, become_command
from infer_dev_entry.init.reaper import Reaper
from infer_dev_entry.init.spawn import signal_group, spawn_helper
from infer_dev_entry.logtail import clean_lines
from infer_dev_entry.proctree import Tracked, read_process
from infer_dev_entry.redact import redact_line, secrets_of
from infer_dev_entry.rundir import read_text
from infer_dev_entry.runlog import LogMark, mark_log, read_run
from infer_dev_entry.spec import ServerSpec
from infer_dev_entry.supervisor_rpc import ProcessInfo

# A log on a file system that hangs must not keep its server down.
DIAGNOSIS_TIMEOUT_S = 2.0
HELPER_TIMEOUT_S = 5.0
EVIDENCE_LINES = 5
_LOG_LINES = 1000
_MAX_PROCESSES = 200
_MAX_STACKS = 16
_MAX_NAMES = 500
_MAX_COMMAND_CHARS = 16 * 1024
_MAX_OUTPUT_BYTES = 48 * 1024
_COUNTER_FILES = (
    *("memory.events", "memory.current", "memory.peak", "memory.max", "memory.swap.current", "pids.events"),
    *("memory.oom_control", "memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.limit_in_bytes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What was seen of a death before anything was tidied up."""

    ended_at: float
    exit_code: int | None = None
    signal: int | None = None
    log: str = ""
    processes: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """What was seen of a hung server before it was ended: its processes, and where its threads stood."""

    processes: tuple[str, ...] = ()
    stacks: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A dossier to be written."""

    wish: Record
    scene: Scene
    hang: Hang


class Crashes:
    """Knows where each run's log began, what was seen of each death, and where the threads of a hung server stood."""

    def __init__(
        self, *, run_dir: str, owner: Owner | None, environ: Mapping[str, str], reaper: Reaper, log: Any
    ) -> None:
        self._run_dir = run_dir
        self._owner = owner
        self._environ = environ
        self._reaper = reaper
        self._log = log
        self._marks: dict[str, tuple[int, LogMark]] = {}  # name → pid (0: about to start), and where its log began
        self._scenes: dict[str, Scene] = {}
        self._hangs: dict[str, Hang] = {}
        self._waiting: dict[str, _Entry] = {}
        self._warned = False
        self._numbers = itertools.count()

    # -- starts

    def expect_start(self, spec: ServerSpec) -> None:
        """Note where the log of the run that starts now begins; blocks for a moment."""
        self._marks[spec.name] = (0, mark_log(spec.log_file))

    def see_process(self, spec: ServerSpec, pid: int) -> None:
        """Learn the pid of the run; one that we did not start (supervisorctl) begins about now."""
        known, mark = self._marks.get(spec.name, (-1, LogMark(inode=0, offset=0)))
        if known == 0:
            self._marks[spec.name] = (pid, mark)
        elif known != pid:
            self._marks[spec.name] = (pid, mark_log(spec.log_file))

    # -- deaths

    async def diagnose(self, info: ProcessInfo, spec: ServerSpec, tracked: Tracked, oom: str) -> Diagnosis:
        """Say why a server has ended, and remember what there is to see of it."""
        mark = self._marks.get(spec.name, (0, None))[1]
        reading = asyncio.to_thread(_see, info, spec, tracked, oom, mark)
        try:
            self._scenes[spec.name], found = await asyncio.wait_for(reading, DIAGNOSIS_TIMEOUT_S)
        except TimeoutError:
            self._log.warning("server.log_unreadable", server=spec.name, log_file=spec.log_file)
            self._scenes.pop(spec.name, None)
            found = diagnose_death(info, spec, "", oom)
        return found

    async def look_at_hung(self, spec: ServerSpec, tracked: Tracked) -> None:
        """Before a hung server is ended: its last log lines, and where its threads stand if py-spy is installed."""
        mark = self._marks.get(spec.name, (0, None))[1]
        self._hangs[spec.name] = Hang(processes=_read_members(tracked))
        with contextlib.suppress(TimeoutError):
            log = await asyncio.wait_for(asyncio.to_thread(read_run, spec.log_file, mark), DIAGNOSIS_TIMEOUT_S)
            tail = clean_lines(log, EVIDENCE_LINES, secrets_of(spec.files), 300)
            self._log.warning("server.evidence", server=spec.name, log_tail=list(tail))
        stacks = await self._read_stacks(spec, tracked)
        if not stacks:
            return
        self._hangs[spec.name] = replace(self._hangs[spec.name], stacks=stacks)
        self._log.warning("server.evidence", server=spec.name, stacks=f"infer-dev crashes {spec.name}")

    async def _read_stacks(self, spec: ServerSpec, tracked: Tracked) -> str:
        """Say where the threads of each process stand. SGLang's main process is well while its scheduler hangs.

        py-spy pauses nobody here: a process that somebody has stopped cannot be paused, and a hung one stands still.
        """
        # A bundle has it beside the server's interpreter, which is on nobody's PATH, and whose files are the owner's.
        program = shutil.which("py-spy")
        become = () if program or self._owner is None else become_command(self._owner)
        program = program or shutil.which("py-spy", path=os.path.dirname(spec.argv[0]) or os.devnull)
        if not program:
            return ""
        dumps = [
            self._run_helper(*become, program, "dump", "--nonblocking", "--pid", str(pid))
            for pid, _ in sorted(tracked.members)[:_MAX_STACKS]
        ]
        told = await asyncio.gather(*dumps)
        return "\n".join(text for text in told if "Thread" in text) or "\n".join(told)

    # -- dossiers

    async def record(self, wish: Record) -> None:
        """Write the dossier of a failure. While one of the same server is written, only the latest waits."""
        name = wish.spec.name
        scene = self._scenes.pop(name, Scene(ended_at=time.time()))
        busy = name in self._waiting
        entry = self._waiting[name] = _Entry(wish=wish, scene=scene, hang=self._hangs.pop(name, Hang()))
        if busy:
            return
        try:
            done = None
            while (entry := self._waiting[name]) is not done:
                done = entry
                await self._write(entry)
        finally:
            del self._waiting[name]

    async def _write(self, entry: _Entry) -> None:
        smi = ""
        if entry.wish.spec.gpu_ids != () and (program := shutil.which("nvidia-smi")):
            smi = await self._run_helper(program)
        try:
            await asyncio.to_thread(self._write_dossier, entry, smi)
            self._warned = False
        except RunDirError as error:
            if not self._warned:
                self._log.warning("server.dossier_lost", server=entry.wish.spec.name, error=str(error))
            self._warned = True

    def _write_dossier(self, entry: _Entry, smi: str) -> None:
        wish, scene, spec = entry.wish, entry.scene, entry.wish.spec
        secrets = secrets_of(spec.files)
        dossier = Dossier(
            server=spec.name,
            engine=spec.engine,
            kind=wish.kind,
            policy=wish.policy,
            reason=wish.reason,
            mend=wish.mend,
            failures=wish.failures,
            run=wish.run,
            ended_at=scene.ended_at,
            ran_s=wish.ran_s,
            exit_code=scene.exit_code,
            signal=scene.signal,
            command=redact_line(shlex.join(spec.argv), secrets)[:_MAX_COMMAND_CHARS],
            environment=tuple(sorted({*self._environ, *dict(spec.environment)})[:_MAX_NAMES]),
            gpu_ids=spec.gpu_ids,
            log_file=spec.log_file,
            processes=entry.hang.processes or scene.processes,
            counters=scene.counters,
            limits=tuple(read_text("/proc/self/limits").splitlines()),  # ours, which every server inherits
            nvidia_smi="\n".join(clean_lines(smi, _LOG_LINES)),
            stacks="\n".join(clean_lines(entry.hang.stacks, _LOG_LINES, secrets)),
            log=clean_lines(scene.log, _LOG_LINES, secrets),
        )
        owner = (self._owner.uid, self._owner.gid) if self._owner else None
        write_dossier(self._run_dir, dossier, owner=owner)

    async def _run_helper(self, *argv: str) -> str:
        """Run a program for a few seconds at most, and return what it wrote."""
        output = f"{crash_dir(self._run_dir)}.{next(self._numbers)}"
        try:
            pid = spawn_helper(argv, self._environ, output=output)
            done, _ = await asyncio.wait({self._reaper.expect(pid)}, timeout=HELPER_TIMEOUT_S)
            if not done:
                signal_group(pid, signal.SIGKILL)
            return read_text(output, _MAX_OUTPUT_BYTES)
        except OSError:
            return ""
        finally:
            with contextlib.suppress(OSError):
                os.unlink(output)


def _see(
    info: ProcessInfo, spec: ServerSpec, tracked: Tracked, oom: str, mark: LogMark | None
) -> tuple[Scene, Diagnosis]:
    """Read all that will be gone soon, and diagnose; runs in a thread."""
    exit_code, number = exit_status(info)
    log = read_run(spec.log_file, mark)
    scene = Scene(ended_at=time.time(), exit_code=exit_code, signal=number, log=log)
    found = diagnose_death(info, spec, log, oom)
    return replace(scene, processes=_read_members(tracked), counters=_read_counters()), found


def _read_members(tracked: Tracked) -> tuple[str, ...]:
    """Describe the processes that the dead one has left."""
    alive = []
    for pid, ticks in sorted(tracked.members)[:_MAX_PROCESSES]:
        info = read_process(pid)
        if info and info.start_ticks == ticks:
            alive.append(f"{pid} {info.state} parent {info.ppid} {info.comm}")
    return tuple(alive)


def _read_counters() -> tuple[str, ...]:
    """Read the counters of our memory cgroup, and how full /dev/shm is."""
    told = []
    cgroup = find_memory_cgroup()
    for name in _COUNTER_FILES if cgroup else ():
        text = " ".join(read_text(str(cgroup.counter.parent / name), 1024).split()) if cgroup else ""
        told += [f"{name}: {text}"] if text else []
    with contextlib.suppress(OSError):
        info = os.statvfs("/dev/shm")
        told.append(f"/dev/shm: {info.f_bavail * info.f_frsize} of {info.f_blocks * info.f_frsize} bytes free")
    return tuple(told)
