"""ServerSpec, the resolved description of one server process, and its JSON form that travels to PID 1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSpec:
    """How a server is probed. Paths are HTTP paths; times are seconds; `timeout_s` is below `period_s`.

    `progress_paths` are pages of counters, the best first (see `infer_dev_entry.counters`); with `counters_first` they
    are asked before the server is made to generate. A start whose log says nothing for `stall_timeout_s` is hung;
    0: never. A server that answers probes on a loopback port of their own names it as `port`; 0: on the server's. With
    `by_pid` nothing is asked of the server: it is ready while its process lives.
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
    port: int = 0


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
class RouteSpec:
    """The servers behind `/<name>/v1/` of a gateway."""

    name: str
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySpec:
    """What a gateway does with requests. It may change while the gateway runs, unlike the rest of its ServerSpec.

    `pool` names the servers behind `/v1/`. `conf` is the file that the gateway reads, `access_log` "" for none. Limits
    of 0 are off; `rate_per_s`, `burst` and `max_connections` are per key, or per address where there are no keys.
    """

    pool: tuple[str, ...]
    routes: tuple[RouteSpec, ...]
    conf: str
    access_log: str
    api_keys_file: str
    tls_certificate: str
    tls_certificate_key: str
    http2: bool
    rate_per_s: float
    burst: int
    max_connections: int
    max_body_bytes: int
    client_timeout_s: float
    read_timeout_s: float
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """One server process, fully resolved.

    `argv` is exact (no shell). `environment` holds the variables that are added to PID 1's own. `gpu_ids` is None for
    all GPUs and () for none; it takes at least `min_gpus` of them (0: it can do without). `url` is where a client on
    this machine reaches it. `more_ports` are bound beside `port`, for NCCL and the like, only once the model has
    loaded; so they must be free before the start. `warm_after` names the replica whose first load leaves the model in
    the page cache; "" when there is none to wait for. After `gpu_wait_s` a start that waits for GPU memory is reported,
    and waits on; with `gpu_auto`, as its GPUs were dealt, it may move to others. `stop_signal` is what makes it drain.
    `gateway` makes it one that hands requests to the other servers. `gpu_auto` makes no difference to its process, nor
    to equality. One that does not `serve` answers no requests, as the other nodes of SGLang beside the first; `note`
    says why, to whoever sees it ready.
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
    min_gpus: int = 0
    gpu_auto: bool = field(default=False, compare=False)
    serves: bool = True
    note: str = ""
    stop_signal: str = "TERM"
    gateway: GatewaySpec | None = None

    @property
    def is_local(self) -> bool:
        """True when only processes of this machine can reach it."""
        return is_loopback(self.host)

    @property
    def address(self) -> str:
        """`host:port` for a client on this machine; wildcard hosts become loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL for a client on this machine; "" for a server that does not serve."""
        if not self.serves:
            return ""
        scheme = "https" if self.gateway and self.gateway.tls_certificate else "http"
        return f"{scheme}://{self.address}"


def is_loopback(host: str) -> bool:
    """True when what listens on this address is reached by processes of this machine alone."""
    return host.startswith("127.") or host.strip("[]") in ("::1", "localhost")


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
        gateway=_parse_gateway(known.get("gateway")),
    )
    return ServerSpec(**known)


def _parse_gateway(data: Mapping[str, Any] | None) -> GatewaySpec | None:
    if data is None:
        return None
    routes = tuple(RouteSpec(name=item["name"], servers=tuple(item["servers"])) for item in data["routes"])
    return GatewaySpec(**{**data, "pool": tuple(data["pool"]), "routes": routes})
