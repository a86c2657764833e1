"""What can be observed of a fleet: what its users wish, what became of actions, and what supervisord reports."""

from __future__ import annotations

from dataclasses import dataclass

from infer_dev_entry.counters import Counters
from infer_dev_entry.diagnosis.model import UNKNOWN, Policy
from infer_dev_entry.fleet.actions import Route
from infer_dev_entry.gpu_wait import NO_DRIVER, GpuLook
from infer_dev_entry.phases import Durations
from infer_dev_entry.spec import ServerSpec


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
    """The outcome of a LookAtGpus; `gpu_ids` are those that were looked at."""

    name: str
    gpu_ids: tuple[str, ...] | None
    look: GpuLook


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomSeen:
    """The outcome of a FindRoom: what the server would be now, on other GPUs, and their memory; or a `problem`."""

    name: str
    spec: ServerSpec | None = None
    look: GpuLook = NO_DRIVER
    problem: str = ""


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
Result = StartSeen | ProbeSeen | SweepSeen | GpuSeen | RoomSeen | RouteSeen | SupervisorSeen


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
