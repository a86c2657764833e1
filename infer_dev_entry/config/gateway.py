"""The `[gateway]` table → one more server of the plan, which stands before the others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import cast

from infer_dev_entry.config.checks import FleetChecker
from infer_dev_entry.config.facts import UNKNOWN_SECRET, Host
from infer_dev_entry.config.faults import Faults, Path, shown
from infer_dev_entry.config.keys import CONTROL, GATEWAY, Value, defaults_of
from infer_dev_entry.config.parse import Document, parse_table
from infer_dev_entry.config.ports import HIGHEST_PORT, PortDealer
from infer_dev_entry.config.programs import ResolveOptions
from infer_dev_entry.config.router import RouterChecker, router_spec
from infer_dev_entry.engines import EngineProfile, profile_of
from infer_dev_entry.gateway.keys import LONGEST, parse_keys
from infer_dev_entry.gateway.nginx_words import path_problem
from infer_dev_entry.redact import api_key_of
from infer_dev_entry.spec import GatewaySpec, ProbeSpec, RestartSpec, RouteSpec, ServerSpec

# The name of the gateway among the servers: in `status`, in logs, for `infer-dev stop`.
NAME = "gateway"
PATH: Path = ("gateway",)
NGINX_MEND = "apt-get install nginx-light, or give gateway.binary its path"

# A gateway holds no state that a quick restart could harm, and its ports are free at once.
RESTART = RestartSpec(backoff_initial_s=0.2, backoff_max_s=5.0, reset_after_s=60.0, max_restarts=0)

_UPSTREAM_HOST = re.compile(r"[A-Za-z0-9.:\[\]_-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The checked `[gateway]` table. Empty strings mean "not given", `instances` None all."""

    engine: str
    host: str
    port: int
    instances: tuple[str, ...] | None
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
    access_log: bool
    log_dir: str
    drain_timeout_s: float
    log_max_bytes: int
    log_backups: int
    binary: str
    policy: str
    given: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """The servers of each instance, and the model that it serves; the installed environment's interpreter."""

    servers: Mapping[str, tuple[ServerSpec, ...]]
    models: Mapping[str, str]
    installed_python: str = ""


def read_gateway(document: Document, faults: Faults) -> Gateway | None:
    """Read `[gateway]`; None when it is switched off."""
    given = parse_table(document[NAME], GATEWAY, PATH, faults)
    absent: dict[str, Value] = dict.fromkeys(
        ("api_keys_file", "tls_certificate", "tls_certificate_key", "log_dir", "binary"), ""
    )
    values = {**defaults_of(GATEWAY), **absent, "log_dir": _log_dir(document), "drain_timeout_s": 0.0, **given}
    if not values.pop("enable"):
        return None
    return Gateway(**values, given=frozenset(given))  # type: ignore[arg-type]  # parse_table checked every type


def _log_dir(document: Document) -> str:
    """The log directory of the instances; what is wrong with it is reported where they are read."""
    instances = document.get("instance")
    control = instances.get("control") if isinstance(instances, dict) else None
    given = control.get("log_dir") if isinstance(control, dict) else None
    return given if isinstance(given, str) and given else cast("str", defaults_of(CONTROL)["log_dir"])


class GatewayBuilder:
    """Builds the gateway's server, once the others are known."""

    def __init__(
        self, options: ResolveOptions, host: Host, dealer: PortDealer, checker: FleetChecker, faults: Faults
    ) -> None:
        self._options = options
        self._host = host
        self._dealer = dealer
        self._checker = checker
        self._faults = faults

    def build(self, gateway: Gateway, backends: Backends) -> ServerSpec:
        """Check the gateway against the machine and the servers, and build it."""
        if "drain_timeout_s" not in gateway.given:
            gateway = replace(gateway, drain_timeout_s=_longest_drain_s(backends))
        self._check_address(gateway)
        if "policy" in gateway.given and gateway.engine != "sglang-router":
            self._faults.warn((*PATH, "policy"), "is for engine sglang-router; not used")
        profile = profile_of(gateway.engine)
        pool = self._pool(gateway, backends)
        status_port = self._status_port(gateway)
        log_file = str(PurePosixPath(self._host.expand(gateway.log_dir)) / f"sglang-server-{NAME}.log")
        self._checker.check_log_file(NAME, log_file, (*PATH, "log_dir"))
        conf = f"{self._options.run_dir.rstrip('/')}/config/{NAME}.conf"
        tmp_dir = f"{self._options.tmp_dir.rstrip('/')}/{NAME}"
        if gateway.engine == "sglang-router":
            argv, spec_of_gateway = self._router(gateway, backends, pool, status_port, conf)
        else:
            self._check_backends(gateway, backends, pool)
            argv = (self._program(gateway), "-e", "stderr", "-p", f"{tmp_dir}/", "-c", conf)
            spec_of_gateway = self._gateway_spec(gateway, backends, pool, conf, log_file)
        spec = ServerSpec(
            name=NAME,
            engine=gateway.engine,
            argv=argv,
            environment=(("TMPDIR", tmp_dir),),
            gpu_ids=(),
            host=gateway.host,
            port=gateway.port,
            log_file=log_file,
            log_max_bytes=gateway.log_max_bytes,
            log_backups=gateway.log_backups,
            depends_on=(),
            start_stagger_s=0.0,
            drain_timeout_s=gateway.drain_timeout_s,
            probe=_probe(profile, status_port if gateway.engine == "nginx" else 0),
            restart=RESTART,
            more_ports=(status_port,),
            stop_signal=profile.stop_signal,
            gateway=spec_of_gateway,
        )
        if gateway.engine == "nginx" and not gateway.api_keys_file and not spec.is_local:
            problem = f"there is none, so everybody who reaches {gateway.host}:{gateway.port} can use the servers"
            mend = "make one: infer-dev gateway keys add FILE --name NAME"
            self._faults.warn((*PATH, "api_keys_file"), problem, mend)
        return spec

    def _router(
        self, gateway: Gateway, backends: Backends, pool: tuple[str, ...], metrics_port: int, key_file: str
    ) -> tuple[tuple[str, ...], GatewaySpec]:
        """The command line of SGLang's router, and what it does with requests: no more than to spread them."""
        checker = RouterChecker(self._options, self._host, self._checker, self._faults)
        servers = [server for group in backends.servers.values() for server in group]
        checker.check(gateway, [server for server in servers if server.name in pool])
        interpreter = checker.find_interpreter(gateway, backends.installed_python)
        return checker.render(gateway, interpreter, metrics_port, key_file), router_spec(gateway, pool, key_file)

    def _gateway_spec(
        self, gateway: Gateway, backends: Backends, pool: tuple[str, ...], conf: str, log_file: str
    ) -> GatewaySpec:
        certificate, key = self._tls(gateway)
        access_log = str(PurePosixPath(log_file).with_name(f"sglang-server-{NAME}-access.log"))
        if gateway.access_log:
            self._checker.check_log_file(f"{NAME}-access", access_log, (*PATH, "log_dir"))
            self._check_path(access_log, "log_dir")
        return GatewaySpec(
            pool=pool,
            routes=_routes(backends.servers),
            conf=conf,
            access_log=access_log if gateway.access_log else "",
            api_keys_file=self._keys_file(gateway),
            tls_certificate=certificate,
            tls_certificate_key=key,
            http2=gateway.http2,
            rate_per_s=float(gateway.rate_per_s),
            burst=gateway.burst,
            max_connections=gateway.max_connections,
            max_body_bytes=gateway.max_body_bytes,
            client_timeout_s=gateway.client_timeout_s,
            read_timeout_s=gateway.read_timeout_s,
            workers=gateway.workers,
        )

    # -- where it listens

    def _check_address(self, gateway: Gateway) -> None:
        if not _is_address(gateway.host):
            mend = 'write "127.0.0.1", "0.0.0.0" or an address of this machine'
            self._faults.add((*PATH, "host"), f"expected an IP address, got {shown(gateway.host)}", mend)
        if gateway.port > HIGHEST_PORT:
            problem = f"expected a port from 1 to {HIGHEST_PORT}, got {gateway.port}"
            self._faults.add((*PATH, "port"), problem, "choose a free port")
        else:
            self._checker.check_port(NAME, gateway.host, gateway.port, (*PATH, "port"))

    def _status_port(self, gateway: Gateway) -> int:
        dealt = self._dealer.deal(gateway.port)
        if dealt is None:
            self._faults.add(PATH, "no port is left for its status page", "have fewer servers")
            return 0
        self._checker.check_port(NAME, "127.0.0.1", dealt, PATH, "status port")
        return dealt

    def _program(self, gateway: Gateway) -> str:
        given = gateway.binary
        program = self._host.expand(given) if given else self._host.find_program("nginx")
        self._checker.check_program(program, (*PATH, "binary") if given else PATH, NGINX_MEND)
        return program

    # -- whom it serves

    def _pool(self, gateway: Gateway, backends: Backends) -> tuple[str, ...]:
        """The servers behind /v1/."""
        known = backends.servers
        if NAME in known:
            self._faults.add(("instance", NAME), "has the name of the gateway", "rename the instance")
        named = tuple(known) if gateway.instances is None else gateway.instances
        path = (*PATH, "instances")
        for name in named:
            if name not in known:
                enabled = f"enabled instances: {', '.join(list(known)[:20])}"
                problem = f"no enabled instance is called {shown(name)}"
                self._faults.add(path, problem, self._faults.nearest(name, known, enabled))
        if not named:
            self._faults.add(path, "names no instance", "name some, or leave it out for all")
        models = {backends.models[name] for name in named if name in known}
        if len(models) > 1:
            problem = f"{len(models)} different models are behind /v1/, and any of them answers there"
            self._faults.warn(path, problem, "name the instances of one model; /<instance>/v1/ leads to each of them")
        return tuple(dict.fromkeys(server.name for name in named for server in known.get(name, ())))

    def _check_backends(self, gateway: Gateway, backends: Backends, pool: Sequence[str]) -> None:
        servers = [server for group in backends.servers.values() for server in group]
        for server in servers:
            if not _UPSTREAM_HOST.fullmatch(server.host):
                problem = f"the gateway cannot reach server {server.name} at {shown(server.host)}"
                self._faults.add(PATH, problem, "give that instance an IP address as its host")
        if not gateway.api_keys_file:
            return
        if any(len(api_key_of(server.files)) > LONGEST for server in servers):
            problem = f"a server asks for an API key of more than {LONGEST} characters, which the gateway cannot send"
            self._faults.add(PATH, problem, "choose a shorter api_key")
        keys = {api_key_of(server.files) for server in servers if server.name in pool}
        if len(keys) > 1:
            problem = "its servers ask for different API keys, and the gateway can send one of them"
            self._faults.add((*PATH, "instances"), problem, "give them the same api_key_file, or none")
        exposed = [server.name for server in servers if not api_key_of(server.files) and not server.is_local]
        if exposed:
            names = ", ".join(exposed[:5]) + (", …" if exposed[5:] else "")
            problem = f"{names} can be reached without a key, past the gateway"
            self._faults.warn((*PATH, "api_keys_file"), problem, 'set host = "127.0.0.1" in [instance.server]')

    # -- its files

    def _keys_file(self, gateway: Gateway) -> str:
        path = (*PATH, "api_keys_file")
        if not gateway.api_keys_file:
            return ""
        file = self._host.expand(gateway.api_keys_file)
        secret = self._host.secret_file(file)
        if secret is UNKNOWN_SECRET:
            return file
        problems = (secret.problem,) if secret.problem else parse_keys(secret.text).problems
        for problem in problems:
            mend = "infer-dev gateway keys add FILE --name NAME makes one" if secret.problem else "correct that file"
            self._faults.add(path, f"cannot take the keys of {shown(file)}: {problem}", mend)
        if secret.warning:
            self._faults.warn(path, f"{shown(file)} {secret.warning}", f"chmod 600 {file}")
        return file

    def _tls(self, gateway: Gateway) -> tuple[str, str]:
        """The paths of certificate and key; two empty strings without TLS."""
        given = {"tls_certificate": gateway.tls_certificate, "tls_certificate_key": gateway.tls_certificate_key}
        missing = [name for name, value in given.items() if not value]
        if len(missing) == 1:
            self._faults.add((*PATH, missing[0]), "is missing, and the other one is given", "give both, or neither")
            return "", ""
        if missing:
            return "", ""
        files = {name: self._host.expand(value) for name, value in given.items()}
        for name, file in files.items():
            self._check_path(file, name)
            problem = self._host.file_problem(file)
            if problem:
                self._faults.add((*PATH, name), f"cannot read {shown(file)}: {problem}", "correct the path")
        return files["tls_certificate"], files["tls_certificate_key"]

    def _check_path(self, value: str, name: str) -> None:
        unfit = path_problem(value)
        if unfit:
            self._faults.add((*PATH, name), f"{shown(value)} cannot be used: {unfit}", "choose another path")


def _routes(servers: Mapping[str, tuple[ServerSpec, ...]]) -> tuple[RouteSpec, ...]:
    """A route for each instance, and one for each server of those that are fanned out."""
    routes = {name: tuple(server.name for server in group) for name, group in servers.items()}
    routes |= {server.name: (server.name,) for group in servers.values() for server in group}
    return tuple(RouteSpec(name=name, servers=group) for name, group in routes.items())


def _longest_drain_s(backends: Backends) -> float:
    """A gateway that ends before its servers cuts off the answers that they still complete."""
    drains = [server.drain_timeout_s for group in backends.servers.values() for server in group]
    return max(drains, default=0.0)


def _probe(profile: EngineProfile, port: int) -> ProbeSpec:
    return ProbeSpec(
        startup_path=profile.startup_path,
        liveness_path=profile.liveness_path,
        startup_deadline_s=profile.startup_deadline_s,
        period_s=profile.period_s,
        timeout_s=profile.timeout_s,
        failure_threshold=profile.failure_threshold,
        port=port,
    )


def _is_address(host: str) -> bool:
    try:
        return host == "localhost" or ("%" not in host and bool(ip_address(host.strip("[]"))))
    except ValueError:
        return False
