"""Carry out what `decide` asked for. Nothing here chooses; every outcome goes back as a result."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from infer_dev_entry import fleet as f
from infer_dev_entry.errors import EntryError, SupervisorError
from infer_dev_entry.host import LiveHost
from infer_dev_entry.init.owner import Owner
from infer_dev_entry.init.reaper import Reaper, describe_end
from infer_dev_entry.init.spawn import signal_group, spawn_helper
from infer_dev_entry.init.supervisord import Supervisord
from infer_dev_entry.init.watch import Watch
from infer_dev_entry.logtail import read_last_line, read_tail
from infer_dev_entry.probe import run_probe
from infer_dev_entry.proctree import end_leftovers
from infer_dev_entry.render import GROUP, DaemonSpec
from infer_dev_entry.rundir import write_private
from infer_dev_entry.spec import ServerSpec
from infer_dev_entry.supervisor_rpc import (
    ALREADY_STARTED,
    BAD_NAME,
    NOT_RUNNING,
    SPAWN_ERROR,
    ProcessInfo,
    RpcFaultError,
)

EVIDENCE_TIMEOUT_S = 5.0
EVIDENCE_LINES = 5


class Actor:
    """Holds the effects of one run.

    `post` takes a result back to the loop; `poke` asks it to look at supervisord again at once.
    """

    def __init__(
        self,
        *,
        daemon: DaemonSpec,
        owner: Owner | None,
        environ: Mapping[str, str],
        reaper: Reaper,
        log: Any,
        post: Callable[[f.Result], None],
        poke: Callable[[], None],
    ) -> None:
        self._daemon = daemon
        self._owner = owner
        self._environ = environ
        self._reaper = reaper
        self._log = log
        self._post = post
        self._poke = poke
        self._watch = Watch(daemon.fleet_id, poke)
        self.supervisord = Supervisord(
            daemon=daemon, environ=environ, reaper=reaper, log=log, on_exit=self._take_supervisor_exit
        )
        self._log_files: dict[str, str] = {}
        self._sweep_locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the dispatch

    def act(self, action: f.Action) -> None:
        """Start to carry out one action; never waits, never raises for expected trouble."""
        match action:
            case f.Report(level=level, event=event, fields=fields):
                getattr(self._log, level)(event, **dict(fields))
            case f.Configure(specs=specs):
                self._run(self._configure(specs))
            case f.StartSupervisor(specs=specs):
                self._run(self._start_supervisor(specs))
            case f.Start(spec=spec):
                self._run(self._start(spec))
            case f.Stop(name=name):
                self._run(self._stop(name))
            case f.Probe(spec=spec, pid=pid, path=path):
                self._run(self._probe(spec, pid, path))
            case f.Kill(name=name, evidence=evidence):
                self._run(self._kill(name, evidence))
            case f.Sweep(name=name):
                self._run(self._sweep(name, spare_main=True))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._take_done)

    def _take_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log.error("entry.bug", error=repr(task.exception()), exc_info=task.exception())

    # -- supervisord

    async def _start_supervisor(self, specs: tuple[ServerSpec, ...]) -> None:
        try:
            if await self.supervisord.start(specs):
                self._post(f.SupervisorSeen(up=True))
                self._poke()
        except (EntryError, OSError) as error:
            self._post(f.SupervisorSeen(up=False, reason=str(error)))

    def _take_supervisor_exit(self, reason: str) -> None:
        self._watch.close()
        self._post(f.SupervisorSeen(up=False, reason=reason))

    async def _configure(self, specs: tuple[ServerSpec, ...]) -> None:
        try:
            busy = await self.supervisord.configure(specs)
            if busy:
                self._log.warning("supervisor.update_pending", servers=", ".join(busy))
        except (EntryError, OSError) as error:
            self._log.error("supervisor.update_failed", error=str(error))

    async def see_processes(self, known_pids: Mapping[str, int]) -> tuple[f.ProcessSeen, ...]:
        """Ask supervisord for every program, watch the new ones, and describe the ends of `known_pids`.

        Raises:
            SupervisorError: it does not answer.
        """
        seen = []
        for info in await self.supervisord.rpc.read_processes():
            ended = ""
            if info.pid:
                self._watch.watch(info.name, info.pid)
            elif known_pids.get(info.name):
                ended = _with_last_line(describe_info(info), self._log_files.get(info.name, ""))
            seen.append(f.ProcessSeen(name=info.name, statename=info.statename, pid=info.pid, ended=ended))
        return tuple(seen)

    def refresh_trees(self) -> None:
        """Note the descendants of every server."""
        self._watch.refresh_trees()

    def know_log_files(self, specs: tuple[ServerSpec, ...]) -> None:
        """Remember where each server logs, for what is said about its end."""
        self._log_files = {spec.name: spec.log_file for spec in specs}

    # -- starts

    async def _start(self, spec: ServerSpec) -> None:
        async with self._sweep_lock(spec.name):
            pass  # a sweep under way would take the new process for a leftover
        async with self.supervisord.lane:
            try:
                await self.supervisord.apply()
                self._post(await self._try_start(spec))
            except RpcFaultError as error:
                self._post(f.StartSeen(name=spec.name, pid=0, problem=str(error), mend=await self._spawn_error(spec)))
            except (EntryError, OSError) as error:
                self._post(f.StartSeen(name=spec.name, pid=0, problem=str(error)))
        self._poke()

    async def _try_start(self, spec: ServerSpec) -> f.StartSeen:
        holder = LiveHost().port_holder(spec.host, spec.port)  # a new one: it remembers what it saw
        if holder:
            problem = f"port {spec.port} is taken by {holder}"
            mend = "end that process, or set another port"
            return f.StartSeen(name=spec.name, pid=0, problem=problem, mend=mend, outside=True)
        await asyncio.to_thread(self._prepare, spec)
        try:
            await self.supervisord.rpc.call("supervisor.startProcess", f"{GROUP}:{spec.name}", False)
        except RpcFaultError as error:
            # SPAWN_ERROR also says that the process was started and is dead by now; its own status tells more.
            if error.code not in (ALREADY_STARTED, SPAWN_ERROR):
                raise
        info = await self._read_process(spec.name)
        if info is None or not info.pid:
            ended = describe_info(info) if info else "supervisord does not know it"
            problem = _with_last_line(ended, spec.log_file)
            return f.StartSeen(name=spec.name, pid=0, problem=problem, mend=f"see infer-dev logs {spec.name}")
        self._watch.watch(spec.name, info.pid)
        return f.StartSeen(name=spec.name, pid=info.pid)

    async def _read_process(self, name: str) -> ProcessInfo | None:
        return next((info for info in await self.supervisord.rpc.read_processes() if info.name == name), None)

    async def _spawn_error(self, spec: ServerSpec) -> str:
        with contextlib.suppress(SupervisorError):
            info = await self._read_process(spec.name)
            if info and info.spawnerr:
                return f"supervisord says: {info.spawnerr}"
        return f"see infer-dev logs {spec.name}"

    def _prepare(self, spec: ServerSpec) -> None:
        """Make what must exist before the process: its files, and an empty private TMPDIR."""
        owner = (self._owner.uid, self._owner.gid) if self._owner else None
        for file in spec.files:
            _make_dir(Path(file.path).parent)
            write_private(file.path, file.text, owner=owner)
        tmp_dir = dict(spec.environment).get("TMPDIR", "")
        if self._daemon.fleet_id in tmp_dir:  # one that the user chose is the user's to clean
            shutil.rmtree(tmp_dir, ignore_errors=True)
            _make_dir(Path(tmp_dir).parent)
            Path(tmp_dir).mkdir(mode=0o700, exist_ok=True)
            if owner:
                os.chown(tmp_dir, *owner)

    # -- stops, probes, ends

    async def _stop(self, name: str) -> None:
        try:
            await self.supervisord.rpc.call("supervisor.stopProcess", f"{GROUP}:{name}", False)
        except RpcFaultError as error:
            if error.code not in (NOT_RUNNING, BAD_NAME):
                self._log.error("server.stop_failed", server=name, error=str(error))
        except SupervisorError as error:
            self._log.error("server.stop_failed", server=name, error=str(error))
        self._poke()

    async def _probe(self, spec: ServerSpec, pid: int, path: str) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(spec.host, spec.host)
        result = await run_probe(host, spec.port, path, spec.probe.timeout_s)
        self._post(f.ProbeSeen(name=spec.name, pid=pid, ok=result.ok, status=result.status, reason=result.reason))

    async def _kill(self, name: str, evidence: bool) -> None:
        if evidence:
            with contextlib.suppress(OSError):  # whatever it is, it must not save a hung server
                await self._gather_evidence(name)
        await self._sweep(name, spare_main=False)
        self._poke()

    async def _sweep(self, name: str, *, spare_main: bool) -> None:
        async with self._sweep_lock(name):
            tracked = self._watch.tracked(name)
            result = await end_leftovers(tracked, spare_below=self.supervisord.live_pid, spare_main=spare_main)
        self._post(f.SweepSeen(name=name, killed=result.killed, survivors=result.survivors))

    def _sweep_lock(self, name: str) -> asyncio.Lock:
        return self._sweep_locks.setdefault(name, asyncio.Lock())

    async def _gather_evidence(self, name: str) -> None:
        """Before a hung server is ended: its last log lines, and where its threads stand if py-spy is installed."""
        log_file = self._log_files.get(name, "")
        main_pid = self._watch.tracked(name).main_pid
        self._log.warning("server.evidence", server=name, log_tail=read_tail(log_file, EVIDENCE_LINES))
        program = shutil.which("py-spy")
        if not program or not main_pid or not log_file:
            return
        argv = (program, "dump", "--pid", str(main_pid))
        pid = spawn_helper(argv, self._environ, output=f"{log_file}.hang")
        done, _ = await asyncio.wait({self._reaper.expect(pid)}, timeout=EVIDENCE_TIMEOUT_S)
        if not done:
            signal_group(pid, signal.SIGKILL)
        else:
            self._log.warning("server.evidence", server=name, stacks=f"{log_file}.hang")

    def clean_up(self) -> None:
        """Remove what only a running fleet needs."""
        self._watch.close()
        for name in ("supervisor.sock", "supervisord.pid", "control.sock", "entry.pid"):
            with contextlib.suppress(OSError):
                os.unlink(f"{self._daemon.run_dir}/{name}")


def _make_dir(path: Path) -> None:
    """Make a directory that others may pass but not list, unless somebody else has planted it.

    Raises:
        PermissionError: it belongs to another user.
    """
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    info = path.lstat()
    if info.st_uid != os.geteuid():
        raise PermissionError(f"cannot use {path}: it belongs to uid {info.st_uid}; remove it")


def _with_last_line(ended: str, log_file: str) -> str:
    line = read_last_line(log_file)
    return f"{ended}; last log line: {line}" if line else ended


def describe_info(info: ProcessInfo) -> str:
    """Say how a program's last run ended."""
    # supervisord calls these two spawn errors as well; any other means that there was no process, and the status is
    # that of an earlier run.
    ran = not info.spawnerr or info.spawnerr.startswith(("Exited too quickly", "Bad exit code"))
    if info.wait_status is not None and ran:
        return describe_end(info.wait_status)
    return info.spawnerr or "ended for a reason that supervisord does not tell"
