"""What can follow from a decision; `init.act` carries it out."""

from __future__ import annotations

from dataclasses import dataclass

from infer_dev_entry.counters import Counters
from infer_dev_entry.diagnosis.model import Policy
from infer_dev_entry.phases import Durations
from infer_dev_entry.spec import ServerSpec


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
class FindRoom:
    """Ask which GPUs a server that waits for its own would be dealt now, and read their memory."""

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
    Configure
    | Start
    | LookAtGpus
    | FindRoom
    | Stop
    | Kill
    | Sweep
    | Probe
    | Route
    | Remember
    | Record
    | StartSupervisor
    | Report
)
