"""Carry out what `decide` asked for. Nothing here chooses; every outcome goes back as a result."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from infer_dev_entry.cgroup import OomWatch, find_memory_cgroup
from infer_dev_entry.diagnosis.model import DISK_FULL, Diagnosis, Policy
from infer_dev_entry.errors import EntryError, SupervisorError
from infer_dev_entry.fleet.actions import (
    Action,
    Configure,
    FindRoom,
    Kill,
    LookAtGpus,
    Probe,
    Record,
    Remember,
    Report,
    Route,
    Start,
    StartSupervisor,
    Stop,
    Sweep,
)
from infer_dev_entry.fleet.observations import (
    GpuSeen,
    ProcessSeen,
    Result,
    RoomSeen,
    StartSeen,
    SupervisorSeen,
    SweepSeen,
)
from infer_dev_entry.gpu_wait import NO_DRIVER
from infer_dev_entry.init.crashes import Crashes
from infer_dev_entry.init.death import describe_diagnosis
from infer_dev_entry.init.gateway import Gateways, GatewayTools
from infer_dev_entry.init.gpu_child import GpuChild
from infer_dev_entry.init.owner import Owner
from infer_dev_entry.init.prepare import find_taken_port, make_files
from infer_dev_entry.init.prober import Prober
from infer_dev_entry.init.reaper import Reaper
from infer_dev_entry.init.supervisord import Supervisord
from infer_dev_entry.init.watch import Watch
from infer_dev_entry.phases import Durations
from infer_dev_entry.private_log import log_file_problem
from infer_dev_entry.proctree import end_leftovers
from infer_dev_entry.redact import secrets_of
from infer_dev_entry.render import GROUP, DaemonSpec
from infer_dev_entry.shm import remove_segments
from infer_dev_entry.spec import Plan, ServerSpec
from infer_dev_entry.supervisor_rpc import (
    ALREADY_STARTED,
    BAD_NAME,
    NOT_RUNNING,
    SPAWN_ERROR,
    ProcessInfo,
    RpcFaultError,
)


class Actor:
    """Holds the effects of one run.

    `post` takes a result back to the loop; `poke` asks it to look at supervisord again at once. `plan_again` plans the
    fleet that runs anew, from the same config.
    """

    def __init__(
        self,
        *,
        daemon: DaemonSpec,
        owner: Owner | None,
        environ: Mapping[str, str],
        reaper: Reaper,
        log: Any,
        post: Callable[[Result], None],
        poke: Callable[[], None],
        plan_again: Callable[[], Awaitable[Plan]],
    ) -> None:
        self._daemon = daemon
        self._owner = owner
        self._log = log
        self._post = post
        self._poke = poke
        self._plan_again = plan_again
        self._planning = asyncio.Lock()
        self._watch = Watch(daemon.fleet_id, poke)
        self._prober = Prober(daemon.run_dir)
        self._oom = OomWatch(find_memory_cgroup())
        self._gpus = GpuChild(reaper, environ)
        self._gateways = Gateways(
            GatewayTools(run_dir=daemon.run_dir, owner=owner, environ=environ, reaper=reaper, log=log, post=post)
        )
        self.supervisord = Supervisord(
            daemon=daemon, environ=environ, reaper=reaper, log=log, on_exit=self._take_supervisor_exit
        )
        self._crashes = Crashes(run_dir=daemon.run_dir, owner=owner, environ=environ, reaper=reaper, log=log)
        self._specs: dict[str, ServerSpec] = {}
        self._sweep_locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._rooms: set[asyncio.Task[None]] = set()

    # -- the dispatch

    def act(self, action: Action) -> None:
        """Start to carry out one action; never waits, never raises for expected trouble."""
        match action:
            case Report(level=level, event=event, fields=fields):
                getattr(self._log, level)(event, **dict(fields))
            case Configure(specs=specs):
                self._run(self._configure(specs))
            case StartSupervisor(specs=specs):
                self._run(self._start_supervisor(specs))
            case Start(spec=spec):
                self._run(self._start(spec))
            case LookAtGpus(spec=spec):
                self._run(self._look_at_gpus(spec))
            case FindRoom(spec=spec):
                self._rooms.add(self._run(self._find_room(spec)))
            case Stop(name=name):
                self._run(self._stop(name))
            case Probe():
                self._run(self._probe(action))
            case Route(spec=spec):
                self._gateways.door(spec).route(action)
            case Remember(spec=spec, start=start):
                self._run(asyncio.to_thread(self._prober.remember, spec, start))
            case Record():
                self._run(self._crashes.record(action))
            case Kill(name=name, evidence=evidence):
                self._run(self._kill(name, evidence))
            case Sweep(name=name):
                self._run(self._sweep(name, spare_main=True))

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._take_done)
        return task

    def _take_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._rooms.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log.error("entry.bug", error=repr(task.exception()), exc_info=task.exception())

    # -- supervisord

    async def _start_supervisor(self, specs: tuple[ServerSpec, ...]) -> None:
        try:
            if await self.supervisord.start(specs):
                self._post(SupervisorSeen(up=True))
                self._poke()
        except (EntryError, OSError) as error:
            self._post(SupervisorSeen(up=False, reason=str(error)))

    def _take_supervisor_exit(self, reason: str) -> None:
        self._watch.close()
        self._post(SupervisorSeen(up=False, reason=reason))

    async def _configure(self, specs: tuple[ServerSpec, ...]) -> None:
        try:
            busy = await self.supervisord.configure(specs)
            if busy:
                self._log.warning("supervisor.update_pending", servers=", ".join(busy))
        except (EntryError, OSError) as error:
            self._log.error("supervisor.update_failed", error=str(error))

    async def see_processes(self, known_pids: Mapping[str, int]) -> tuple[ProcessSeen, ...]:
        """Ask supervisord for every program, watch the new ones, and describe the ends of `known_pids`.

        Raises:
            SupervisorError: it does not answer.
        """
        infos = await self.supervisord.rpc.read_processes()
        self._oom.look()
        return tuple(await asyncio.gather(*(self._see_process(info, known_pids) for info in infos)))

    async def _see_process(self, info: ProcessInfo, known_pids: Mapping[str, int]) -> ProcessSeen:
        seen = ProcessSeen(name=info.name, statename=info.statename, pid=info.pid, ended="")
        spec = self._specs.get(info.name)
        if info.pid:
            self._watch.watch(info.name, info.pid)
            if spec:
                self._crashes.see_process(spec, info.pid)
        elif spec and known_pids.get(info.name):
            found = await self._diagnose(info, spec)
            ended = describe_diagnosis(found, secrets_of(spec.files))
            return replace(seen, ended=ended, mend=found.mend, kind=found.kind, policy=found.policy)
        return seen

    async def _diagnose(self, info: ProcessInfo, spec: ServerSpec) -> Diagnosis:
        oom = self._oom.explain(killed=info.wait_status == signal.SIGKILL)
        return await self._crashes.diagnose(info, spec, self._watch.tracked(spec.name), oom)

    def refresh_trees(self, segments_of: Collection[str]) -> None:
        """Note the descendants of every server, and the shared memory of some."""
        self._watch.refresh_trees(segments_of)

    def know_specs(self, specs: tuple[ServerSpec, ...]) -> None:
        """Remember what runs, for what is said about its end."""
        self._specs = {spec.name: spec for spec in specs}

    # -- starts

    async def _look_at_gpus(self, spec: ServerSpec) -> None:
        self._post(GpuSeen(name=spec.name, gpu_ids=spec.gpu_ids, look=await self._gpus.look(spec.gpu_ids)))

    async def _find_room(self, spec: ServerSpec) -> None:
        try:
            async with self._planning:
                plan = await self._plan_again()
        except EntryError as error:
            self._post(RoomSeen(name=spec.name, problem=str(error)))
            return
        dealt = next((server for server in plan.servers if server.name == spec.name), None)
        if dealt is None:
            self._post(RoomSeen(name=spec.name, problem="the config does not have this server any more"))
            return
        look = NO_DRIVER if dealt.gpu_ids == spec.gpu_ids else await self._gpus.look(dealt.gpu_ids)
        self._post(RoomSeen(name=spec.name, spec=dealt, look=look))

    async def stop_planning(self) -> None:
        """End the child that plans, if there is one, while its end can still be told."""
        for task in self._rooms:
            task.cancel()
        if self._rooms:
            await asyncio.wait(self._rooms)

    async def _start(self, spec: ServerSpec) -> None:
        async with self._sweep_lock(spec.name):
            pass  # a sweep under way would take the new process for a leftover
        async with self.supervisord.lane:
            try:
                await self.supervisord.apply()
                self._post(await self._try_start(spec))
            except RpcFaultError as error:
                self._post(StartSeen(name=spec.name, pid=0, problem=str(error), mend=await self._spawn_error(spec)))
            except (EntryError, OSError) as error:
                self._post(_failed_start(spec, error))
            except Exception as error:  # a start without an outcome would be under way for ever
                self._log.error("entry.bug", error=repr(error), exc_info=error)
                self._post(StartSeen(name=spec.name, pid=0, problem=f"{error!r}; this is a bug in infer-dev"))
        self._poke()

    async def _try_start(self, spec: ServerSpec) -> StartSeen:
        taken = await find_taken_port(spec)
        if taken and (info := await self._read_process(spec.name)) and info.pid:
            # By this very server, whom the user has started meanwhile through supervisorctl.
            self._watch.watch(spec.name, info.pid)
            return StartSeen(name=spec.name, pid=info.pid)
        if taken:
            mend = "end that process, or set another port"
            return StartSeen(name=spec.name, pid=0, problem=taken, mend=mend, outside=True)
        if unfit_log := await asyncio.to_thread(log_file_problem, spec.log_file):
            problem = f"its log file {spec.log_file} {unfit_log}"
            return StartSeen(name=spec.name, pid=0, problem=problem, mend="remove it, or set another log_file")
        past = await asyncio.to_thread(self._prepare, spec)
        if spec.gateway and (unfit := await self._gateways.door(spec).prepare(spec)):
            return StartSeen(name=spec.name, pid=0, problem=unfit.reason, mend=unfit.mend)
        try:
            await self.supervisord.rpc.call("supervisor.startProcess", f"{GROUP}:{spec.name}", False)
        except RpcFaultError as error:
            # SPAWN_ERROR also says that the process was started and is dead by now; its own status tells more.
            if error.code not in (ALREADY_STARTED, SPAWN_ERROR):
                raise
        info = await self._read_process(spec.name)
        if info is None:
            mend = f"see infer-dev logs {spec.name}"
            return StartSeen(name=spec.name, pid=0, problem="supervisord does not know it", mend=mend)
        if not info.pid:
            self._oom.look()
            found = await self._diagnose(info, spec)
            problem = describe_diagnosis(found, secrets_of(spec.files))
            seen = StartSeen(name=spec.name, pid=0, problem=problem, mend=found.mend)
            return replace(seen, kind=found.kind, policy=found.policy)
        self._watch.watch(spec.name, info.pid)
        self._crashes.see_process(spec, info.pid)
        return StartSeen(name=spec.name, pid=info.pid, past=past)

    async def _read_process(self, name: str) -> ProcessInfo | None:
        return next((info for info in await self.supervisord.rpc.read_processes() if info.name == name), None)

    async def _spawn_error(self, spec: ServerSpec) -> str:
        with contextlib.suppress(SupervisorError):
            info = await self._read_process(spec.name)
            if info and info.spawnerr:
                return f"supervisord says: {info.spawnerr}"
        return f"see infer-dev logs {spec.name}"

    def _prepare(self, spec: ServerSpec) -> tuple[Durations, ...]:
        """Make what must exist before the process, and return its earlier starts; blocks for a moment."""
        problem = make_files(spec, self._daemon.fleet_id, self._owner)
        if problem:
            self._log.warning("server.log_open_to_others", server=spec.name, log_file=spec.log_file, reason=problem)
        self._crashes.expect_start(spec)
        return self._prober.expect_start(spec)

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

    async def _probe(self, ask: Probe) -> None:
        self._post(await self._prober.probe(ask))
        if ask.spec.gateway and not ask.starting:
            self._gateways.door(ask.spec).look()

    async def _kill(self, name: str, evidence: bool) -> None:
        if evidence and (spec := self._specs.get(name)):
            with contextlib.suppress(OSError):  # whatever it is, it must not save a hung server
                await self._crashes.look_at_hung(spec, self._watch.tracked(name))
        await self._sweep(name, spare_main=False)
        self._poke()

    async def _sweep(self, name: str, *, spare_main: bool) -> None:
        async with self._sweep_lock(name):
            tracked = self._watch.tracked(name)
            result = await end_leftovers(tracked, spare_below=self.supervisord.live_pid, spare_main=spare_main)
            if removed := remove_segments(self._watch.take_left_segments(name)):
                self._log.info("server.shared_memory_removed", server=name, files=", ".join(removed))
        self._post(SweepSeen(name=name, killed=result.killed, survivors=result.survivors))

    def _sweep_lock(self, name: str) -> asyncio.Lock:
        return self._sweep_locks.setdefault(name, asyncio.Lock())

    def clean_up(self) -> None:
        """Remove what only a running fleet needs."""
        self._watch.close()
        self._gpus.close()
        self._gateways.close()
        for name in ("supervisor.sock", "supervisord.pid", "control.sock", "entry.pid"):
            with contextlib.suppress(OSError):
                os.unlink(f"{self._daemon.run_dir}/{name}")


def _failed_start(spec: ServerSpec, error: Exception) -> StartSeen:
    """What a start has met before there was a process. Room on a disk comes back without the server's doing."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            mend = "free space there; the run directory, the log directory and TMPDIR hold what a start writes"
            return StartSeen(name=spec.name, pid=0, problem=str(error), mend=mend, kind=DISK_FULL, policy=Policy.WAIT)
        cause = cause.__cause__
    return StartSeen(name=spec.name, pid=0, problem=str(error))
