"""The pure heart: `decide` takes a fleet and what was observed, and returns the new fleet with the actions to take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from infer_dev_entry.diagnosis.model import HUNG, PORT_IN_USE, UNKNOWN, Policy
from infer_dev_entry.fleet import (
    Action,
    Configure,
    Ending,
    Fleet,
    GpuSeen,
    Kill,
    LookAtGpus,
    Observation,
    PlanWish,
    Probe,
    ProbeSeen,
    ProcessSeen,
    Record,
    Remember,
    Report,
    Result,
    Server,
    ShutdownWish,
    Start,
    StartSeen,
    StartSupervisor,
    StartWish,
    State,
    Stop,
    StopWish,
    SupervisorSeen,
    Sweep,
    SweepSeen,
    Wish,
    applied_specs,
    backoff_s,
    can_start_but_for_time,
    find_server,
    is_probed,
    is_warmed_for,
    missing_dependencies,
    shares_gpu,
    wants_supervisor,
)
from infer_dev_entry.gpu_wait import GpuWait, Verdict, judge, needed_share, needs_look
from infer_dev_entry.progress import describe_counters, is_working
from infer_dev_entry.spec import ServerSpec
from infer_dev_entry.startup import describe_stall, describe_start, left_s, take_log, take_readiness

# While a server starts it is probed this often, whatever its liveness period: readiness is news, and a refused
# connection costs nothing.
STARTUP_PROBE_PERIOD_S = 1.0
# Probes may come this share of their period early, so that servers are probed together: eight probes one by one cost an
# idle PID 1 twice the CPU time of eight at once.
PROBE_SLACK = 0.1
# Counters stand in for a probe when their server still ran this share of the period ago. The next probe comes as much
# earlier, so that a hang is found as soon as without them.
FRESH_SHARE = 0.05
# A process that survives SIGKILL this long (uninterruptible sleep in a driver) is signalled and reported again.
KILL_RETRY_S = 10.0
# A long load says this often that it still goes on.
LOADING_NOTE_PERIOD_S = 15.0
SUPERVISOR_BACKOFF_MAX_S = 10.0
SUPERVISOR_SETTLED_S = 60.0


def decide(fleet: Fleet, seen: Observation) -> tuple[Fleet, tuple[Action, ...]]:
    """Take in what was observed and return the new fleet with the actions to carry out, in order."""
    turn = _Turn(fleet, seen)
    for wish in seen.wishes:
        turn.take_wish(wish)
    for result in seen.results:
        turn.take_result(result)
    if seen.processes is not None:
        turn.take_processes(seen.processes)
    turn.take_time()
    return turn.fleet, tuple(turn.actions)


class _Turn:
    """One run of `decide`: a fleet that is replaced step by step, and the actions so far. Touches nothing else."""

    def __init__(self, fleet: Fleet, seen: Observation) -> None:
        self.fleet = fleet
        self.seen = seen
        self.actions: list[Action] = []

    # -- small tools

    def put(self, server: Server) -> None:
        name = server.spec.name
        servers = tuple(server if other.spec.name == name else other for other in self.fleet.servers)
        self.fleet = replace(self.fleet, servers=servers)

    def report(self, level: str, event: str, server: Server | None = None, **fields: str | int | float) -> None:
        named = {"server": server.spec.name} if server else {}
        self.actions.append(Report(level=level, event=event, fields=tuple((named | fields).items())))

    def configure(self) -> None:
        if self.fleet.supervisor_up:
            self.actions.append(Configure(specs=applied_specs(self.fleet)))

    # -- wishes

    def take_wish(self, wish: Wish) -> None:
        match wish:
            case StopWish(names=names):
                for server in self._named(names):
                    self._stop(replace(server, wanted=False, reason="stopped by request", mend=""))
            case StartWish(names=names):
                for server in self._named(names):
                    self._want_start(server)
            case PlanWish(specs=specs):
                self._take_plan(specs)
            case ShutdownWish(now=now):
                self._shut_down(now)

    def _named(self, names: tuple[str, ...] | None) -> Iterable[Server]:
        return [server for server in self.fleet.servers if names is None or server.spec.name in names]

    def _stop(self, server: Server) -> None:
        """Bring a server down gracefully, whatever it is doing."""
        if server.pid and server.ending is not Ending.STOP:
            server = replace(
                server,
                state=State.DRAINING,
                ending=Ending.STOP,
                drain_until=self.seen.now + server.spec.drain_timeout_s,
            )
            self.actions.append(Stop(name=server.spec.name))
            self.report("info", "server.draining", server, drain_timeout_s=server.spec.drain_timeout_s)
        elif not server.pid and not server.starting:
            server = replace(server, state=State.STOPPED, ready_since=None)
        self.put(server)

    def _want_start(self, server: Server) -> None:
        if self.fleet.shutting_down or (server.pid and server.ending is Ending.NONE):
            return
        server = replace(server, wanted=True, failures=0, unready_failures=0, due_at=self.seen.now, mend="")
        if not server.pid:
            server = replace(server, state=State.STARTING, reason="start requested")
        self.put(server)

    def _take_plan(self, specs: tuple[ServerSpec, ...]) -> None:
        if self.fleet.shutting_down:
            return
        before = self.fleet
        old = {server.spec.name: server for server in before.servers}
        wanted = {spec.name for spec in specs}
        kept = [self._plan_one(old.get(spec.name), spec) for spec in specs]
        leaving = [
            replace(server, removing=True, wanted=False) for server in before.servers if server.spec.name not in wanted
        ]
        leaving = [server for server in leaving if server.pid or server.starting]
        self.fleet = replace(before, servers=(*kept, *leaving))
        if applied_specs(before) != applied_specs(self.fleet):
            self.configure()
        for server in self.fleet.servers:
            if server.removing or server.successor:
                self._stop(server)

    def _plan_one(self, server: Server | None, spec: ServerSpec) -> Server:
        if server is None:
            return Server(spec=spec, due_at=self.seen.now)
        if server.spec == spec:
            fresh = replace(server, removing=False, successor=None)
            if fresh.pid or fresh.starting:
                return replace(fresh, wanted=True)
            # Whoever serves a config again wants its stopped, failed and waiting servers tried again now.
            return replace(
                fresh, wanted=True, state=State.STARTING, due_at=self.seen.now, failures=0, unready_failures=0, mend=""
            )
        if server.pid or server.starting:
            return replace(server, successor=spec, wanted=True, removing=False, reason="config changed")
        return Server(spec=spec, due_at=self.seen.now, swept=server.swept, sweeping=server.sweeping)

    def _shut_down(self, now: bool) -> None:
        self.fleet = replace(self.fleet, shutting_down=True, cut_short=now or self.fleet.cut_short)
        for server in self.fleet.servers:
            self._stop(replace(server, wanted=False, reason="shutting down", successor=None))

    # -- results of actions

    def take_result(self, result: Result) -> None:
        if isinstance(result, SupervisorSeen):
            self._take_supervisor(result)
            return
        server = find_server(self.fleet, result.name)
        if server is None:
            return
        match result:
            case StartSeen():
                self._take_start(server, result)
            case ProbeSeen():
                self._take_probe(server, result)
            case SweepSeen():
                self._take_sweep(server, result)
            case GpuSeen():
                self._take_gpus(server, result)

    def _take_supervisor(self, seen: SupervisorSeen) -> None:
        if seen.up:
            self.fleet = replace(
                self.fleet, supervisor_up=True, supervisor_starting=False, supervisor_up_at=self.seen.now
            )
            return
        settled = self.fleet.supervisor_up and self.seen.now - self.fleet.supervisor_up_at >= SUPERVISOR_SETTLED_S
        failures = 1 if settled else self.fleet.supervisor_failures + 1
        delay = 0.0 if failures == 1 else min(SUPERVISOR_BACKOFF_MAX_S, 0.1 * 2.0 ** min(failures, 20))
        self.fleet = replace(
            self.fleet,
            supervisor_up=False,
            supervisor_starting=False,
            supervisor_failures=failures,
            supervisor_due_at=self.seen.now + delay,
        )
        if not self.fleet.shutting_down:
            self.report("error", "supervisor.lost", reason=seen.reason, retry_in_s=round(delay, 1))
        for server in self.fleet.servers:
            self._orphan(server, seen.reason)

    def _orphan(self, server: Server, reason: str) -> None:
        """supervisord is gone, so nobody owns this server's process: end what is left and start anew."""
        was_running = bool(server.pid) or server.starting
        server = replace(server, pid=0, starting=False, statename="STOPPED", ready_since=None)
        if was_running:
            server = replace(server, swept=False, sweeping=True)
            self.actions.append(Sweep(name=server.spec.name))
        if server.removing:
            self._forget(server)
            return
        server = self._fresh(server)
        if server.wanted and (was_running or server.state is State.STARTING):
            server = replace(server, state=State.STARTING, reason=reason, due_at=self.seen.now)
        elif was_running:
            server = replace(server, state=State.STOPPED)
        self.put(server)

    def _fresh(self, server: Server) -> Server:
        """Clear what belonged to the process that is gone, and move on to the successor spec if there is one."""
        return replace(
            server,
            spec=server.successor or server.spec,
            served=server.served and server.successor is None,
            successor=None,
            ready_at=None,
            ready_since=None,
            probing=False,
            probe_failures=0,
            counters=None,
            unproved=0,
            phase="",
            phases=(),
            ending=Ending.NONE,
            ending_reason="",
            drain_until=None,
            kill_at=None,
            gpu_clear=False,
        )

    def _take_start(self, server: Server, seen: StartSeen) -> None:
        if not server.starting:
            return  # supervisord was lost meanwhile; this start belongs to its past
        server = replace(server, starting=False)
        if seen.problem:
            kind, policy = (PORT_IN_USE, Policy.WAIT) if seen.outside else (seen.kind, seen.policy)
            self._fail(server, seen.problem, seen.mend, kind=kind, policy=policy, died=not seen.outside)
            return
        self._adopt(replace(server, past=seen.past), seen.pid)
        server = find_server(self.fleet, seen.name) or server
        if not server.wanted or server.removing or server.successor:
            self._stop(server)

    def _adopt(self, server: Server, pid: int) -> None:
        """A process of this server runs now, started by us or by the user through supervisorctl."""
        # The successor spec stays pending: this process still runs with the old one.
        server = replace(self._fresh(replace(server, successor=None)), successor=server.successor)
        self.put(
            replace(
                server,
                pid=pid,
                runs=server.runs + 1,
                state=State.STARTING,
                statename="STARTING",
                reason="",
                mend="",
                started_at=self.seen.now,
                log_at=self.seen.now,
                probe_at=self.seen.now + 0.1,
                note_at=self.seen.now + LOADING_NOTE_PERIOD_S,
                swept=False,
            )
        )
        self.report("info", "server.started", server, pid=pid, port=server.spec.port)

    def _take_sweep(self, server: Server, seen: SweepSeen) -> None:
        if seen.killed:
            self.report("warning", "server.leftovers_ended", server, processes=", ".join(seen.killed))
        if seen.survivors:
            self.report("error", "server.leftovers_survive", server, processes=", ".join(seen.survivors))
        server = replace(server, sweeping=False)
        if not server.pid:
            server = replace(server, swept=True)
        self.put(server)

    def _take_gpus(self, server: Server, seen: GpuSeen) -> None:
        """Clear the start, or wait on: what holds a GPU is outside the server, so it never counts as a failure."""
        server = replace(server, gpu_looking=False)
        if server.pid or server.state not in (State.WAITING_GPU, State.STARTING, State.BACKOFF):
            self.put(server)  # stopped, or started by the user, meanwhile
            return
        spec, before = server.spec, server.gpu_wait
        share = 0.0 if shares_gpu(self.fleet, server) else needed_share(spec)
        wait, verdict = judge(before, seen.look, now=self.seen.now, share=share, wait_s=spec.gpu_wait_s)
        self._report_gpus(server, wait, verdict, seen)
        server = replace(server, gpu_wait=wait)
        if verdict.may_start:
            self.put(replace(server, gpu_clear=True, due_at=self.seen.now))
            return
        state = State.FAILED if verdict.lost else State.WAITING_GPU
        due_at = self.seen.now + verdict.retry_s
        self.put(replace(server, state=state, reason=verdict.reason, mend=verdict.mend, due_at=due_at))

    def _report_gpus(self, server: Server, wait: GpuWait, verdict: Verdict, seen: GpuSeen) -> None:
        """Report the beginning of a wait, its deadline, and its end."""
        before, told = server.gpu_wait, {"reason": verdict.reason, "mend": verdict.mend}
        if verdict.lost:
            self.report("error", "gpu.lost", server, **told)
        elif verdict.may_start and verdict.reason:
            self.report("warning", "gpu.unseen", server, reason=verdict.reason)
        elif verdict.may_start:
            if seen.look.gpus and (server.runs or before.since is not None):
                used = sum(gpu.used_bytes for gpu in seen.look.gpus)
                waited_ms = round(1000 * (self.seen.now - (before.since or self.seen.now)))
                freed = max(0, before.most - used)
                self.report("info", "gpu.free", server, used_bytes=used, freed_bytes=freed, waited_ms=waited_ms)
        elif wait.late and not before.late:
            self.report("warning", "gpu.blocked", server, **told, after_s=server.spec.gpu_wait_s)
        elif before.since is None:
            self.report("info", "gpu.waiting", server, **told)

    def _take_probe(self, server: Server, seen: ProbeSeen) -> None:
        if not server.pid or seen.pid != server.pid:
            return
        server = replace(server, probing=False)
        if server.ending is not Ending.NONE or server.state is State.DRAINING:
            self.put(server)
        elif seen.ok:
            self._take_good_probe(server, seen)
        elif server.ready_at is None:
            self._take_startup_probe(server, seen)
        else:
            self._take_bad_probe(server, seen)

    def _take_startup_probe(self, server: Server, seen: ProbeSeen) -> None:
        """Not ready yet, as expected; say so now and then."""
        server = take_log(server, seen, self.seen.now)
        if self.seen.now >= server.note_at:
            self._note_loading(server, seen)
            server = replace(server, note_at=self.seen.now + LOADING_NOTE_PERIOD_S)
        state = State.LOADING if seen.status else server.state
        where = describe_start(server, self.seen.now)
        self.put(replace(server, state=state, reason=f"{seen.reason}; {where}" if where else seen.reason))

    def _note_loading(self, server: Server, seen: ProbeSeen) -> None:
        fields: dict[str, str | int] = {"elapsed_s": round(self.seen.now - server.started_at)}
        if server.phase:
            fields |= {"phase": server.phase, "phase_s": round(self.seen.now - server.phase_at)}
            left = left_s(server, self.seen.now)
            fields |= {} if left is None else {"left_s": round(left)}
        self.report("info", "server.loading", server, **fields, probe=seen.reason)

    def _take_good_probe(self, server: Server, seen: ProbeSeen) -> None:
        unproved = server.unproved + 1 if seen.by_counters else 0
        server = replace(server, counters=seen.counters or server.counters, unproved=unproved)
        if seen.by_counters:
            server = replace(server, probe_at=server.probe_at - FRESH_SHARE * server.spec.probe.period_s)
        if server.ready_at is None:
            server = take_readiness(take_log(server, seen, self.seen.now), self.seen.now)
            if server.phases:
                self.actions.append(Remember(spec=server.spec, start=server.phases))
            took_s = round(self.seen.now - server.started_at, 1)
            self.report("info", "server.ready", server, url=server.spec.url, after_s=took_s)
            server = replace(server, ready_at=self.seen.now, unready_failures=0, served=True)
            # From here the liveness period counts.
            server = replace(server, probe_at=self.seen.now + server.spec.probe.period_s)
        elif server.state is State.UNHEALTHY:
            self.report("info", "server.recovered", server, failed_probes=server.probe_failures)
        since = server.ready_since if server.state is State.READY else self.seen.wall
        self.put(replace(server, state=State.READY, ready_since=since, probe_failures=0, reason="", mend=""))

    def _take_bad_probe(self, server: Server, seen: ProbeSeen) -> None:
        before = server.counters
        server = replace(server, counters=seen.counters or before, unproved=0)
        if seen.counters is not None and is_working(before, seen.counters):
            self._take_slow_probe(server, seen)
            return
        threshold = server.spec.probe.failure_threshold
        failures = server.probe_failures + 1
        reason = f"{failures} of {threshold} probes failed: {seen.reason}"
        server = replace(server, state=State.UNHEALTHY, probe_failures=failures, reason=reason, ready_since=None)
        self.report("warning", "server.probe_failed", server, reason=seen.reason, failures=failures, of=threshold)
        if failures >= threshold:
            idle = "; its counters did not move" if seen.counters is not None else ""
            self._end_hung(server, f"hung: {failures} probes in a row failed ({seen.reason}){idle}")
        else:
            self.put(server)

    def _take_slow_probe(self, server: Server, seen: ProbeSeen) -> None:
        """It failed the probe but works at its requests, as in a long prefill: it serves, and the count starts anew."""
        held = describe_counters(seen.counters or ())
        self.report("warning", "server.slow", server, reason=seen.reason, counters=held)
        since = server.ready_since if server.state is State.READY else self.seen.wall
        reason = f"slow: {seen.reason}, but its counters move ({held})"
        self.put(replace(server, state=State.READY, ready_since=since, probe_failures=1, reason=reason, mend=""))

    def _end_hung(self, server: Server, reason: str) -> None:
        self.report("error", "server.hung", server, reason=reason, pid=server.pid)
        self.actions.append(Kill(name=server.spec.name, evidence=True))
        self.put(
            replace(
                server,
                state=State.UNHEALTHY,
                ending=Ending.HUNG,
                ending_reason=reason,
                reason=reason,
                kill_at=self.seen.now + KILL_RETRY_S,
                sweeping=True,
            )
        )

    # -- what supervisord reports

    def take_processes(self, processes: tuple[ProcessSeen, ...]) -> None:
        for process in processes:
            server = find_server(self.fleet, process.name)
            # An answer to a question asked before the start knows nothing of the new process.
            if server is not None and not server.starting and self.seen.processes_at >= server.started_at:
                self._take_process(server, process)

    def _take_process(self, server: Server, process: ProcessSeen) -> None:
        if process.pid and process.pid != server.pid:
            self._take_foreign_start(server, process)
        elif process.pid:
            self._take_running(server, process)
        elif server.pid:
            self._take_end(replace(server, pid=0, statename=process.statename), process)
        else:
            self.put(replace(server, statename=process.statename))

    def _take_foreign_start(self, server: Server, process: ProcessSeen) -> None:
        """A new process that we did not start: `supervisorctl start` or `restart` hands the server back to us."""
        if server.pid:
            self.report("info", "server.replaced", server, old_pid=server.pid)
        self.actions.append(Sweep(name=server.spec.name))  # of its predecessor; live programs are spared
        self._adopt(replace(server, wanted=True, failures=0, unready_failures=0), process.pid)
        adopted = find_server(self.fleet, process.name)
        if adopted and (self.fleet.shutting_down or adopted.removing or adopted.successor):
            keep = not (self.fleet.shutting_down or adopted.removing)
            self._stop(replace(adopted, wanted=keep))  # it came up while it was to go

    def _take_running(self, server: Server, process: ProcessSeen) -> None:
        state, reason = server.state, server.reason
        if process.statename == "STOPPING" and server.ending is Ending.NONE:
            if state is not State.DRAINING:
                self.report("info", "server.draining", server, by="supervisorctl")
            state, reason = State.DRAINING, "stopped by supervisorctl"
        elif process.statename == "RUNNING" and state is State.STARTING:
            state = State.LOADING
        self.put(replace(server, statename=process.statename, state=state, reason=reason))

    def _take_end(self, server: Server, process: ProcessSeen) -> None:
        """The process is gone: by our stop, by the user's, by our kill, or by itself."""
        self.actions.append(Sweep(name=server.spec.name))
        server = replace(server, swept=False, sweeping=True)
        ran_s = round(self.seen.now - server.started_at, 1)
        by_user = process.statename == "STOPPED" and server.ending is Ending.NONE
        if server.ending is Ending.STOP or by_user:
            self._take_stopped(server, by_user)
        elif server.ending is Ending.HUNG:
            mend = f"see its log; if it was only slow, raise {_patience_key(server)}"
            self._fail(server, server.ending_reason, mend, kind=HUNG, policy=Policy.RETRY, ran_s=ran_s)
        else:
            mend = process.mend or f"see infer-dev logs {server.spec.name}"
            self._fail(server, process.ended, mend, kind=process.kind, policy=process.policy, ran_s=ran_s)

    def _take_stopped(self, server: Server, by_user: bool) -> None:
        self.report("info", "server.stopped", server)
        if server.removing:
            self._forget(server)
            return
        changed = server.successor is not None
        again = server.wanted and not by_user and not self.fleet.shutting_down
        server = self._fresh(server)
        if again:
            server = replace(server, state=State.STARTING, due_at=self.seen.now, failures=0, unready_failures=0)
        else:
            reason = "stopped by supervisorctl" if by_user else server.reason
            server = replace(server, state=State.STOPPED, wanted=False, reason=reason)
        self.put(server)
        if changed:
            self.configure()

    def _forget(self, server: Server) -> None:
        name = server.spec.name
        servers = tuple(other for other in self.fleet.servers if other.spec.name != name)
        self.fleet = replace(self.fleet, servers=servers)
        self.configure()

    def _fail(
        self,
        server: Server,
        reason: str,
        mend: str,
        *,
        kind: str,
        policy: Policy,
        died: bool = True,
        ran_s: float | None = None,
    ) -> None:
        """A crash, a hang or a start that failed: back off, or give up; what does not count is waited out for ever.

        `died` tells a process that ended, after `ran_s` if that is known, from one that there never was.
        """
        restart = server.spec.restart
        was_ready = server.ready_at is not None
        settled = was_ready and self.seen.now - (server.ready_at or 0.0) >= restart.reset_after_s
        failures = 1 if settled else server.failures + 1
        # What has served once can serve again: what it misses comes back, or the log showed what a prompt said.
        stops = policy in (Policy.HOLD, Policy.NEVER) and not server.served
        outside = policy is Policy.WAIT or (policy is Policy.HOLD and server.served)
        unready = 1 if was_ready else server.unready_failures + int(not outside)
        changed = server.successor is not None
        if died:
            self._record(replace(server, reason=reason, mend=mend, kind=kind, failures=failures), policy, ran_s)
        server = replace(
            self._fresh(server), failures=failures, unready_failures=unready, reason=reason, mend=mend, kind=kind
        )
        if not server.wanted or self.fleet.shutting_down:
            self.report("info", "server.stopped", server, reason=reason)
            self.put(replace(server, state=State.STOPPED))
            if server.removing:
                self._forget(server)
        elif stops and not changed:
            self._give_up(server, reason)
        elif restart.max_restarts and unready > restart.max_restarts:
            self._give_up(server, f"{unready} starts in a row never became ready; the last: {reason}")
        else:
            delay = backoff_s(restart, failures, self.seen.jitter)
            told = {"class": kind, "reason": reason, "mend": mend}
            self.report("error", "server.crashed", server, **told, retry_in_s=round(delay, 2))
            self.put(replace(server, state=State.BACKOFF, due_at=self.seen.now + delay))
        if changed:
            self.configure()

    def _record(self, server: Server, policy: Policy, ran_s: float | None) -> None:
        """Have a dossier kept of this failure, unless somebody wanted the server to end anyway."""
        if not server.wanted or self.fleet.shutting_down:
            return
        self.actions.append(
            Record(
                spec=server.spec,
                kind=server.kind,
                policy=policy,
                reason=server.reason,
                mend=server.mend,
                failures=server.failures,
                run=server.runs,
                ran_s=ran_s,
            )
        )

    def _give_up(self, server: Server, reason: str) -> None:
        name = server.spec.name
        cause = server.mend if server.kind != UNKNOWN else f"read infer-dev logs {name}, mend the cause"
        mend = f"{cause}; then run infer-dev start {name}"
        self.report("error", "server.failed", server, **{"class": server.kind, "reason": reason, "mend": mend})
        self.put(replace(server, state=State.FAILED, reason=reason, mend=mend))

    # -- the passing of time

    def take_time(self) -> None:
        for server in self.fleet.servers:
            if server.pid:
                self._take_time_running(server)
        self._start_supervisor_if_due()
        for server in self.fleet.servers:
            self._start_if_due(server)

    def _take_time_running(self, server: Server) -> None:
        now = self.seen.now
        if self.fleet.cut_short and server.kill_at is None:
            self._kill_after_drain(server, "the stop was cut short")
        elif server.drain_until is not None and now >= server.drain_until:
            self._kill_after_drain(server, f"it did not stop within {server.spec.drain_timeout_s:g} s")
        elif server.kill_at is not None and now >= server.kill_at:
            self.report("error", "server.survives_sigkill", server, pid=server.pid)
            self.actions.append(Kill(name=server.spec.name, evidence=False))
            self.put(replace(server, kill_at=now + KILL_RETRY_S, sweeping=True))
        elif server.ready_at is None and _is_past_startup(server, now):
            deadline = server.spec.probe.startup_deadline_s
            last = f" ({server.reason})" if server.reason else ""
            self._end_hung(server, f"not ready {deadline:g} s after its start{last}")
        elif is_probed(server) and (stall := describe_stall(server, now)):
            self._end_hung(server, stall)
        elif is_probed(server) and now >= server.probe_at - _probe_slack_s(server):
            self._probe(server)

    def _probe(self, server: Server) -> None:
        probe = server.spec.probe
        starting = server.ready_at is None
        period = min(STARTUP_PROBE_PERIOD_S, probe.period_s) if starting else probe.period_s
        path = probe.startup_path if starting else probe.liveness_path
        self.actions.append(
            Probe(
                spec=server.spec,
                pid=server.pid,
                path=path,
                starting=starting,
                # What frozen children hide behind moving counters is found by the probe that comes at least this often.
                trusts=probe.counters_first
                and not starting
                and not server.probe_failures
                and server.unproved < probe.failure_threshold - 1,
                before=server.counters,
                fresh_s=FRESH_SHARE * probe.period_s,
            )
        )
        self.put(replace(server, probing=True, probe_at=self.seen.now + period))

    def _kill_after_drain(self, server: Server, why: str) -> None:
        name = server.spec.name
        if name not in self.fleet.had_to_kill:
            self.fleet = replace(self.fleet, had_to_kill=(*self.fleet.had_to_kill, name))
        self.report("warning", "server.killed", server, reason=why, pid=server.pid)
        self.actions.append(Kill(name=name, evidence=False))
        self.put(replace(server, drain_until=None, kill_at=self.seen.now + KILL_RETRY_S, sweeping=True))

    def _start_supervisor_if_due(self) -> None:
        fleet = self.fleet
        if wants_supervisor(fleet) and self.seen.now >= fleet.supervisor_due_at:
            self.actions.append(StartSupervisor(specs=applied_specs(fleet)))
            self.fleet = replace(fleet, supervisor_starting=True)

    def _start_if_due(self, server: Server) -> None:
        fleet = self.fleet
        waiting_state = server.state in (State.WAITING_GPU, State.STARTING, State.BACKOFF)
        if server.wanted and not server.pid and not server.starting and waiting_state:
            missing = missing_dependencies(fleet, server)
            if missing and server.state is State.STARTING:
                self.put(replace(server, reason=f"waits until {', '.join(missing)} is ready"))
                return
            if is_warmed_for(fleet, server):
                self.put(replace(server, reason=f"waits until {server.spec.warm_after} has read the model from disk"))
                return
        if not can_start_but_for_time(fleet, server):
            return
        due = max(server.due_at, fleet.last_start_at + server.spec.start_stagger_s)
        if self.seen.now < due:
            return
        if needs_look(server.spec) and not server.gpu_clear:
            self.actions.append(LookAtGpus(spec=server.spec))
            self.put(replace(server, gpu_looking=True))
            return
        self.actions.append(Start(spec=server.spec))
        self.fleet = replace(fleet, last_start_at=self.seen.now)
        self.put(replace(server, starting=True, state=State.STARTING))


def _probe_slack_s(server: Server) -> float:
    """How much too early a ready server may be probed: one wake-up then serves all that are due about now."""
    return 0.0 if server.ready_at is None else PROBE_SLACK * server.spec.probe.period_s


def _patience_key(server: Server) -> str:
    """Name the key that gives a server that was ended as hung more time."""
    if server.ready_at is not None:
        return "probe.failure_threshold"
    return "probe.stall_timeout_s" if server.ending_reason.startswith("stalled") else "probe.startup_deadline_s"


def _is_past_startup(server: Server, now: float) -> bool:
    return (
        server.ending is Ending.NONE
        and server.state is not State.DRAINING
        and (now >= server.started_at + server.spec.probe.startup_deadline_s)
    )
