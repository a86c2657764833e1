"""The fleet as data: the state of every server, what can be observed of it, and the actions that can follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from infer_dev_entry.diagnosis.model import UNKNOWN, Policy
from infer_dev_entry.gpu_wait import GpuLook, GpuWait
from infer_dev_entry.phases import Durations
from infer_dev_entry.progress import Counters
from infer_dev_entry.spec import RestartSpec, ServerSpec


class State(StrEnum):
    """What a server is to its users."""

    WAITING_GPU = "waiting-gpu"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    BACKOFF = "backoff"
    STOPPED = "stopped"
    FAILED = "failed"


class Ending(StrEnum):
    """Why we ended a process ourselves; tells our own kill from a crash."""

    NONE = ""
    STOP = "stop"
    HUNG = "hung"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server. Times are monotonic seconds but `ready_since`, which is Unix time for display.

    `wanted` is the wish of config and user. `pid` is 0 without a process. `failures` counts crashes in a row for the
    back-off, `unready_failures` those without readiness in between. `successor` replaces the spec once this process is
    gone; `removing` drops the server then. `counters` are its last known ones; they stood in for `unproved` probes in
    a row. While it starts, `phase` has lasted since `phase_at`, and its log last grew at `log_at`; `phases` are those
    done, `past` those of earlier starts. `gpu_clear`: its GPUs were looked at, and the next start may come.
    `kind` is the class of its last failure; `served`: it has been ready with this spec, so the configuration can work.
    A gateway was last given the `routed` servers, and has last `answered` for these. `notice` says what is wrong with
    a server that serves all the same.
    """

    spec: ServerSpec
    state: State = State.STARTING
    statename: str = "STOPPED"
    wanted: bool = True
    pid: int = 0
    runs: int = 0
    failures: int = 0
    unready_failures: int = 0
    reason: str = ""
    mend: str = ""
    started_at: float = 0.0
    ready_at: float | None = None
    ready_since: float | None = None
    due_at: float = 0.0
    swept: bool = True
    sweeping: bool = False
    starting: bool = False
    probing: bool = False
    probe_at: float = 0.0
    probe_failures: int = 0
    counters: Counters | None = None
    unproved: int = 0
    phase: str = ""
    phase_at: float = 0.0
    phases: Durations = ()
    past: tuple[Durations, ...] = ()
    log_at: float = 0.0
    ending: Ending = Ending.NONE
    ending_reason: str = ""
    drain_until: float | None = None
    kill_at: float | None = None
    note_at: float = 0.0
    removing: bool = False
    successor: ServerSpec | None = None
    gpu_wait: GpuWait = field(default_factory=GpuWait)
    gpu_looking: bool = False
    gpu_clear: bool = False
    kind: str = ""
    served: bool = False
    routed: Route | None = None
    answered: Route | None = None
    notice: str = ""
    notice_mend: str = ""

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return max(0, self.runs - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All servers in start order, and what concerns them all."""

    servers: tuple[Server, ...] = ()
    supervisor_up: bool = False
    supervisor_starting: bool = False
    supervisor_failures: int = 0
    supervisor_due_at: float = 0.0
    supervisor_up_at: float = 0.0
    last_start_at: float = float("-inf")
    shutting_down: bool = False
    cut_short: bool = False
    had_to_kill: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------- observations


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSeen:
    """One program as supervisord reports it; `ended` describes the last end for people ("killed by SIGKILL").

    `kind` is its class, and `policy` what follows from it.
    """

    name: str
    statename: str
    pid: int
    ended: str
    mend: str = ""
    kind: str = UNKNOWN
    policy: Policy = Policy.RETRY


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSeen:
    """The outcome of a Start. `outside` says that the problem is not the server's own, such as a taken port.

    `kind` and `policy` say what the problem is. `past` are its earlier starts, as far as they are known.
    """

    name: str
    pid: int
    problem: str = ""
    mend: str = ""
    outside: bool = False
    kind: str = UNKNOWN
    policy: Policy = Policy.RETRY
    past: tuple[Durations, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSeen:
    """The outcome of a Probe of process `pid`.

    `counters` were read in its course, if they could be; `by_counters`: they alone were proof enough. While the server
    starts, `phase` is the one that its log tells ("": none), and `log_grew` is None when the log cannot be read.
    """

    name: str
    pid: int
    ok: bool
    status: int
    reason: str
    counters: Counters | None = None
    by_counters: bool = False
    phase: str = ""
    log_grew: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSeen:
    """The outcome of a Sweep or Kill."""

    name: str
    killed: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSeen:
    """The outcome of a LookAtGpus."""

    name: str
    look: GpuLook


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSeen:
    """What became of a gateway's `route`: it is in force, or a `problem` says why an older one still is."""

    name: str
    route: Route | None = None
    problem: str = ""
    mend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWish:
    """Stop these servers and keep them stopped; None means all."""

    names: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWish:
    """Start these servers, also when they have failed; None means all."""

    names: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanWish:
    """Make the fleet be these servers; equal ones keep running."""

    specs: tuple[ServerSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownWish:
    """Drain and stop everything; `now` ends it without waiting."""

    now: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSeen:
    """supervisord answers (`up`), or is gone."""

    up: bool
    reason: str = ""


Wish = StopWish | StartWish | PlanWish | ShutdownWish
Result = StartSeen | ProbeSeen | SweepSeen | GpuSeen | RouteSeen | SupervisorSeen


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """All that happened since the last decision. `jitter` is a random number in [0, 1) for the back-off.

    `processes` is supervisord's view as asked for at `processes_at`; what has started since is not in it.
    """

    now: float
    wall: float
    jitter: float = 0.0
    wishes: tuple[Wish, ...] = ()
    results: tuple[Result, ...] = ()
    processes: tuple[ProcessSeen, ...] | None = None
    processes_at: float = 0.0


# --------------------------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True, kw_only=True)
class Configure:
    """Give supervisord the configuration of these servers."""

    specs: tuple[ServerSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start a program whose leftovers are swept."""

    spec: ServerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAtGpus:
    """Read the memory of a server's GPUs, before its start."""

    spec: ServerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Have supervisord send SIGTERM to the main process."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """End the whole tree of a live server; with `evidence`, look at it first."""

    name: str
    evidence: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """End whatever a dead server has left behind."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Probe a server once.

    A `starting` one is probed for readiness, and its log is followed. `trusts` makes counters that have moved since
    `before`, on a server that ran until `fresh_s` ago, proof enough without a request to `path`.
    """

    spec: ServerSpec
    pid: int
    path: str
    starting: bool = False
    trusts: bool = False
    before: Counters | None = None
    fresh_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Have a gateway, which runs as `pid` (0: not now), hand requests to these servers and to no others."""

    spec: ServerSpec
    pid: int
    ready: tuple[ServerSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember:
    """Keep how long the phases of a start took."""

    spec: ServerSpec
    start: Durations


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Keep a dossier of a failure, one of `failures` in a row, of a process that ran for `ran_s` (None: unknown)."""

    spec: ServerSpec
    kind: str
    policy: Policy
    reason: str
    mend: str
    failures: int
    run: int
    ran_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSupervisor:
    """Start supervisord with the configuration of these servers."""

    specs: tuple[ServerSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Log an event. `level` is a name of the logging module in lower case."""

    level: str
    event: str
    fields: tuple[tuple[str, str | int | float], ...]


Action = (
    Configure | Start | LookAtGpus | Stop | Kill | Sweep | Probe | Route | Remember | Record | StartSupervisor | Report
)


# ----------------------------------------------------------------------------------------------------- pure pieces


def backoff_s(restart: RestartSpec, failures: int, jitter: float) -> float:
    """Return the delay before the next start after `failures` (≥ 1) crashes in a row, in seconds.

    Doubles from `backoff_initial_s` up to `backoff_max_s`; `jitter` in [0, 1) takes off up to a tenth, so that servers
    which died together do not load together.
    """
    doublings = min(max(0, failures - 1), 60)  # 2**60 seconds is beyond any maximum; no overflow
    delay = min(restart.backoff_max_s, restart.backoff_initial_s * 2.0**doublings)
    return delay * (1.0 - 0.1 * jitter)


def find_server(fleet: Fleet, name: str) -> Server | None:
    """Return the server of that name."""
    return next((server for server in fleet.servers if server.spec.name == name), None)


def is_healthy(fleet: Fleet) -> bool:
    """True when every server that should serve is ready; servers that the user stopped do not count.

    A gateway that has not yet taken on who is ready would still refuse requests.
    """
    return all(
        server.state is State.READY and server.routed == server.answered for server in fleet.servers if server.wanted
    )


def is_down(fleet: Fleet) -> bool:
    """True when no server has a process, or is about to get one."""
    return not any(server.pid or server.starting or server.sweeping for server in fleet.servers)


def applied_specs(fleet: Fleet) -> tuple[ServerSpec, ...]:
    """Return the specs that supervisord should know now: a changed server keeps its old one until it has stopped."""
    return tuple(server.spec for server in fleet.servers)


def wants_supervisor(fleet: Fleet) -> bool:
    """True when supervisord is to be started as soon as it is due: nothing of its predecessor may be left by then."""
    idle = not fleet.supervisor_up and not fleet.supervisor_starting and not fleet.shutting_down
    return idle and bool(fleet.servers) and not any(server.sweeping for server in fleet.servers)


def wake_at(fleet: Fleet) -> float:
    """Return the monotonic time at which something is due, or infinity."""
    times = [_server_wake_at(fleet, server) for server in fleet.servers]
    if wants_supervisor(fleet):
        times.append(fleet.supervisor_due_at)
    return min(times, default=float("inf"))


def _server_wake_at(fleet: Fleet, server: Server) -> float:
    times = []
    if server.pid:
        if server.drain_until is not None:
            times.append(server.drain_until)
        if server.kill_at is not None:
            times.append(server.kill_at)
        if is_probed(server):
            times.append(server.probe_at)
            if server.ready_at is None:
                times.append(server.started_at + server.spec.probe.startup_deadline_s)
    elif can_start_but_for_time(fleet, server):
        times.append(max(server.due_at, fleet.last_start_at + server.spec.start_stagger_s))
    return min(times, default=float("inf"))


def is_probed(server: Server) -> bool:
    asked = bool(server.pid) and not server.spec.probe.by_pid
    return asked and not server.probing and server.ending is Ending.NONE and server.state is not State.DRAINING


def can_start_but_for_time(fleet: Fleet, server: Server) -> bool:
    return (
        server.wanted
        and not server.pid
        and not server.starting
        and not server.gpu_looking
        and server.swept
        and server.state in (State.WAITING_GPU, State.STARTING, State.BACKOFF)
        and fleet.supervisor_up
        and not fleet.shutting_down
        and not missing_dependencies(fleet, server)
        and not is_warmed_for(fleet, server)
        and not leaving_holder(fleet, server)
    )


def missing_dependencies(fleet: Fleet, server: Server) -> list[str]:
    """Name the dependencies that are not ready; one that is not in the fleet cannot be waited for."""
    found = (find_server(fleet, name) for name in server.spec.depends_on)
    return [other.spec.name for other in found if other and other.state is not State.READY]


def shares_gpu(fleet: Fleet, server: Server) -> bool:
    """True when another server with a process is to go on beside this one on one of its GPUs."""
    others = (
        other
        for other in fleet.servers
        if other.spec.name != server.spec.name and (other.pid or other.starting) and other.ending is not Ending.STOP
    )
    return any(_overlaps(server.spec.gpu_ids, other.spec.gpu_ids) for other in others)


def _overlaps(one: tuple[str, ...] | None, other: tuple[str, ...] | None) -> bool:
    if one is None or other is None:
        return () not in (one, other)
    return not set(one).isdisjoint(other)


def is_warmed_for(fleet: Fleet, server: Server) -> bool:
    """True while a server's first sibling reads the model for the first time; one that has failed is not waited for."""
    first = find_server(fleet, server.spec.warm_after) if server.spec.warm_after else None
    return (
        first is not None
        and first.wanted
        and first.runs <= 1
        and first.failures == 0
        and first.state in (State.STARTING, State.LOADING)
    )


def leaving_holder(fleet: Fleet, server: Server) -> str:
    """Name the server on its way down (one that the plan has no more, say) that holds a port of this one; or ""."""
    ports = _ports_of(server.spec)
    leaving = (other for other in fleet.servers if other.pid and other.ending is Ending.STOP)
    return next((other.spec.name for other in leaving if ports & _ports_of(other.spec)), "")


def _ports_of(spec: ServerSpec) -> set[int]:
    return {spec.port, *spec.more_ports} - {0}
