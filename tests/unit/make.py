"""Specs and fleets for unit tests, with short defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from infer_dev_entry.decide import decide
from infer_dev_entry.fleet import Fleet, Server
from infer_dev_entry.fleet.actions import Action
from infer_dev_entry.fleet.observations import Observation, ProbeSeen, ProcessSeen, StartSeen, SupervisorSeen
from infer_dev_entry.spec import GatewaySpec, ProbeSpec, RestartSpec, RouteSpec, ServerSpec

PROBE = ProbeSpec(
    startup_path="/health",
    liveness_path="/health",
    startup_deadline_s=100.0,
    period_s=10.0,
    timeout_s=5.0,
    failure_threshold=3,
)
RESTART = RestartSpec(backoff_initial_s=1.0, backoff_max_s=60.0, reset_after_s=300.0, max_restarts=3)


def make_spec(name: str = "a", **changes: Any) -> ServerSpec:
    """Return a plain spec with the given changes."""
    spec = ServerSpec(
        name=name,
        engine="sglang",
        argv=("/bin/server", "--port", "30000"),
        environment=(),
        gpu_ids=(),
        host="127.0.0.1",
        port=30000,
        log_file=f"/tmp/{name}.log",
        log_max_bytes=1000,
        log_backups=1,
        depends_on=(),
        start_stagger_s=0.0,
        drain_timeout_s=30.0,
        probe=PROBE,
        restart=RESTART,
    )
    return replace(spec, **changes)


def make_gateway(*servers: str, **changes: Any) -> ServerSpec:
    """Return a gateway before servers (a and b), with changes of its GatewaySpec."""
    names = servers or ("a", "b")
    gateway = GatewaySpec(
        pool=names,
        routes=tuple(RouteSpec(name=name, servers=(name,)) for name in names),
        conf="/run/x/config/gateway.conf",
        access_log="/tmp/access.log",
        api_keys_file="",
        tls_certificate="",
        tls_certificate_key="",
        http2=True,
        rate_per_s=0.0,
        burst=20,
        max_connections=0,
        max_body_bytes=1_000_000,
        client_timeout_s=15.0,
        read_timeout_s=3600.0,
        workers=2,
    )
    return make_spec(
        "gateway",
        engine="nginx",
        argv=("nginx", "-e", "stderr", "-p", "/tmp/x/gateway/", "-c", gateway.conf),
        environment=(("TMPDIR", "/tmp/x/gateway"),),
        port=8000,
        stop_signal="QUIT",
        probe=replace(PROBE, port=18000),
        gateway=replace(gateway, **changes),
    )


class Story:
    """A fleet that lives through observations at chosen times; keeps the last actions."""

    def __init__(self, *specs: ServerSpec) -> None:
        from infer_dev_entry.fleet.observations import PlanWish

        self.fleet = Fleet()
        self.now = 1000.0
        self.actions: tuple[Action, ...] = ()
        self.history: list[Action] = []
        self.see(wishes=(PlanWish(specs=specs),))
        self.see(results=(SupervisorSeen(up=True),))

    def see(self, *, after: float = 0.0, **facts: Any) -> tuple[Action, ...]:
        """Let time pass, observe, decide."""
        self.now += after
        facts.setdefault("processes_at", self.now)
        self.fleet, self.actions = decide(self.fleet, Observation(now=self.now, wall=self.now + 1e9, **facts))
        self.history.extend(self.actions)
        return self.actions

    def server(self, name: str = "a") -> Server:
        """Return one server."""
        return next(server for server in self.fleet.servers if server.spec.name == name)

    def started(self, name: str = "a", pid: int = 100, past: Any = (), **later: Any) -> tuple[Action, ...]:
        """The start that was asked for has succeeded."""
        return self.see(results=(StartSeen(name=name, pid=pid, past=past),), **later)

    def probed(self, ok: bool, name: str = "a", status: int = 0, **later: Any) -> tuple[Action, ...]:
        """The probe that is under way has ended."""
        status = 200 if ok else status
        told = {key: later.pop(key) for key in ("counters", "by_counters", "phase", "log_grew") if key in later}
        seen = ProbeSeen(name=name, pid=self.server(name).pid, ok=ok, status=status, reason="no answer", **told)
        return self.see(results=(seen,), **later)

    def ready(self, name: str = "a", pid: int = 100) -> None:
        """Start and become ready."""
        self.started(name, pid)
        self.see(after=0.2)
        self.probed(True, name)

    def process(
        self, statename: str, pid: int = 0, name: str = "a", ended: str = "", mend: str = "", **later: Any
    ) -> tuple[Action, ...]:
        """supervisord reports this about one program."""
        seen = ProcessSeen(name=name, statename=statename, pid=pid, ended=ended, mend=mend)
        return self.see(processes=(seen,), **later)


def of_type(actions: tuple[Action, ...] | list[Action], kind: type) -> list[Any]:
    """Return the actions of one kind."""
    return [action for action in actions if isinstance(action, kind)]


def events(actions: tuple[Action, ...] | list[Action]) -> list[str]:
    """Return the names of the reported events."""
    from infer_dev_entry.fleet.actions import Report

    return [action.event for action in actions if isinstance(action, Report)]
