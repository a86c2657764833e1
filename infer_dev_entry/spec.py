"""ServerSpec, the resolved description of one server process, and its JSON form that travels to PID 1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSpec:
    """How a server is probed. Paths are HTTP paths; times are seconds; `timeout_s` is below `period_s`.

    `progress_paths` are pages of counters, the best first (see `infer_dev_entry.progress`); with `counters_first` they
    are asked before the server is made to generate. A start whose log says nothing for `stall_timeout_s` is hung;
    0: never. With `by_pid` nothing is asked of the server: it is ready while its process lives.
    """

    startup_path: str
    liveness_path: str
    startup_deadline_s: float
    period_s: float
    timeout_s: float
    failure_threshold: int
    stall_timeout_s: float = 0.0
    progress_paths: tuple[str, ...] = ()
    counters_first: bool = False
    by_pid: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartSpec:
    """The back-off of a server. `max_restarts` counts restarts in a row without readiness; 0 never gives up."""

    backoff_initial_s: float
    backoff_max_s: float
    reset_after_s: float
    max_restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    """A file that must exist, mode 0600 and owned by the server's user, before the server starts."""

    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """One server process, fully resolved.

    `argv` is exact (no shell). `environment` holds the variables that are added to PID 1's own. `gpu_ids` is None for
    all GPUs and () for none. `url` is where a client on this machine reaches it. `more_ports` are bound beside `port`,
    for NCCL and the like, only once the model has loaded; so they must be free before the start. `warm_after` names the
    replica whose first load leaves the model in the page cache; "" when there is none to wait for. After `gpu_wait_s`
    a start that waits for GPU memory is reported, and waits on. One that does not `serve` answers no requests, as the
    other nodes of SGLang beside the first; `note` says why, to whoever sees it ready.
    """

    name: str
    engine: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    gpu_ids: tuple[str, ...] | None
    host: str
    port: int
    log_file: str
    log_max_bytes: int
    log_backups: int
    depends_on: tuple[str, ...]
    start_stagger_s: float
    drain_timeout_s: float
    probe: ProbeSpec
    restart: RestartSpec
    files: tuple[FileSpec, ...] = ()
    more_ports: tuple[int, ...] = ()
    warm_after: str = ""
    gpu_wait_s: float = 60.0
    serves: bool = True
    note: str = ""

    @property
    def url(self) -> str:
        """The base URL for a client on this machine; wildcard hosts become loopback. "" for one that does not serve."""
        if not self.serves:
            return ""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The servers of one config, in start order, where they came from, and what the reader should know."""

    source: str
    servers: tuple[ServerSpec, ...]
    warnings: tuple[str, ...] = ()


def render_plan(plan: Plan) -> str:
    """Render a plan as JSON text. It holds secrets: give it to a private file or socket only."""
    return json.dumps(asdict(plan))


def parse_plan(text: str) -> Plan:
    """Parse what `render_plan` wrote.

    Raises:
        ValueError: the text is not such a plan.
    """
    try:
        data = json.loads(text)
        return Plan(
            source=str(data["source"]),
            servers=tuple(_parse_server(item) for item in data["servers"]),
            warnings=tuple(str(item) for item in data["warnings"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"cannot parse plan: {type(error).__name__}: {error}") from error


def _parse_server(data: Mapping[str, Any]) -> ServerSpec:
    known = dict(data)
    gpu_ids = known["gpu_ids"]
    known.update(
        argv=tuple(known["argv"]),
        environment=tuple((str(key), str(value)) for key, value in known["environment"]),
        gpu_ids=None if gpu_ids is None else tuple(gpu_ids),
        depends_on=tuple(known["depends_on"]),
        probe=ProbeSpec(**{**known["probe"], "progress_paths": tuple(known["probe"].get("progress_paths", ()))}),
        restart=RestartSpec(**known["restart"]),
        files=tuple(FileSpec(**item) for item in known["files"]),
        more_ports=tuple(known["more_ports"]),
    )
    return ServerSpec(**known)
