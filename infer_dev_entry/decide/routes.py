"""Which servers a gateway hands requests to: those that are ready now, and no others."""

from __future__ import annotations

from dataclasses import replace

from infer_dev_entry.decide.turn import Turn
from infer_dev_entry.fleet import Ending, Fleet, Server, State
from infer_dev_entry.fleet.actions import Route
from infer_dev_entry.fleet.observations import RouteSeen
from infer_dev_entry.spec import GatewaySpec, ServerSpec


def route_if_changed(turn: Turn) -> None:
    """Give each gateway its servers when they, its process or what it is to do with requests have changed."""
    for server in turn.fleet.servers:
        gateway = server.spec.gateway
        if gateway is None or server.ending is not Ending.NONE or turn.fleet.shutting_down:
            continue  # one that drains takes no requests any more
        route = Route(spec=server.spec, pid=server.pid, ready=_ready(turn.fleet, gateway))
        if route != server.routed:
            turn.actions.append(route)
            turn.put(replace(server, routed=route, answered=None))


def _ready(fleet: Fleet, gateway: GatewaySpec) -> tuple[ServerSpec, ...]:
    names = {*gateway.pool, *(name for route in gateway.routes for name in route.servers)}
    return tuple(server.spec for server in fleet.servers if server.state is State.READY and server.spec.name in names)


def take_route(turn: Turn, server: Server, seen: RouteSeen) -> None:
    """Take in whether the gateway works by what it was given; what is wrong shows beside its state."""
    turn.put(replace(server, answered=seen.route, notice=seen.problem, notice_mend=seen.mend))


def is_rerouted(server: Server, spec: ServerSpec) -> bool:
    """True when a running gateway can take on `spec` by a reload: it differs in nothing that needs a new process."""
    both = server.spec.gateway is not None and spec.gateway is not None
    return both and replace(server.spec, gateway=None) == replace(spec, gateway=None)
