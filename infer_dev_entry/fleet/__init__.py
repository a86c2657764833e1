"""The fleet as data: the state of every server. What is observed and what follows are in modules of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from infer_dev_entry.counters import Counters
from infer_dev_entry.fleet.actions import Route
from infer_dev_entry.gpu_wait import GpuWait
from infer_dev_entry.phases import Durations
from infer_dev_entry.spec import ServerSpec


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
    done, `past` those of earlier starts. `gpu_clear`: its GPUs were looked at, and the next start may come. While it
    waits for them, `room_at` is when others are next looked for; `room_problem` was told of that.
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
    room_at: float = 0.0
    room_problem: str = ""
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
